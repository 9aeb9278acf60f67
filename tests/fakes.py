"""An engine for tests: it answers by a function of the request, fails on demand, and needs no model; and a session."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from icdsel.data.images import ImageError, open_image
from icdsel.records import Answer
from icdsel.settings.loading import load_settings
from icdsel.stages.in_order import in_order
from icdsel.stages.scorers import scorer_of
from icdsel.vlm.engine import Engine, Request
from icdsel.vlm.engines import EngineKind

WIDTH = 48
FAKE_TOKENS = 10
"""Tokens of each example in a prompt."""
Fault = Callable[[Sequence[Request]], None]
"""Called with the requests of each call before they are answered; it may raise or sleep."""


def copied_answer(request: Request) -> str:
    """The answer of the last ICD with the query's question, else of the last ICD, else "unknown"."""
    answers = [icd.answer for icd in request.icds if icd.question == request.query.question]
    return (answers or [icd.answer for icd in request.icds] or ["unknown"])[-1]


class FakeEngine(Engine):
    """Answers requests without a model.

    Args:
        name: The model's name.
        answer_of: Gives the text of an answer, or the whole answer.
        fault: Makes calls fail.
        chunk: Requests that are planned together.
        batch: Requests that are answered together.

    Attributes:
        calls: The requests of every call of `answer`.
        releases: How often memory was released.
    """

    dtype, device = "float32", "cpu"
    can_score_references = can_embed = True

    def __init__(
        self,
        name: str = "fake-model",
        answer_of: Callable[[Request], str | Answer] = copied_answer,
        fault: Fault = lambda requests: None,
        chunk: int = 64,
        batch: int = 16,
    ) -> None:
        self.name, self.fingerprint, self.chunk = name, f"fake-{name}", chunk
        self._answer_of, self._fault, self._batch = answer_of, fault, batch
        self.calls: list[list[Request]] = []
        self.releases = 0

    def batches(self, requests: Sequence[Request], upcoming: Sequence[Request] = ()) -> Iterable[Sequence[int]]:
        """Batches in reverse order, since no order may matter."""
        positions = range(len(requests) - 1, -1, -1)
        return [positions[at : at + self._batch] for at in range(0, len(requests), self._batch)]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers each request by itself; the answer's own text is the most probable reference."""
        self.calls.append(list(requests))
        self._fault(requests)
        return [self.alone(request) for request in requests]

    def alone(self, request: Request) -> Answer:
        """The answer to one request if nothing fails."""
        answer = self._answer_of(request)
        if isinstance(answer, Answer):
            return answer
        lengths = tuple(len(reference.split()) + 1 for reference in request.references)
        log_probs = tuple(
            -0.1 * length if reference == answer else -2.0 * length
            for reference, length in zip(request.references, lengths, strict=True)
        )
        return Answer(answer, log_probs, lengths, prompt_tokens=FAKE_TOKENS * len(request.shown))

    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """The colours of each image at 4×4 pixels, (N, 48)."""
        features, failed = torch.zeros(len(paths), WIDTH), {}
        for i, path in enumerate(paths):
            try:
                features[i] = torch.tensor(list(open_image(path, 10**6).resize((4, 4)).tobytes())) / 255
            except ImageError as error:
                failed[i] = str(error)
        return features, failed

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """The bytes of each text's hash, (N, 48)."""
        digests = [hashlib.sha384(text.encode()).digest() for text in texts]
        return torch.tensor([list(digest) for digest in digests]) / 255

    def release_memory(self) -> None:
        """Counts the calls."""
        self.releases += 1


def fake_kind(engine: Callable[[str], FakeEngine] = FakeEngine, name: str = "fake") -> EngineKind:
    """An entry of `ENGINES` that opens a fake; `engine` is called with the model's name."""
    return EngineKind(name, lambda settings, max_image_pixels, timer: engine(str(settings.model)))


def raises(error: Callable[[], Exception], when: Callable[[Request], bool]) -> Fault:
    """A call with such a request raises."""

    def fault(requests: Sequence[Request]) -> None:
        if any(map(when, requests)):
            raise error()

    return fault


def hangs(when: Callable[[Request], bool]) -> Fault:
    """A call with such a request takes a minute."""

    def fault(requests: Sequence[Request]) -> None:
        if any(map(when, requests)):
            time.sleep(60)

    return fault


def fits(most: int) -> Fault:
    """A call with more requests lacks memory."""

    def fault(requests: Sequence[Request]) -> None:
        if len(requests) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    return fault


def fake_session(train: Any, vlm: Any, **given: Any) -> Any:
    """A session that holds a training split, a VLM and settings, and opens nothing; its splits need no preparation."""
    settings = load_settings(given)
    parts = {"train": train, "vlm": vlm, "answers": None, "lock": Lock(), "in_order": in_order, "settings": settings}
    return SimpleNamespace(**parts, scorer=lambda split: scorer_of(settings))
