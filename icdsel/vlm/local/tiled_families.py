"""How LLaVA-OneVision, Idefics3, SmolVLM and InternVL cut images into tiles, and show them in prompts."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from icdsel.vlm.local.feature_cache import Alone, Features, Grid, Shown
from icdsel.vlm.local.shared_prefix import UnlikeFamilyError
from icdsel.vlm.local.tiled_vlm import Tiled, TiledVlm


class Idefics3(TiledVlm):
    """Idefics3 and SmolVLM: rows of tiles, then the whole image. A grid is the rows and columns; (0, 0) if not cut."""

    models = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")

    def _set_up(self) -> None:
        self._of_grid = lru_cache(maxsize=None)(self._marked)
        super()._set_up()

    def _tiled(self, pictures: Sequence[Image.Image], alone: bool) -> list[Tiled]:
        del alone
        cut = partial(self.processor.image_processor, return_row_col_info=True, return_tensors="pt")
        made = [cut(images=[[picture]]) for picture in pictures]
        return [Tiled(each["pixel_values"][0], (each["rows"][0][0], each["cols"][0][0])) for each in made]

    def _towered(self, tiles: Tensor, images: Sequence[Tiled]) -> Any:
        del images
        return self.model.get_image_features(pixel_values=tiles[None])

    def _expansion(self, grid: Grid) -> tuple[int, ...]:
        return self._of_grid(grid)

    def _marked(self, grid: Grid) -> tuple[int, ...]:
        """The tokens of tiles, with the marks that tell their places."""
        processor, (rows, columns) = self.processor, grid
        around, tile = processor.fake_image_token, processor.image_token * processor.image_seq_len
        whole = getattr(processor, "global_image_tag", None) or processor.global_image_token
        text = ""
        for row in range(1, rows + 1):
            text += "".join(f"{around}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
        text += ("\n" if rows else "") + around + whole + tile + around
        return tuple(processor.tokenizer.encode(text, add_special_tokens=False))


class InternVl(TiledVlm):
    """InternVL: tiles, then the whole image, without marks between them. A grid is the number of tiles, and 1."""

    models = ("InternVLForConditionalGeneration",)

    def _tiled(self, pictures: Sequence[Image.Image], alone: bool) -> list[Tiled]:
        del alone
        made = self.processor.image_processor(images=list(pictures), crop_to_patches=True, return_tensors="pt")
        counts = torch.as_tensor(made["num_patches"]).tolist()
        tiles = made["pixel_values"].split(counts)
        return [Tiled(each, (count, 1)) for each, count in zip(tiles, counts, strict=True)]

    def _towered(self, tiles: Tensor, images: Sequence[Tiled]) -> Any:
        del images
        return self.model.get_image_features(pixel_values=tiles)

    def _expansion(self, grid: Grid) -> tuple[int, ...]:
        tiles = [self._image_token] * (grid[0] * self.processor.image_seq_length)
        return (self.processor.start_image_token_id, *tiles, self.processor.end_image_token_id)


class LlavaOnevision(TiledVlm):
    """LLaVA-OneVision: the only image of a prompt is cut into tiles, several are shown whole.

    A grid is the number of visual tokens, and 1: padding of an image that is cut is left out, and lines end with a
    token.
    """

    models = ("LlavaOnevisionForConditionalGeneration",)
    images_at_once = 16

    def _set_up(self) -> None:
        if not hasattr(self.processor, "_get_number_of_features"):
            raise UnlikeFamilyError("its processor counts tokens in another way")
        super()._set_up()

    def _shown(self, image: Path, alone: bool) -> Shown:
        return Alone(image) if alone else image

    def _prepare_images(self, images: Sequence[Shown]) -> list[Any]:
        made: dict[Shown, Any] = {}
        for alone in (False, True):
            part = [image for image in images if isinstance(image, Alone) is alone]
            made |= zip(part, self._prepared(part, partial(self._tiled, alone=alone)), strict=True)
        return [made[image] for image in images]

    def _tiled(self, pictures: Sequence[Image.Image], alone: bool) -> list[Tiled]:
        cut = partial(self.processor.image_processor, return_tensors="pt")
        if alone:
            tiles = [cut(images=[[picture]])["pixel_values"][0] for picture in pictures]
        else:
            other = Image.new("RGB", (1, 1))  # so that no picture is alone
            tiles = list(cut(images=[[*pictures, other]])["pixel_values"][:-1])
        made = []
        for picture, each in zip(pictures, tiles, strict=True):
            size = (picture.height, picture.width)
            made.append(Tiled(each, (self._tokens(size, each.shape[-2:], alone), 1), size, alone))
        return made

    def _tokens(self, size: tuple[int, int], tile: tuple[int, int], alone: bool) -> int:
        """The number of visual tokens of an image in a prompt, as the processor counts them."""
        processor = self.processor
        count = processor._get_number_of_features(*size, *tile) if alone else processor.num_image_tokens + 1
        return int(count) - int(processor.vision_feature_select_strategy == "default")

    def _encode_images(self, prepared: Sequence[Tiled]) -> list[Features]:
        several = [image for image in prepared if not image.alone]
        if len(several) == 1:
            several *= 2  # the model would take a single one for one that is alone
        encode = super()._encode_images
        together = iter(encode(several) if several else [])
        return [encode([image])[0] if image.alone else next(together) for image in prepared]

    def _towered(self, tiles: Tensor, images: Sequence[Tiled]) -> Any:
        sizes = torch.tensor([image.size for image in images], device=self.device)
        together = [1] * len(images) if images[0].alone else [len(images)]
        return self.model.get_image_features(pixel_values=tiles, image_sizes=sizes, batch_num_images=together)

    def _expansion(self, grid: Grid) -> tuple[int, ...]:
        return (self._image_token,) * grid[0]
