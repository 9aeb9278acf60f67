"""A vision-language model of the Qwen2.5-VL family through transformers: prompts in, answers and log-probs out.

For any batch, order or cache state the answers are those of one prompt at a time: rows are padded on the left
with an explicit mask, and M-RoPE positions are computed here, so nothing is kept on the model between calls.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from icdsel.errors import VlmError
from icdsel.prompts import PromptStyle, chat_messages, harmless
from icdsel.records import Answer, Example
from icdsel.settings import TINY_VLM, VlmSettings

TINY_VLM_DIR = Path(__file__).parent / "demo" / "tiny_vlm"
CHUNK = 512  # requests whose images are held at once, whatever the cache's budget
SUPPORTED_MODEL_TYPES = ("qwen2_5_vl",)


@dataclass(frozen=True)
class Request:
    """One prompt: ICDs in order, the query, and the reference answers whose log-probs are wanted."""

    icds: tuple[Example, ...]
    query: Example
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Prompt:
    """Token ids (L), M-RoPE positions (3, L) and the images that fill its image tokens, in order."""

    ids: list[int]
    positions: np.ndarray
    images: tuple[Path, ...]


class Vlm:
    """The model, its processor and a bounded cache of visual features."""

    def __init__(self, model: Any, processor: Any, settings: VlmSettings, name: str, fingerprint: str) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.name, self.fingerprint = name, fingerprint
        self.device = next(model.parameters()).device
        self.style = PromptStyle(
            settings.system_prompt, settings.icd_template, settings.query_template, settings.layout
        )
        self.images = FeatureCache(self._encode_images, settings.image_cache_mb * 2**20)
        self._image_token: int = model.config.image_token_id
        self._image_mark: str = processor.image_token
        self._merge: int = processor.image_processor.merge_size
        self._end: int = processor.tokenizer.eos_token_id
        eos = model.generation_config.eos_token_id
        self._stops = {self._end, *(eos if isinstance(eos, list) else [eos] if eos is not None else [])}
        special = sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        # Text between special tokens recurs in thousands of prompts; byte-level BPE never merges across them.
        self._encode = lru_cache(65_536)(
            lambda piece: tuple(processor.tokenizer.encode(piece, add_special_tokens=False))
        )

    # ---- images ----

    @torch.inference_mode()
    def _encode_images(self, paths: Sequence[Path]) -> list[tuple[Tensor, tuple[int, int]]]:
        """Visual tokens (T, d) of each image and their grid (rows, columns)."""
        pictures = []
        for path in paths:
            with Image.open(path) as image:
                pictures.append(image.convert("RGB"))
        limits = {"shortest_edge": self.settings.min_pixels, "longest_edge": self.settings.max_pixels}
        size = dict(self.processor.image_processor.size) | {k: v for k, v in limits.items() if v}
        inputs = self.processor.image_processor(images=pictures, size=size, return_tensors="pt")
        grids = inputs["image_grid_thw"]  # (N, 3)
        pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
        features = self.model.model.visual(pixels, grid_thw=grids.to(self.device)).pooler_output  # (ΣT, d)
        shapes = [(h // self._merge, w // self._merge) for _, h, w in grids.tolist()]
        return list(zip(features.split([h * w for h, w in shapes]), shapes, strict=True))

    # ---- prompts ----

    def _prompt(self, request: Request) -> _Prompt:
        shown = (*request.icds, request.query)
        text = self.processor.apply_chat_template(
            chat_messages(request.icds, request.query, self.style), tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = []
        runs: list[np.ndarray] = []  # positions, (3, n) each
        images = tuple(example.image for example in shown)
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

    def answer(self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None) -> list[Answer]:
        """Answers every request greedily and scores its references; a request that fails carries its error.

        `on_done(k)` is called when k more requests are done.
        """
        answers: list[Answer] = []
        for at in range(0, len(requests), CHUNK):
            answers += self._answer_chunk(requests[at : at + CHUNK], on_done)
        return answers

    def _answer_chunk(self, requests: Sequence[Request], on_done: Callable[[int], None] | None) -> list[Answer]:
        answers: dict[int, Answer] = {}
        prompts: dict[int, _Prompt] = {}
        self.images.load(example.image for r in requests for example in (*r.icds, r.query))
        for i, request in enumerate(requests):
            broken = [e.image for e in (*request.icds, request.query) if e.image in self.images.broken]
            if broken:
                answers[i] = Answer("", error=f"{broken[0]}: {self.images.broken[broken[0]]}")
            else:
                prompts[i] = self._prompt(request)
        if on_done:
            on_done(len(answers))
        for batch in _batches({i: len(p.ids) for i, p in prompts.items()}, self.settings.batch_tokens):
            made = self._answer_batch([prompts[i] for i in batch], [requests[i].references for i in batch])
            answers |= zip(batch, made, strict=True)
            if on_done:
                on_done(len(batch))
        return [answers[i] for i in range(len(requests))]

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
        first = self._log_probs(out.last_hidden_state[:, -1])  # (B, V)
        next_position = positions.amax((0, 2)) + 1  # (B,)
        # References are read after the prompt and beside each other; decoding goes on from the same cache and
        # does not see them.
        scored, hidden = self._score_references(references, first, cache, visible, next_position)
        seen = torch.cat([visible, hidden], 1)
        texts = self._decode(first.argmax(-1), cache, seen, next_position)
        finite = first.isfinite().any(-1).logical_and(~first.isnan().any(-1)).tolist()
        return [
            Answer(text, *score) if fine else Answer("", error="the model's logits are not finite")
            for text, score, fine in zip(texts, scored, finite, strict=True)
        ]

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

    def _log_probs(self, hidden: Tensor) -> Tensor:
        log_probs: Tensor = self.model.lm_head(hidden).float().log_softmax(-1)
        return log_probs

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
        later = self._log_probs(hidden[rows, columns]).gather(1, torch.tensor(wanted, device=device)[:, None])
        owner = [b for b, row in enumerate(targets) for _ in row]
        start = first[owner, [ref[0] for row in targets for ref in row]].tolist()
        rest = iter(later[:, 0].tolist())
        begun = iter(start)
        scored = [
            (tuple(next(begun) + sum(islice(rest, len(ref) - 1)) for ref in row), tuple(map(len, row)))
            for row in targets
        ]
        return scored, torch.zeros(count, width, dtype=torch.bool, device=device)

    def _decode(self, token: Tensor, cache: Any, visible: Tensor, next_position: Tensor) -> list[str]:
        """Greedy answers that begin with `token` (B,), at most `max_new_tokens` long."""
        stops = torch.tensor(sorted(self._stops), device=self.device)
        taken = [token]
        ended = torch.isin(token, stops)
        for step in range(self.settings.max_new_tokens - 1):
            if bool(ended.all()):
                break
            visible = torch.cat([visible, visible.new_ones(len(token), 1)], 1)
            hidden = self.model.model.language_model(
                inputs_embeds=self.model.get_input_embeddings()(token[:, None]),
                position_ids=(next_position + step)[None, :, None].expand(3, -1, -1),
                attention_mask=visible[:, None, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            token = self.model.lm_head(hidden[:, -1]).argmax(-1)
            token = token.masked_fill(ended, self._end)
            ended |= torch.isin(token, stops)
            taken.append(token)
        rows = torch.stack(taken, 1).tolist()
        return [self.processor.tokenizer.decode(_until(row, self._stops), skip_special_tokens=True) for row in rows]

    # ---- embeddings ----

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> Tensor:
        """Mean visual token of each image, float32 (N, d)."""
        self.images.load(paths)
        broken = [path for path in paths if path in self.images.broken]
        if broken:
            reason = self.images.broken[broken[0]]
            raise VlmError(f"{len(broken)} images cannot be read, first {broken[0]}: {reason}")
        return torch.stack([self.images.features(path).float().mean(0).cpu() for path in paths])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Mean input embedding of each text's tokens, float32 (N, d)."""
        table = self.model.get_input_embeddings().weight
        distinct = {text: table[list(self._encode(text) or [self._end])].float().mean(0).cpu() for text in set(texts)}
        return torch.stack([distinct[text] for text in texts])


