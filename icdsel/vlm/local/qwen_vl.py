"""Runs Qwen2.5-VL: each image is encoded once, and common prefixes of prompts are computed once.

A prompt consists of a header and one block per image. The prompts of a batch form a tree of such blocks, which is read
level by level. Where a prompt ends, its references are scored and its answer is decoded from the same KV cache. Masks
are explicit and M-RoPE positions are computed here, so the model keeps no state between calls.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import extract_vision_info
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from icdsel.data.images import ImageError, open_image
from icdsel.records import Answer, Example, QuestionId
from icdsel.vlm.engine import Request
from icdsel.vlm.local.decoding import decode
from icdsel.vlm.local.feature_cache import Features
from icdsel.vlm.local.kv_reader import KvReader
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.prefix_tree import prefix_tree
from icdsel.vlm.prompts import chat_messages, harmless

_FEWEST_PATCHES = 256
"""Smaller batches of images are padded to this size. For few rows MKL uses another kernel, which rounds differently, so
the features of an image would depend on which images were already cached."""
_MOST_ENLARGED = 2**20  # maximum size in pixels that a processor may enlarge images to, unless `min_pixels` is set


@dataclass(frozen=True)
class Block:
    """A part of a prompt, up to the next image.

    Attributes:
        ids: Its tokens.
        image: The image that it begins with; the image's features replace the image tokens.
        grid: Rows and columns of the image's visual tokens.
    """

    ids: tuple[int, ...]
    image: Path | None = None
    grid: tuple[int, int] = (0, 0)

    def positions(self) -> tuple[np.ndarray, int]:
        """M-RoPE positions (3, n), relative to the block's start, and the offset of the next block."""
        rows, columns = self.grid
        place = np.indices((rows, columns)).reshape(2, -1)  # (2, T)
        image = np.concatenate([np.zeros_like(place[:1]), place])  # (3, T)
        text = max(rows, columns) + np.arange(len(self.ids) - rows * columns)
        return np.concatenate([image, np.broadcast_to(text, (3, len(text)))], 1), max(rows, columns) + len(text)


class Prompt(NamedTuple):
    """A prompt as text, whose tokens decide those of an answer, and as blocks."""

    text: str
    blocks: tuple[Block, ...]


