"""Families whose vision tower reads square tiles, with a plain language model behind it.

A processor cuts an image into tiles of one size, or shows it whole as a single one. The tower encodes each tile by
itself, and all tiles become equally many tokens. Which tiles an image has, and what stands between them in a prompt,
differs between families: `icdsel.vlm.local.tiled_families`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from icdsel.errors import UserError, reason_of
from icdsel.records import Example
from icdsel.vlm.local.feature_cache import Features, Grid
from icdsel.vlm.local.shared_prefix import SharedPrefix, UnlikeFamilyError
from icdsel.vlm.prompts import chat_messages

_FEWEST_TOKENS = 256
"""Smaller batches of images are padded to this number of visual tokens. For few rows MKL uses another kernel, which
rounds differently, so the features of an image would depend on which images were already cached."""
_LANGUAGE_MODELS = ("llama", "qwen2", "qwen3", "qwen3_moe")
"""The text models that are tested; they have no state beyond their KV cache, and one number is a token's position."""


@dataclass(frozen=True)
class Tiled:
    """An image as the vision tower reads it.

    Attributes:
        tiles: Its tiles (N, C, H, W).
        grid: The grid of its visual tokens.
        size: Height and width of the image in pixels.
        alone: Whether it is the only image of its prompt.
    """

    tiles: Tensor
    grid: Grid
    size: tuple[int, int] = (0, 0)
    alone: bool = False


class TiledVlm(SharedPrefix):
    """A vision tower that reads tiles, and a plain language model.

    Raises:
        UnlikeFamilyError: The processor or the language model does something else than is expected of the family.
    """

    images_at_once = 4
    read_ahead = 16  # an image may have dozens of tiles

    # ---- what differs between families ----

    @abstractmethod
    def _tiled(self, pictures: Sequence[Image.Image], alone: bool) -> list[Tiled]:
        """Cuts pictures into tiles as the model's processor does. Called in threads.

        Args:
            pictures: The pictures.
            alone: Whether each is the only image of its prompt, rather than one of several.
        """

    @abstractmethod
    def _towered(self, tiles: Tensor, images: Sequence[Tiled]) -> Any:
        """What `get_image_features` makes of the tiles (ΣN, C, H, W) of images."""

    # ---- checks ----

    def _set_up(self) -> None:
        try:
            self._require_plain()
            super()._set_up()
        except (UserError, UnlikeFamilyError):
            raise
        except Exception as error:  # a processor of another kind raises anything; `AnyVlm` may still run it
            raise UnlikeFamilyError(f"{type(error).__name__}: {reason_of(error)}") from error

    def _require_plain(self) -> None:
        config = self.model.get_decoder().config
        if config.model_type not in _LANGUAGE_MODELS:
            raise UnlikeFamilyError(f"its text model is {config.model_type}")
        if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
            raise UnlikeFamilyError("what a token's position means depends on the length of its prompt (longrope)")

    def _try_prompt(self) -> None:
        """Compares a prompt with one image, and one with two, with what the model's processor makes of them.

        Raises:
            UnlikeFamilyError: They differ.
        """
        shade = Image.linear_gradient("L").convert("RGB")
        pictures = [shade.resize((96, 40)), shade.resize((40, 64))]
        examples = [Example(n, n, Path(f"{n}"), "What is this?", "grey", ("grey",)) for n in range(2)]
        for count in (1, 2):
            *icds, query = examples[:count]
            text = self.chat.prompt(chat_messages(icds, query, self.style))
            theirs = self.processed([text], [pictures[:count]])
            images = self._tiled(pictures[:count], alone=count == 1)
            shown = [(example.image, tiled.grid) for example, tiled in zip(examples, images, strict=False)]
            ours = [token for block in self._blocks(text, shown) for token in block.ids]
            if ours != theirs["input_ids"][0].tolist():
                raise UnlikeFamilyError("its processor makes other tokens of a prompt")
            pixels = theirs["pixel_values"]
            if not torch.cat([tiled.tiles for tiled in images]).equal(pixels.reshape(-1, *pixels.shape[-3:])):
                raise UnlikeFamilyError("its processor cuts images in another way")
        self.embed_texts([text, ""])

    # ---- images ----

    def _inputs(self, pictures: Sequence[Image.Image]) -> list[Tiled]:
        return self._tiled(pictures, alone=False)

    @torch.inference_mode()
    def _encode_images(self, prepared: Sequence[Tiled]) -> list[Features]:
        counts = [self._count(image.grid) for image in prepared]
        more = max(0, -(-(_FEWEST_TOKENS - sum(counts)) // counts[0]))  # -(-a // b) is a / b, rounded up
        images, counts = [*prepared, *[prepared[0]] * more], counts + [counts[0]] * more
        tiles = torch.cat([image.tiles for image in images]).to(self.device, self.model.dtype)
        output = self._towered(tiles, images)
        output = getattr(output, "pooler_output", output)
        parts = [output] if isinstance(output, Tensor) else output
        tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])  # (ΣT, d)
        if len(tokens) != sum(counts):
            raise ValueError(f"the model makes {len(tokens)} visual tokens of it, but a prompt has {sum(counts)}")
        grids = [image.grid for image in images]
        return list(zip(tokens.split(counts), grids, strict=True))[: len(prepared)]
