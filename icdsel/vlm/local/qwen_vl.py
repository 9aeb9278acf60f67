"""Qwen's vision-language models and those that are built like them: images of any shape, M-RoPE positions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from icdsel.data.images import open_image
from icdsel.vlm.local.feature_cache import Features, Grid
from icdsel.vlm.local.shared_prefix import Block, SharedPrefix
from icdsel.vlm.prompts import harmless

_FEWEST_PATCHES = 256
"""Smaller batches of images are padded to this size. For few rows MKL uses another kernel, which rounds differently, so
the features of an image would depend on which images were already cached."""
_MOST_ENLARGED = 2**20  # maximum size in pixels that a processor may enlarge images to, unless `min_pixels` is set

Prepared = tuple[Tensor, Tensor]
"""Patches (P, …) of an image, and their grid (3,): frames, rows, columns."""


class AnyShape(SharedPrefix):
    """Images keep their shape. A grid is the rows and columns of an image's visual tokens, which are their positions.

    Attributes:
        counts_frames: Whether the processor's limits of pixels are for all frames that an image is repeated as.
    """

    axes = 3
    counts_frames: ClassVar[bool] = False

    def _set_up(self) -> None:
        cuts, vision, settings = self.processor.image_processor, self.model.config.vision_config, self.settings
        cut = (cuts.patch_size, cuts.merge_size, cuts.temporal_patch_size)
        if cut != (own := (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)):
            raise ValueError(f"its processor cuts images into patches by {str(cut)[:80]}, the model by {own}")
        self._merge: int = vision.spatial_merge_size
        frames = cuts.temporal_patch_size if self.counts_frames else 1
        limits = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}  # in pixels of the image
        self._size = dict(cuts.size) | {k: v * frames for k, v in limits.items() if v}
        if not settings.min_pixels and (least := self._size["shortest_edge"] // frames) > _MOST_ENLARGED:
            raise ValueError(
                f"its processor enlarges every image to {least:,} pixels, above {_MOST_ENLARGED:,} "
                f"(set the number with --min-pixels)"
            )
        super()._set_up()

    def picture(self, path: Path) -> Image.Image:
        """Opens an image; the processor resizes it."""
        return open_image(path, self.max_image_pixels)

    def _inputs(self, pictures: Sequence[Image.Image]) -> list[Prepared]:
        inputs = self.processor.image_processor(images=list(pictures), size=self._size, return_tensors="pt")
        grids = inputs["image_grid_thw"]  # (N, 3)
        return list(zip(inputs["pixel_values"].split(grids.prod(1).tolist()), grids, strict=True))

    @torch.inference_mode()
    def _encode_images(self, prepared: Sequence[Prepared]) -> list[Features]:
        first, missing = prepared[0], _FEWEST_PATCHES - sum(len(patches) for patches, _ in prepared)
        filled = [*prepared, *[first] * -(-missing // len(first[0]))]  # -(-a // b) is a / b, rounded up; ≤ 0 adds none
        grids = torch.stack([grid for _, grid in filled])  # (N, 3)
        pixels = torch.cat([patches for patches, _ in filled]).to(self.device, self.model.dtype)
        features = self._visual_tokens(self.model.model.visual(pixels, grid_thw=grids.to(self.device)))  # (ΣT, …)
        shapes = [(h // self._merge, w // self._merge) for _, h, w in grids.tolist()]
        tokens = features.split([h * w for h, w in shapes])
        return list(zip(tokens, shapes, strict=True))[: len(prepared)]

    @staticmethod
    def _visual_tokens(encoded: Any) -> Tensor:
        """The visual tokens (ΣT, …) of images, from what the vision encoder returns."""
        tokens: Tensor = encoded.pooler_output
        return tokens

    def _expansion(self, grid: Grid) -> tuple[int, ...]:
        return (self._image_token,) * (grid[0] * grid[1])

    def _positions(self, block: Block) -> tuple[Tensor, int]:
        rows, columns = block.grid
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T.reshape(2, -1)  # (2, T)
        image = torch.cat([torch.zeros_like(place[:1]), place])  # (3, T)
        text = max(rows, columns) + torch.arange(len(block.ids) - rows * columns)
        return torch.cat([image, text.expand(3, -1)], 1), max(rows, columns) + len(text)


class QwenVl(AnyShape):
    """Qwen2-VL and Qwen2.5-VL."""

    models = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")

    def _harmless(self, content: str) -> str:
        return harmless(content)  # it covers all markers of chats; others, such as <tool_call>, are ordinary tokens


class Qwen3Vl(AnyShape):
    """Qwen3-VL, with or without experts: a visual token also has parts that are added behind the first layers."""

    models = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")

    @staticmethod
    def _visual_tokens(encoded: Any) -> Tensor:
        """Visual tokens (ΣT, (1 + layers) · d): what replaces the image tokens, then what each layer adds."""
        return torch.cat([encoded.pooler_output, *encoded.deepstack_features], 1)

    def _show(self, embeds: Tensor, places: Tensor, features: Tensor) -> dict[str, Any]:
        tokens, *added = features.split(embeds.shape[-1], 1)
        embeds[places] = tokens
        return {"visual_pos_masks": places, "deepstack_visual_embeds": added}


class Glm4v(AnyShape):
    """GLM-4V."""

    models = ("Glm4vForConditionalGeneration",)
    counts_frames = True
