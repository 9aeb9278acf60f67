"""Models of the Qwen2.5-VL family: an image is encoded once, and what prompts begin with alike is read once.

A prompt is a header and a block for each image that it shows. The prompts of a batch are a tree of such blocks,
read level by level; where one ends, its references are scored and its answer decoded from the same KV cache.
Masks are explicit and M-RoPE positions are computed here, so nothing is kept on the model between calls.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from icdsel.data.images import ImageError, open_image
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.base import NOT_FINITE, Request, Vlm, batches, prompts_of
from icdsel.vlm.decoding import decode
from icdsel.vlm.feature_cache import Features
from icdsel.vlm.kv_reader import KvReader
from icdsel.vlm.prefix_tree import prefix_tree
from icdsel.vlm.prompts import Message, chat_messages, harmless

_FEWEST_PATCHES = 256
"""Smaller batches of images are filled up: for few rows MKL has another kernel, which rounds differently, so that an
image's features would depend on which images the cache already held."""
_MOST_ENLARGED = 2**20  # pixels that a model's files may have small images enlarged to, unless `min_pixels` is set


@dataclass(frozen=True)
class Block:
    """A part of a prompt, up to the next image: its tokens, and the image that fills their image tokens.

    `grid` are the rows and columns of the image's visual tokens, with which the block begins.
    """

    ids: tuple[int, ...]
    image: Path | None = None
    grid: tuple[int, int] = (0, 0)

    def positions(self) -> tuple[np.ndarray, int]:
        """M-RoPE positions (3, n) from the block's start on, and by how much the next position moves."""
        rows, columns = self.grid
        place = np.indices((rows, columns)).reshape(2, -1)  # (2, T)
        image = np.concatenate([np.zeros_like(place[:1]), place])
        after = max(rows, columns) + np.arange(len(self.ids) - rows * columns)
        return np.concatenate([image, np.broadcast_to(after, (3, len(after)))], 1), max(rows, columns) + len(after)


