"""A vision-language model: prompts in, answers and log-probs of reference answers out.

For any batch, order or cache state the answers are those of one prompt at a time. Models of the Qwen2.5-VL family
are read by `icdsel.vlm.qwen_vl`, which encodes an image once and reads a prompt once; all others that transformers
can load by `icdsel.vlm.any_vlm`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from icdsel.console import warn
from icdsel.errors import CallsError, VlmError
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.decoding import Search
from icdsel.vlm.feature_cache import FeatureCache, Features, Spill
from icdsel.vlm.pretrained import reason_of
from icdsel.vlm.prompts import PromptStyle
from icdsel.vlm.time_limit import GIVEN_UP, time_limit

NOT_FINITE = "the model's logits are not finite"
HANGS = 3  # calls in a row that take too long: it is not what they were given
_Prompt = TypeVar("_Prompt")
FEW = 32  # calls: of fewer, as many may fail as of so many


@dataclass(frozen=True)
class Request:
    """One prompt: ICDs in order, the query, and the reference answers whose log-probs are wanted."""

    icds: tuple[Example, ...]
    query: Example
    references: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Example, ...]:
        """What the prompt shows, in order: the ICDs, then the query."""
        return (*self.icds, self.query)


class Vlm(ABC):
    """A model and its processor, and how it is asked.

    Attributes:
        name: What the user calls the model.
        fingerprint: Of its weights and of how it reads prompts.
        images: Visual features of images already seen, and the images that cannot be read.
    """

    chunk: int
    """Requests whose images are held at once."""
    images_at_once: int
    """Images that the vision tower reads at once."""

    def __init__(
        self, model: Any, processor: Any, settings: VlmSettings, name: str, fingerprint: str, max_image_pixels: int
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.name, self.fingerprint, self.max_image_pixels = name, fingerprint, max_image_pixels
        self.device = next(model.parameters()).device
        self.style = PromptStyle(
            settings.system_prompt, settings.icd_template, settings.query_template, settings.layout
        )
        self.images = FeatureCache(
            self._prepare_images,
            self._encode_in_time,
            settings.image_cache_mb * 2**20,
            self.images_at_once,
            self._spill(),
        )
        self._asked = 0
        self._hung = 0  # calls in a row
        self._failures: list[str] = []
        self._fits: int | None = None  # prompts that are tried at once, after the memory did not suffice for more
        eos = model.generation_config.eos_token_id
        self._stops = {*(eos if isinstance(eos, list) else [eos]), processor.tokenizer.eos_token_id} - {None}
        if not all(type(stop) is int and stop >= 0 for stop in self._stops):
            raise ValueError(f"its end of an answer (eos_token_id) is {eos!r}, no token's number")
        # Text between special tokens recurs in thousands of prompts.
        self._encode = lru_cache(65_536)(
            lambda piece: tuple(processor.tokenizer.encode(piece, add_special_tokens=False))
        )

    @property
    def dtype(self) -> str:
        """Arithmetic of the model: "float32" or "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def search(self) -> Search:
        """How answers are searched."""
        penalty = self.settings.repetition_penalty
        if penalty == "model":
            penalty = self.model.generation_config.repetition_penalty or 1.0
        return Search(
            self.settings.num_beams,
            self.settings.length_penalty,
            float(penalty),
            self.settings.max_new_tokens,
            tuple(sorted(self._stops)),
        )

    def _spill(self) -> Spill | None:
        """Where visual features go that memory has no room for."""
        folder, settings = self.settings.image_cache_dir, self.settings
        if folder is None:
            return None
        name = f"{self.fingerprint}-{self.dtype}-{settings.min_pixels}-{settings.max_pixels}-{self.max_image_pixels}"
        return Spill(folder, settings.image_cache_disk_mb * 2**20, name)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Interrupts a call of the model that takes too long.

        Raises:
            TimeoutError: it did.
            CallsError: so did those before it.
        """
        try:
            with time_limit(self.settings.call_timeout):
                yield
        except TimeoutError as error:
            self._hung += 1
            if self._hung == HANGS:
                raise CallsError(f"{error}, {HANGS} times in a row. {GIVEN_UP}") from None
            raise
        self._hung = 0

    def _encode_in_time(self, prepared: Sequence[Any]) -> list[Features]:
        with self._in_time():
            return self._encode_images(prepared)

    def _within_memory(
        self, batches: Iterable[list[int]], answer: Callable[[list[int]], dict[int, Answer]]
    ) -> Iterator[dict[int, Answer]]:
        """The answers of batches; one that fails is halved, and for want of memory later ones are too.

        A prompt that fails alone has failed. Of a batch that takes too long each prompt is tried alone, until one of
        them takes too long again: what is left of it has failed as well, and is asked once more by itself.

        Raises:
            CallsError: batch after batch takes too long.
        """
        self._hung = 0  # prompts that are asked once more do not stop the run
        for whole in batches:
            most = self._fits or len(whole)
            parts = deque(whole[at : at + most] for at in range(0, len(whole), most))
            while parts:
                batch = parts.popleft()
                try:
                    with self._in_time():
                        answers = answer(batch)
                except CallsError:
                    raise
                except TimeoutError as error:
                    parted, reason = 1, reason_of(error)  # halves would be waited for again and again
                    if len(batch) > 1:  # their scores' last digits may be others than in company
                        warn(f"{reason} for {len(batch)} prompts together: each is asked alone")
                    if len(batch) == 1 and parts:  # the others of its batch have their turn alone, later
                        yield {i: Answer("", error=reason) for part in parts for i in part}
                        parts.clear()
                except (torch.OutOfMemoryError, MemoryError) as error:
                    parted, reason = len(batch) // 2, f"out of memory for a single prompt: {reason_of(error)}"
                    self._fits = parted or self._fits
                except Exception as error:  # noqa: BLE001 - what a model raises differs; too many stop the run
                    parted, reason = len(batch) // 2, f"{type(error).__name__}: {reason_of(error)}"
                else:
                    yield answers
                    continue
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()  # after the exception is gone: it held the batch's tensors
                if len(batch) == 1:
                    yield {batch[0]: Answer("", error=reason)}
                else:
                    parts.extendleft(reversed([batch[at : at + parted] for at in range(0, len(batch), parted)]))

    def answer(
        self, requests: Sequence[Request], on_answers: Callable[[Mapping[int, Answer]], None] | None = None
    ) -> list[Answer]:
        """Answer every request and score its references; a request that fails twice carries its error.

        `on_answers` is called with answers as they come, by their place in `requests`.

        Raises:
            CallsError: of all calls so far more failed than `max_failed` allows.
        """
        answers: dict[int, Answer] = {}
        for at in range(0, len(requests), self.chunk):
            for made in self._answer_chunk(requests, at):
                answers |= made
                if on_answers:
                    on_answers(made)
            self._stop_if_too_many_failed()
        return [answers[i] for i in range(len(requests))]

    def _answer_chunk(self, requests: Sequence[Request], at: int) -> Iterator[dict[int, Answer]]:
        """The answers of the chunk that begins at `at`, by their place in `requests`."""
        chunk, upcoming = (requests[start : start + self.chunk] for start in (at, at + self.chunk))
        failed: dict[int, Answer] = {}
        fine: dict[int, Request] = {}
        self._open(_images(chunk), _images(upcoming))
        for i, request in enumerate(chunk, at):
            broken = [example.image for example in request.shown if example.image in self.images.broken]
            if broken:
                failed[i] = Answer("", error=self.images.broken[broken[0]])
            else:
                fine[i] = request
        if failed:
            self._failures += [answer.error or "" for answer in failed.values()]
            yield failed
        again: list[int] = []
        for made in self._answer_all(fine):
            again += [i for i, answer in made.items() if answer.error is not None]
            yield {i: answer for i, answer in made.items() if answer.error is None}
        for i in again:  # alone: it may have been the company, or have passed
            for made in self._answer_all({i: fine[i]}):
                self._failures += [answer.error for answer in made.values() if answer.error is not None]
                yield made
        self._asked += len(chunk)

    def _stop_if_too_many_failed(self) -> None:
        failed, most = len(self._failures), self.settings.max_failed
        if failed > most * max(self._asked, FEW):
            raise CallsError(
                f"{failed} of {self._asked} VLM calls failed, more than --max-failed {most:g} allows; the last: "
                f"{self._failures[-1]}. What was finished is kept: give the same command again when this is mended."
            )

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> Tensor:
        """Mean visual token of each image, float32 (N, d).

        Raises:
            VlmError: an image cannot be read.
        """
        self.images.load(paths)
        broken = [path for path in paths if path in self.images.broken]
        if broken:
            raise VlmError(f"{len(broken)} images cannot be read. The first: {self.images.broken[broken[0]]}")
        return torch.stack([self.images.features(path).float().mean(0).cpu() for path in paths])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Mean input embedding of each text's tokens, float32 (N, d)."""
        table = self.model.get_input_embeddings().weight
        nothing = min(self._stops)  # what stands for a text without tokens
        distinct = {text: table[list(self._encode(text) or [nothing])].float().mean(0).cpu() for text in set(texts)}
        return torch.stack([distinct[text] for text in texts])

    @abstractmethod
    def _prepare_images(self, paths: Sequence[Path]) -> list[Any]:
        """Images as the vision tower takes them; OSError or ValueError in the place of one that cannot be read."""

    @abstractmethod
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        """Visual tokens of prepared images."""

    @abstractmethod
    def _open(self, paths: Iterable[Path], upcoming: Iterable[Path]) -> None:
        """Hold what `_answer_all` needs of these images; those that cannot be read go into `images.broken`.

        The `upcoming` ones are asked for next.
        """

    @abstractmethod
    def _answer_all(self, requests: Mapping[int, Request]) -> Iterator[dict[int, Answer]]:
        """The answers, by the requests' keys, a batch at a time; all images can be read and are held."""