class QwenVl(LocalModel[Prompt]):
    """Runs Qwen2.5-VL; results equal those of transformers' `generate` and forward passes for single prompts."""

    chunk = 512
    images_at_once = 64

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the model is exactly of transformers' class; a subclass could compute something else."""
        return type(model) is Qwen2_5_VLForConditionalGeneration

    def _set_up(self) -> None:
        model, processor, settings = self.model, self.processor, self.settings
        self._image_token: int = model.config.image_token_id
        self._image_marker: str = processor.image_token
        cuts, vision = processor.image_processor, model.config.vision_config
        cut = (cuts.patch_size, cuts.merge_size, cuts.temporal_patch_size)
        if cut != (own := (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)):
            raise ValueError(f"its processor cuts images into patches by {str(cut)[:80]}, the model by {own}")
        self._merge: int = vision.spatial_merge_size
        limits = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}  # in pixels of the image
        self._size = dict(processor.image_processor.size) | {k: v for k, v in limits.items() if v}
        if not settings.min_pixels and self._size["shortest_edge"] > _MOST_ENLARGED:
            raise ValueError(
                f"its processor enlarges every image to {self._size['shortest_edge']:,} pixels, above "
                f"{_MOST_ENLARGED:,} (set the number with --min-pixels)"
            )
        self._try_prompt()

    def _try_prompt(self) -> None:
        """Creates a prompt with two images, so that an unusable model is rejected when it is loaded.

        Raises:
            Exception: The model is unusable; the type depends on its files.
        """
        picture = Image.new("RGB", (64, 48), "gray")
        self._encode_images(self._inputs([picture, picture]))
        icd = Example(0, 0, Path("none"), "What is this?", "grey", ("grey",))
        query = Example(1, 1, Path("none"), "And that?", "", ("grey",))
        text = self.chat.prompt(chat_messages([icd], query, self.style))
        if (count := text.count(self._image_marker)) != 2:
            raise ValueError(f"its chat template shows {count} of two images")
        self.embed_texts([text, ""])

    # ---- images ----

    def _inputs(self, pictures: Sequence[Image.Image]) -> list[tuple[Tensor, Tensor]]:
        """Converts each picture to inputs of the vision encoder: patches (P, …) and their grid (3,)."""
        inputs = self.processor.image_processor(images=list(pictures), size=self._size, return_tensors="pt")
        grids = inputs["image_grid_thw"]  # (N, 3)
        return list(zip(inputs["pixel_values"].split(grids.prod(1).tolist()), grids, strict=True))

    def _prepare_images(self, paths: Sequence[Path]) -> list[Any]:
        opened: list[Image.Image | Exception] = []
        for path in paths:
            try:
                opened.append(open_image(path, self.max_image_pixels))
            except ImageError as error:
                opened.append(error)
        pictures = [picture for picture in opened if isinstance(picture, Image.Image)]
        try:
            inputs = iter(self._inputs(pictures) if pictures else [])
        except Exception:  # noqa: BLE001 - the processor rejects the shape of one of them: find out which
            return [self._inputs_or_error(each) if isinstance(each, Image.Image) else each for each in opened]
        return [next(inputs) if isinstance(each, Image.Image) else each for each in opened]

    def _inputs_or_error(self, picture: Image.Image) -> Any:
        try:
            return self._inputs([picture])[0]
        except Exception as error:  # noqa: BLE001 - it becomes the reason why the image is broken
            return error

    @torch.inference_mode()
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        first, missing = prepared[0], _FEWEST_PATCHES - sum(len(patches) for patches, _ in prepared)
        filled = [*prepared, *[first] * -(-missing // len(first[0]))]  # -(-a // b) is a / b, rounded up; ≤ 0 adds none
        grids = torch.stack([grid for _, grid in filled])  # (N, 3)
        pixels = torch.cat([patches for patches, _ in filled]).to(self.device, self.model.dtype)
        features = self.model.model.visual(pixels, grid_thw=grids.to(self.device)).pooler_output  # (ΣT, d)
        shapes = [(h // self._merge, w // self._merge) for _, h, w in grids.tolist()]
        tokens = features.split([h * w for h, w in shapes])
        return list(zip(tokens, shapes, strict=True))[: len(prepared)]

    def _open_images(self, paths: Iterable[Path], upcoming: Iterable[Path]) -> None:
        self.images.load(paths)
        self.images.read_ahead(upcoming)

    # ---- prompts ----

    def prompt(self, request: Request) -> Prompt:
        """Creates the prompt of a request.

        Raises:
            Exception: The chat template fails, or renders more or fewer images than the messages contain.
        """
        messages = chat_messages(request.icds, request.query, self.style)
        images = [part["image"] for part in extract_vision_info(messages)]
        text = self.chat.prompt(messages)
        tokens = self.answers.of_prompt(text)
        if (count := tokens.count(self._image_token)) != len(images):
            raise ValueError(f"the chat template shows {count} of {len(images)} images")
        blocks: list[Block] = []
        ids: list[int] = []
        image, grid = None, (0, 0)
        upcoming = iter(images)
        for token in tokens:
            if token != self._image_token:
                ids.append(token)
                continue
            blocks.append(Block(tuple(ids), image, grid))
            image = next(upcoming)
            grid = self.images.grid(image)
            ids = [self._image_token] * (grid[0] * grid[1])
        return Prompt(text, (*blocks, Block(tuple(ids), image, grid)))

    def _length(self, prompt: Prompt) -> int:
        return sum(len(block.ids) for block in prompt.blocks)

    def _groups(self, requests: Mapping[int, Request]) -> Iterable[list[int]]:
        """Groups requests by query, since only prompts of the same query are likely to share a prefix."""
        queries: dict[tuple[QuestionId, Path], list[int]] = {}
        for i, request in requests.items():
            queries.setdefault((request.query.question_id, request.query.image), []).append(i)
        return queries.values()

    # ---- answers ----

    @torch.inference_mode()
    def _answer_prompts(self, prompts: Mapping[int, Prompt], requests: Sequence[Request]) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        reader = KvReader(self.model, 1)
        for level in prefix_tree({key: prompt.blocks for key, prompt in prompts.items()}):
            reader = reader.taken(level.parents)
            hidden = self._read(reader, level.blocks)  # (R, L, d)
            if level.ends:
                nodes, keys = zip(*level.ends, strict=True)
                last = [len(level.blocks[node].ids) - 1 for node in nodes]
                logits = reader.logits(hidden[list(nodes), last])  # (E, V)
                ends = reader.taken(nodes) if level.inner else reader
                if not level.inner:
                    ends.select(torch.tensor(nodes, device=self.device))
                references = [requests[key].references for key in keys]
                decoded = self._answers(ends, logits, [prompts[key] for key in keys], references)
                answers |= zip(keys, decoded, strict=True)
            if level.inner:
                reader.select(torch.tensor(level.inner, device=self.device))
        return answers

    def _read(self, reader: KvReader, blocks: Sequence[Block]) -> Tensor:
        """Reads one block in each row, padded at its end, and returns the last hidden states (R, L, d)."""
        longest = max(len(block.ids) for block in blocks)
        ids = torch.full((len(blocks), longest), self.answers.stop)
        positions = torch.zeros(3, len(blocks), longest, dtype=torch.long)
        own = torch.zeros(len(blocks), longest, dtype=torch.bool)
        extents = torch.zeros(len(blocks), dtype=torch.long)
        for r, block in enumerate(blocks):
            length = len(block.ids)
            ids[r, :length], own[r, :length] = torch.tensor(block.ids), True
            places, extents[r] = block.positions()
            positions[:, r, :length] = torch.from_numpy(places)
        ids, positions, own, extents = (x.to(self.device) for x in (ids, positions, own, extents))
        embeds = self.model.get_input_embeddings()(ids)  # (R, L, d)
        if shown := [self.images.features(block.image) for block in blocks if block.image is not None]:
            features = torch.cat(shown)  # (ΣT, d)
            embeds[(ids == self._image_token) & own] = features.to(self.device, embeds.dtype)
        return reader.read(embeds, positions, own, extents)

    def _answers(
        self, reader: KvReader, logits: Tensor, prompts: Sequence[Prompt], references: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Answers and scores prompts that the reader has read, one per row, given the next token's logits (R, V)."""
        first = logits.log_softmax(-1)
        targets = [
            [self.answers.of(prompt.text, harmless(text)) for text in row]
            for prompt, row in zip(prompts, references, strict=True)
        ]
        scored = reader.score(targets, first)
        answers = decode(logits, self._seen(prompts, logits), reader, self.search)
        return [
            self._answer(answer, *score, self._length(prompt))
            for answer, score, prompt in zip(answers, scored, prompts, strict=True)
        ]

    def _seen(self, prompts: Sequence[Prompt], logits: Tensor) -> Tensor | None:
        """A mask (R, V) of the tokens that occur in each prompt; None if repetition is not penalised."""
        if self.search.repetition_penalty == 1:
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for r, prompt in enumerate(prompts):
            seen[r, [token for block in prompt.blocks for token in block.ids]] = True
        return seen.to(logits.device)