class FeatureCache:
    """Visual features by image, least recently used first out when the memory is full."""

    def __init__(
        self,
        encode: Callable[[Sequence[Path]], list[tuple[Tensor, tuple[int, int]]]],
        budget_bytes: int,
        batch: int = 64,
    ) -> None:
        self._encode, self._budget, self._batch = encode, budget_bytes, batch
        self._kept: OrderedDict[Path, Tensor] = OrderedDict()
        self._grids: dict[Path, tuple[int, int]] = {}
        self._size = 0
        self.broken: dict[Path, str] = {}
        self.encoded = 0
        """Images that went through the vision tower, again-encoded ones included."""
        self.encoded_again = 0

    def load(self, paths: Iterable[Path]) -> None:
        """Makes sure that the features of `paths` are there; images that cannot be read go into `broken`."""
        wanted = [path for path in dict.fromkeys(paths) if path not in self.broken]
        for path in wanted:
            if path in self._kept:
                self._kept.move_to_end(path)
        missing = [path for path in wanted if path not in self._kept]
        for at in range(0, len(missing), self._batch):
            for path, (features, grid) in self._encode_each(missing[at : at + self._batch]):
                self.encoded_again += path in self._grids
                self.encoded += 1
                self._kept[path], self._grids[path] = features.clone(), grid
                self._size += features.nbytes
        needed = set(wanted)
        for path in list(self._kept):
            if self._size <= self._budget:
                break
            if path not in needed:
                self._size -= self._kept.pop(path).nbytes

    def _encode_each(self, paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[Tensor, tuple[int, int]]]]:
        try:
            yield from zip(paths, self._encode(paths), strict=True)
        except (OSError, ValueError) as error:  # unreadable or malformed images: find which
            if len(paths) == 1:
                self.broken[paths[0]] = str(error) or type(error).__name__
                return
            for path in paths:
                yield from self._encode_each([path])

    def features(self, path: Path) -> Tensor:
        """Visual tokens (T, d) of an image that was loaded."""
        return self._kept[path]

    def grid(self, path: Path) -> tuple[int, int]:
        """Rows and columns of an image's visual tokens."""
        return self._grids[path]


