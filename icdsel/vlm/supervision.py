"""Supervision of an engine's calls: retries, smaller batches, timeouts, and the limit of failed calls.

It is the same for every engine, and the only place that handles failed calls. A failed call is recorded as failed, with
the reason; it never counts as a wrong answer. How many have failed is counted in `icdsel.vlm.call_count`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from icdsel.console import warn
from icdsel.errors import UserError, lacks_memory, reason_of
from icdsel.records import Answer
from icdsel.vlm.call_count import CallCount, OnAnswers
from icdsel.vlm.engine import Engine, Request
from icdsel.vlm.time_limit import CallTimer

if TYPE_CHECKING:
    from torch import Tensor


class SupervisedEngine(Engine):
    """Wraps an engine whose calls may fail.

    `answer` may be called in as many threads at the same time as the engine allows (`at_once`).

    Args:
        engine: The engine, also available as an attribute.
        timer: Limits the time of calls.
        max_failed: The share of requests that may fail; if it is exceeded, the run stops.

    Attributes:
        calls: The calls so far.
    """

    def __init__(self, engine: Engine, timer: CallTimer, max_failed: float) -> None:
        self.engine, self._timer, self.calls = engine, timer, CallCount(max_failed)
        self.name, self.fingerprint = engine.name, engine.fingerprint
        self.dtype, self.device, self.chunk, self.at_once = engine.dtype, engine.device, engine.chunk, engine.at_once
        self.can_score_references, self.can_embed = engine.can_score_references, engine.can_embed
        self.why_no_references = engine.why_no_references
        self._most_at_once: int | None = None  # maximum batch size, set after memory was insufficient

    def answer(self, requests: Sequence[Request], on_answers: OnAnswers | None = None) -> list[Answer]:
        """Answers every request; the answer to one that fails twice has an error.

        Args:
            requests: The requests.
            on_answers: Called with new answers, by their position in `requests`, as soon as they are available.

        Raises:
            CallsError: More requests have failed so far than `max_failed` allows, or the device hangs.
        """
        answers: dict[int, Answer] = {}
        for start in range(0, len(requests), self.chunk):
            for new in self._answer_chunk(requests, start):
                answers |= new
                self.calls.add(requests, new)
                if on_answers:
                    on_answers(new)
            self.calls.check()
        return [answers[i] for i in range(len(requests))]

    def _answer_chunk(self, requests: Sequence[Request], start: int) -> Iterator[dict[int, Answer]]:
        """Yields the answers to the chunk that begins at `start`, by their position in `requests`."""
        chunk, upcoming = (requests[at : at + self.chunk] for at in (start, start + self.chunk))
        failed: list[int] = []
        for new in self._answer_batches(chunk, list(self.engine.batches(chunk, upcoming))):
            if self.engine.retries_itself:
                yield {start + i: answer for i, answer in new.items()}
                continue
            failed += [i for i, answer in new.items() if answer.error is not None]
            yield {start + i: answer for i, answer in new.items() if answer.error is None}
        for i in failed:  # retried alone: the cause may be another request of the batch, or temporary
            for new in self._answer_batches(chunk, [[i]]):
                yield {start + i: answer for i, answer in new.items()}

    def _answer_batches(
        self, chunk: Sequence[Request], batches: Iterable[Sequence[int]]
    ) -> Iterator[dict[int, Answer]]:
        """Yields the answers to batches, by their position in `chunk`; a batch that fails is split.

        It is split into halves. If memory is insufficient, later batches are smaller too. After a timeout each request
        is tried alone, since waiting for both halves and their halves would take long; once another request times out,
        the rest of the batch counts as failed, and the caller retries each of its requests alone.

        Raises:
            CallsError: Several batches in a row time out.
        """
        self._timer.reset()  # timeouts of single requests that are retried do not stop the run
        for batch in batches:
            at_once = self._most_at_once or len(batch)
            parts = deque(list(batch[at : at + at_once]) for at in range(0, len(batch), at_once))
            while parts:
                part = parts.popleft()
                try:
                    with nullcontext() if self.engine.retries_itself else self._timer.call():
                        answers = self.engine.answer([chunk[i] for i in part])
                except UserError:  # not caused by a request
                    raise
                except TimeoutError as error:
                    size, reason = 1, reason_of(error)
                    if len(part) > 1:  # worth a warning: the last digits of scores may depend on the batch
                        warn(f"{reason} for {len(part)} prompts together: retrying them one by one")
                    elif parts:
                        yield {i: Answer("", error=reason) for left in parts for i in left}
                        parts.clear()
                except Exception as error:  # noqa: BLE001 - models raise any error; too many stop the run
                    size = len(part) // 2
                    if lacks_memory(error):
                        reason = f"out of memory for a single prompt: {reason_of(error)}"
                        self._most_at_once = size or self._most_at_once
                    else:
                        reason = f"{type(error).__name__}: {reason_of(error)}"
                else:
                    yield dict(zip(part, answers, strict=True))
                    continue
                self.engine.release_memory()  # only now: the exception kept the batch's tensors alive
                if len(part) == 1:
                    yield {part[0]: Answer("", error=reason)}
                else:
                    parts.extendleft(reversed([part[at : at + size] for at in range(0, len(part), size)]))

    def batches(self, requests: Sequence[Request], upcoming: Sequence[Request] = ()) -> Iterable[Sequence[int]]:
        """Calls the engine's own method."""
        return self.engine.batches(requests, upcoming)

    def embed_images(self, paths: Sequence[Path]) -> "tuple[Tensor, dict[int, str]]":
        """Calls the engine's own method, which limits the time of its calls itself."""
        return self.engine.embed_images(paths)

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Calls the engine's own method."""
        return self.engine.embed_texts(texts)

    def release_memory(self) -> None:
        """Returns unused memory to the device."""
        self.engine.release_memory()

    def advice(self) -> str | None:
        """How the user could speed up work like this; None if there is no advice."""
        return self.engine.advice()

    def recognise(self, folder: Path) -> None:
        """Calls the engine's own method, which may change the fingerprint."""
        before = self.engine.fingerprint
        self.engine.recognise(folder)
        if self.engine.fingerprint != before:
            self.fingerprint = self.engine.fingerprint

    def close(self) -> None:
        """Calls the engine's own method."""
        self.engine.close()
