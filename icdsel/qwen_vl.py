"""Models of the Qwen2.5-VL family: an image is encoded once, a prompt is read once.

Rows are padded on the left with an explicit mask, and M-RoPE positions are computed here, so nothing is kept on
the model between calls.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icdsel.decoding import decode
from icdsel.feature_cache import Features
from icdsel.images import open_image
from icdsel.prompts import chat_messages, harmless
from icdsel.records import Answer
from icdsel.settings import VlmSettings
from icdsel.vlm import NOT_FINITE, Request, Vlm, batches


@dataclass(frozen=True)
class _Prompt:
    """Token ids (L), M-RoPE positions (3, L) and the images that fill its image tokens, in order."""

    ids: list[int]
    positions: np.ndarray
    images: tuple[Path, ...]


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
        self._merge: int = processor.image_processor.merge_size
        self._end: int = processor.tokenizer.eos_token_id
        # Byte-level BPE never merges across special tokens: the pieces between them can be encoded one by one.
        special = sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")

    # ---- images ----

    @torch.inference_mode()
    def _encode_images(self, paths: Sequence[Path]) -> list[Features]:
        pictures = [open_image(path, self.max_image_pixels) for path in paths]
        limits = {"shortest_edge": self.settings.min_pixels, "longest_edge": self.settings.max_pixels}
        size = dict(self.processor.image_processor.size) | {k: v for k, v in limits.items() if v}
        inputs = self.processor.image_processor(images=pictures, size=size, return_tensors="pt")
        grids = inputs["image_grid_thw"]  # (N, 3)
        pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
        features = self.model.model.visual(pixels, grid_thw=grids.to(self.device)).pooler_output  # (ΣT, d)
        shapes = [(h // self._merge, w // self._merge) for _, h, w in grids.tolist()]
        return list(zip(features.split([h * w for h, w in shapes]), shapes, strict=True))

    def _open(self, paths: Iterable[Path]) -> None:
        self.images.load(paths)

    # ---- prompts ----

    def _prompt(self, request: Request) -> _Prompt:
        text = self.processor.apply_chat_template(
            chat_messages(request.icds, request.query, self.style), tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = []
        runs: list[np.ndarray] = []  # positions, (3, n) each
        images = tuple(example.image for example in request.shown)
        upcoming, start = iter(images), 0
        for piece in filter(None, self._special.split(text)):
            if piece == self._image_mark:
                rows, columns = self.images.grid(next(upcoming))
                ids += [self._image_token] * (rows * columns)
                place = np.indices((rows, columns)).reshape(2, -1)  # (2, T)
                runs.append(start + np.concatenate([np.zeros_like(place[:1]), place]))
                start += max(rows, columns)
            else:
                tokens = self._encode(piece)
                ids += tokens
                runs.append(np.broadcast_to(np.arange(start, start + len(tokens)), (3, len(tokens))))
                start += len(tokens)
        return _Prompt(ids, np.concatenate(runs, axis=1), images)

    # ---- answers ----

    def _answer_all(self, requests: Mapping[int, Request]) -> Iterator[dict[int, Answer]]:
        prompts = {i: self._prompt(request) for i, request in requests.items()}
        for batch in batches({i: len(prompt.ids) for i, prompt in prompts.items()}, self.settings.batch_tokens):
            made = self._answer_batch([prompts[i] for i in batch], [requests[i].references for i in batch])
            yield dict(zip(batch, made, strict=True))

    @torch.inference_mode()
    def _answer_batch(self, prompts: Sequence[_Prompt], references: Sequence[Sequence[str]]) -> list[Answer]:
        # What all prompts begin with (system turn, start of the user's) is read once.
        header = _common_prefix([prompt.ids for prompt in prompts], self._image_token)
        count, length = len(prompts), max(len(prompt.ids) for prompt in prompts) - len(header)
        ids = torch.full((count, length), self._end)
        positions = torch.zeros(3, count, length, dtype=torch.long)
        own = torch.zeros(count, length, dtype=torch.bool)
        for b, prompt in enumerate(prompts):
            start = length + len(header) - len(prompt.ids)  # padded on the left
            ids[b, start:] = torch.tensor(prompt.ids[len(header) :])
            positions[:, b, start:] = torch.from_numpy(prompt.positions[:, len(header) :])
            own[b, start:] = True
        ids, positions, own = (x.to(self.device) for x in (ids, positions, own))
        embeds = self.model.get_input_embeddings()(ids)  # (B, L, d)
        features = torch.cat([self.images.features(path) for prompt in prompts for path in prompt.images])
        is_image = (ids == self._image_token) & own
        embeds[is_image] = features.to(self.device, embeds.dtype)
        visible = torch.cat([own.new_ones(count, len(header)), own], 1)  # (B, header + L)
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=visible.long(),
            past_key_values=self._read_header(header, count),
            use_cache=True,
        )
        cache = out.past_key_values
        logits = self.model.lm_head(out.last_hidden_state[:, -1]).float()  # (B, V)
        first = logits.log_softmax(-1)
        next_position = positions.amax((0, 2)) + 1  # (B,)
        # References are read after the prompt and beside each other; decoding goes on from the same cache and
        # does not see them.
        scored, hidden = self._score_references(references, first, cache, visible, next_position)
        reader = _Reader(self.model, cache, torch.cat([visible, hidden], 1), next_position)
        answers = decode(logits, self._seen(prompts, logits), reader, self.search)
        texts = [self.processor.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        finite = first.isfinite().any(-1).logical_and(~first.isnan().any(-1)).tolist()
        return [
            Answer(text, *score) if fine and all(map(math.isfinite, score[0])) else Answer("", error=NOT_FINITE)
            for text, score, fine in zip(texts, scored, finite, strict=True)
        ]

    def _seen(self, prompts: Sequence[_Prompt], logits: Tensor) -> Tensor | None:
        """The tokens that each prompt holds, as a mask like `logits` (B, V); None where nothing is penalised."""
        if self.search.repetition_penalty == 1:
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for b, prompt in enumerate(prompts):
            seen[b, prompt.ids] = True
        return seen.to(logits.device)

    def _read_header(self, header: Sequence[int], count: int) -> Any:
        """The KV cache of `header`, for `count` rows; None where there is no header."""
        if not header:
            return None
        ids = torch.tensor([header], device=self.device)
        positions = torch.arange(len(header), device=self.device).expand(3, 1, -1)
        embeds = self.model.get_input_embeddings()(ids)
        read = self.model.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=True)
        read.past_key_values.batch_repeat_interleave(count)
        return read.past_key_values

    def _score_references(
        self,
        references: Sequence[Sequence[str]],
        first: Tensor,
        cache: Any,
        visible: Tensor,
        next_position: Tensor,
    ) -> tuple[list[tuple[tuple[float, ...], tuple[int, ...]]], Tensor]:
        """Log-probs and lengths of each row's references, and the (all hidden) mask of what they left in `cache`.

        All references of a row are read in one pass: each sees the prompt and itself.
        """
        targets = [[(*self._encode(harmless(text)), self._end) for text in row] for row in references]
        width = max((sum(len(ref) - 1 for ref in row) for row in targets), default=0)
        count, device = len(targets), self.device
        if width == 0:
            score = first[:, self._end].tolist()  # every reference is empty: the turn ends at once
            empty = [((score[b],) * len(row), (1,) * len(row)) for b, row in enumerate(targets)]
            return empty, torch.zeros(count, 0, dtype=torch.bool, device=device)
        ids = torch.full((count, width), self._end)
        own = torch.eye(width, dtype=torch.bool).repeat(count, 1, 1)  # (B, M, M)
        offsets = torch.zeros(count, width, dtype=torch.long)
        for b, row in enumerate(targets):
            at = 0
            for ref in row:
                n = len(ref) - 1  # the end is predicted, never read
                ids[b, at : at + n] = torch.tensor(ref[:-1])
                own[b, at : at + n, at : at + n] = torch.ones(n, n, dtype=torch.bool).tril()
                offsets[b, at : at + n] = torch.arange(n)
                at += n
        mask = torch.cat([visible[:, None].expand(-1, width, -1), own.to(device)], 2)[:, None]  # (B, 1, M, L+M)
        position = (next_position[:, None] + offsets.to(device)).expand(3, -1, -1)
        hidden = self.model.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(ids.to(device)),
            position_ids=position,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (B, M, d)
        # Gather only what is asked: token k of a reference is predicted one place before it.
        rows: list[int] = []
        columns: list[int] = []
        wanted: list[int] = []
        for b, row in enumerate(targets):
            at = 0
            for ref in row:
                rows += [b] * (len(ref) - 1)
                columns += range(at, at + len(ref) - 1)
                wanted += ref[1:]
                at += len(ref) - 1
        log_probs = self.model.lm_head(hidden[rows, columns]).float().log_softmax(-1)
        later = log_probs.gather(1, torch.tensor(wanted, device=device)[:, None])
        owner = [b for b, row in enumerate(targets) for _ in row]
        start = first[owner, [ref[0] for row in targets for ref in row]].tolist()
        rest = iter(later[:, 0].tolist())
        begun = iter(start)
        scored = [
            (tuple(next(begun) + sum(islice(rest, len(ref) - 1)) for ref in row), tuple(map(len, row)))
            for row in targets
        ]
        return scored, torch.zeros(count, width, dtype=torch.bool, device=device)


class _Reader:
    """Reads on after the prompts, row by row, from the model's KV cache."""

    def __init__(self, model: Any, cache: Any, visible: Tensor, position: Tensor) -> None:
        self._model, self._cache = model, cache
        self._visible, self._position = visible, position  # (R, L) bool, (R,)

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._visible, self._position = self._visible[rows], self._position[rows]

    def step(self, tokens: Tensor) -> Tensor:
        self._visible = torch.cat([self._visible, self._visible.new_ones(len(tokens), 1)], 1)
        hidden = self._model.model.language_model(
            inputs_embeds=self._model.get_input_embeddings()(tokens[:, None]),
            position_ids=self._position[None, :, None].expand(3, -1, -1),
            attention_mask=self._visible[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state  # (R, 1, d)
        self._position = self._position + 1
        logits: Tensor = self._model.lm_head(hidden[:, -1]).float()
        return logits


def _common_prefix(rows: Sequence[Sequence[int]], image_token: int) -> list[int]:
    """What all rows begin with, up to the first image and without anyone's last token."""
    shortest = min(rows, key=len)[:-1]
    for i, token in enumerate(shortest):
        if token == image_token or any(row[i] != token for row in rows):
            return list(shortest[:i])
    return list(shortest)