class QwenVl(Vlm):
    """A Qwen2.5-VL; equal to transformers' own `generate` and forward passes, one prompt at a time."""

    chunk = 512
    images_at_once = 64

    def __init__(
        self, model: Any, processor: Any, settings: VlmSettings, name: str, fingerprint: str, max_image_pixels: int
    ) -> None:
        super().__init__(model, processor, settings, name, fingerprint, max_image_pixels)
        self._image_token: int = model.config.image_token_id
        self._image_mark: str = processor.image_token
        cuts, looks = processor.image_processor, model.config.vision_config
        cut = (cuts.patch_size, cuts.merge_size, cuts.temporal_patch_size)
        if cut != (read := (looks.patch_size, looks.spatial_merge_size, looks.temporal_patch_size)):
            raise ValueError(f"its processor cuts images into patches by {str(cut)[:80]}, the model by {read}")
        self._merge: int = looks.spatial_merge_size
        self._end: int = processor.tokenizer.eos_token_id
        if self._end is None:
            raise ValueError("its tokenizer has no token that ends an answer (eos_token in tokenizer_config.json)")
        # Byte-level BPE never merges across special tokens: the pieces between them can be encoded one by one.
        special = sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        limits = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
        self._size = dict(processor.image_processor.size) | {k: v for k, v in limits.items() if v}
        if not settings.min_pixels and self._size["shortest_edge"] > _MOST_ENLARGED:
            raise ValueError(
                f"its processor enlarges every picture to {self._size['shortest_edge']:,} pixels, above "
                f"{_MOST_ENLARGED:,} (--min-pixels says to how many)"
            )
        self._try_two_pictures()

    def _try_two_pictures(self) -> None:
        """Makes a prompt with two pictures, so that a model that cannot be asked is refused before it is.

        Raises:
            Exception: Whatever the model's files lead to.
        """
        picture = Image.new("RGB", (64, 48), "gray")
        self._encode_images(self._prepared([picture, picture]))
        icd = Example(0, 0, Path("none"), "What is this?", "grey", ("grey",))
        query = Example(1, 1, Path("none"), "And that?", "", ("grey",))
        text = self._render(chat_messages([icd], query, self.style))
        lost = [part for part in (icd.question, icd.answer, query.question) if part not in text]
        if (count := self._special.split(text).count(self._image_mark)) != 2 or lost:
            raise ValueError(f"its chat template shows {count} of two images" + (f", not {lost[0]!r}" if lost else ""))
        self.embed_texts([text, ""])

    # ---- images ----

    def _prepared(self, pictures: Sequence[Image.Image]) -> list[Any]:
        """What the vision tower takes of pictures: patches and their grid of each."""
        inputs = self.processor.image_processor(images=list(pictures), size=self._size, return_tensors="pt")
        grids = inputs["image_grid_thw"]  # (N, 3)
        return list(zip(inputs["pixel_values"].split(grids.prod(1).tolist()), grids, strict=True))

    def _prepare_images(self, paths: Sequence[Path]) -> list[Any]:
        found: list[Any] = []
        for path in paths:
            try:
                found.append(open_image(path, self.max_image_pixels))
            except ImageError as error:
                found.append(error)
        pictures = [picture for picture in found if isinstance(picture, Image.Image)]
        try:
            prepared = iter(self._prepared(pictures) if pictures else [])
        except Exception:  # noqa: BLE001 - one of them is of a shape that the processor refuses: find which
            return [_tried(self._prepared, each) if isinstance(each, Image.Image) else each for each in found]
        return [next(prepared) if isinstance(each, Image.Image) else each for each in found]

    @torch.inference_mode()
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        first, lacking = prepared[0], _FEWEST_PATCHES - sum(len(patches) for patches, _ in prepared)
        filled = [*prepared, *[first] * -(-lacking // len(first[0]))]  # none where nothing is lacking
        grids = torch.stack([grid for _, grid in filled])  # (N, 3)
        pixels = torch.cat([patches for patches, _ in filled]).to(self.device, self.model.dtype)
        features = self.model.model.visual(pixels, grid_thw=grids.to(self.device)).pooler_output  # (ΣT, d)
        shapes = [(h // self._merge, w // self._merge) for _, h, w in grids.tolist()]
        tokens = features.split([h * w for h, w in shapes])
        return list(zip(tokens, shapes, strict=True))[: len(prepared)]

    def _open(self, paths: Iterable[Path], upcoming: Iterable[Path]) -> None:
        self.images.load(paths)
        self.images.read_ahead(upcoming)

    # ---- prompts ----

    def _render(self, messages: Sequence[Message]) -> str:
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text)

    def _prompt(self, request: Request) -> tuple[Block, ...]:
        """The blocks of a request's prompt.

        Raises:
            Exception: Of the model's template; ValueError: it shows more images or fewer than there are.
        """
        text = self._render(chat_messages(request.icds, request.query, self.style))
        blocks: list[Block] = []
        ids: list[int] = []
        image, grid = None, (0, 0)
        upcoming = iter(request.shown)
        pieces = self._special.split(text)
        if (count := pieces.count(self._image_mark)) != len(request.shown):
            raise ValueError(f"the chat template shows {count} of {len(request.shown)} images")
        for piece in filter(None, pieces):
            if piece != self._image_mark:
                ids += self._encode(piece)
                continue
            blocks.append(Block(tuple(ids), image, grid))
            image = next(upcoming).image
            grid = self.images.grid(image)
            ids = [self._image_token] * (grid[0] * grid[1])
        return (*blocks, Block(tuple(ids), image, grid))

    # ---- answers ----

    def _answer_all(self, requests: Mapping[int, Request]) -> Iterator[dict[int, Answer]]:
        prompts, failed = prompts_of(requests, self._prompt)
        if failed:
            yield failed
        # Prompts of one query stay together: they are the ones that begin alike.
        queries: dict[tuple[int, Path], list[int]] = {}
        for i in prompts:
            query = requests[i].query
            queries.setdefault((query.question_id, query.image), []).append(i)
        lengths = {i: sum(len(block.ids) for block in blocks) for i, blocks in prompts.items()}
        yield from self._within_memory(
            batches(queries.values(), lengths, self.settings.batch_tokens),
            lambda batch: self._answer_batch(
                {i: prompts[i] for i in batch}, {i: requests[i].references for i in batch}
            ),
        )

    @torch.inference_mode()
    def _answer_batch(
        self, prompts: Mapping[int, tuple[Block, ...]], references: Mapping[int, Sequence[str]]
    ) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        reader = KvReader(self.model, 1)
        for level in prefix_tree(prompts):
            reader = reader.taken(level.parents)
            hidden = self._read(reader, level.blocks)  # (R, L, d)
            if level.ends:
                nodes, keys = zip(*level.ends, strict=True)
                last = [len(level.blocks[node].ids) - 1 for node in nodes]
                logits = reader.logits(hidden[list(nodes), last])  # (E, V)
                ends = reader.taken(nodes) if level.inner else reader
                if not level.inner:
                    ends.select(torch.tensor(nodes, device=self.device))
                answered = self._answers(
                    ends, logits, [prompts[key] for key in keys], [references[key] for key in keys]
                )
                answers |= zip(keys, answered, strict=True)
            if level.inner:
                reader.select(torch.tensor(level.inner, device=self.device))
        return answers

    def _read(self, reader: KvReader, blocks: Sequence[Block]) -> Tensor:
        """Reads a block in each row, padded behind; the last hidden states (R, L, d)."""
        longest = max(len(block.ids) for block in blocks)
        ids = torch.full((len(blocks), longest), self._end)
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
            features = torch.cat(shown)
            embeds[(ids == self._image_token) & own] = features.to(self.device, embeds.dtype)
        return reader.read(embeds, positions, own, extents)

    def _answers(
        self,
        reader: KvReader,
        logits: Tensor,
        prompts: Sequence[tuple[Block, ...]],
        references: Sequence[Sequence[str]],
    ) -> list[Answer]:
        """Answers and scores of rows that were read to their end, whose next logits are (R, V)."""
        first = logits.log_softmax(-1)
        targets = [[(*self._encode(harmless(text)), self._end) for text in row] for row in references]
        scored = reader.score(targets, first)
        answers = decode(logits, self._seen(prompts, logits), reader, self.search)
        text_of = self.processor.tokenizer.decode
        return [
            Answer("", error=NOT_FINITE)
            if answer is None or not all(map(math.isfinite, score[0]))
            else Answer(text_of(answer, skip_special_tokens=True), *score)
            for answer, score in zip(answers, scored, strict=True)
        ]

    def _seen(self, prompts: Sequence[tuple[Block, ...]], logits: Tensor) -> Tensor | None:
        """The tokens that each prompt holds, as a mask like `logits` (R, V); None where nothing is penalised."""
        if self.search.repetition_penalty == 1:
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for r, blocks in enumerate(prompts):
            seen[r, [token for block in blocks for token in block.ids]] = True
        return seen.to(logits.device)


def _tried(make: Callable[[Sequence[Image.Image]], list[Any]], picture: Image.Image) -> Any:
    """What is made of one picture, or why nothing can be."""
    try:
        return make([picture])[0]
    except Exception as error:  # noqa: BLE001 - it is told with the image
        return error