def _images(requests: Sequence[Request]) -> list[Path]:
    return list(dict.fromkeys(example.image for request in requests for example in request.shown))


def prompts_of(
    requests: Mapping[int, Request], make: Callable[[Request], _Prompt]
) -> tuple[dict[int, _Prompt], dict[int, Answer]]:
    """The prompts of requests, and the answers of those whose prompt cannot be made: failures with their reasons."""
    prompts: dict[int, _Prompt] = {}
    failed: dict[int, Answer] = {}
    for i, request in requests.items():
        try:
            prompts[i] = make(request)
        except Exception as error:  # noqa: BLE001 - what a template raises differs; too many stop the run
            failed[i] = Answer("", error=f"{type(error).__name__}: {reason_of(error)}")
    return prompts, failed


def batches(groups: Iterable[Sequence[int]], lengths: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """Keys in batches of similar length whose padded size stays within `budget` tokens, the longest first.

    A group stays together where the budget lets it.
    """
    batch: list[int] = []
    longest = 0
    for most, group in sorted(((max(lengths[key] for key in group), group) for group in groups), reverse=True):
        fits = max(1, budget // most)
        for part in (group[at : at + fits] for at in range(0, len(group), fits)):
            if batch and longest * (len(batch) + len(part)) > budget:
                yield batch
                batch = []
            longest = longest if batch else most
            batch += part
    if batch:
        yield batch