def _batches(lengths: dict[int, int], budget: int) -> Iterator[list[int]]:
    """Keys of `lengths` in batches of similar length whose padded size stays within `budget` tokens."""
    batch: list[int] = []
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def _common_prefix(rows: Sequence[Sequence[int]], image_token: int) -> list[int]:
    """What all rows begin with, up to the first image and without anyone's last token."""
    shortest = min(rows, key=len)[:-1]
    for i, token in enumerate(shortest):
        if token == image_token or any(row[i] != token for row in rows):
            return list(shortest[:i])
    return list(shortest)


def _until(tokens: Sequence[int], stops: set[int]) -> list[int]:
    cut = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:cut])


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        VlmError: an unknown device, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise VlmError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise VlmError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs found): use --device cpu")
    return device


def _fingerprint(folder: Path) -> str:
    """Of every file that says how to read a prompt, and of the weights: their size, first and last megabyte."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}:".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(0, size - 2**20))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def load_vlm(settings: VlmSettings) -> Vlm:
    """Loads the model that `settings.model` names: the tiny VLM, a folder, or a name on the Hugging Face hub.

    Raises:
        VlmError: the model is not there, or of a family that is not supported.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = settings.model or TINY_VLM
    source = str(TINY_VLM_DIR) if name == TINY_VLM else name
    device = resolve_device(settings.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        settings.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in SUPPORTED_MODEL_TYPES:
            raise VlmError(
                f"{name} is a {config.model_type}; supported families: {', '.join(SUPPORTED_MODEL_TYPES)}. "
                f"Try --model qwen2.5-vl-3b, or --model {TINY_VLM}"
            )
        processor = AutoProcessor.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VlmError(
            f"cannot load the model {name!r}: {reason} "
            f"Give a folder (--model /path/to/model), a Hugging Face name that this machine can reach, "
            f"or --model {TINY_VLM} (bundled)."
        ) from None
    folder = Path(source)
    revision = _fingerprint(folder) if folder.is_dir() else str(getattr(config, "_commit_hash", None) or name)
    return Vlm(model.to(device).eval(), processor, settings, name, revision)
