"""Counts the calls of a VLM, and stops the run if too many have failed."""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from threading import Lock

from icdsel.errors import CallsError
from icdsel.records import Answer
from icdsel.vlm.engine import Request

OnAnswers = Callable[[Mapping[int, Answer]], None]
"""Called with new answers, by the position of their requests."""
FEW_CALLS = 32
"""The share of failed calls is relative to at least this number of calls, so that early failures weigh less."""


class CallCount:
    """The calls so far; may be used by several threads.

    Args:
        max_failed: The share of requests that may fail.

    Attributes:
        skipped: Images that the user knows to be unreadable: calls that show one fail, but do not stop the run.
    """

    def __init__(self, max_failed: float) -> None:
        self._max_failed = max_failed
        self.skipped: Set[Path] = frozenset()
        self._lock = Lock()
        self._requests = self._cut = self._failed = 0
        self._last_failure = ""

    def add(self, requests: Sequence[Request], answers: Mapping[int, Answer]) -> None:
        """Counts final answers, by their position in `requests`."""
        with self._lock:
            for i, answer in answers.items():
                self._requests += 1
                self._cut += answer.cut
                if answer.error is not None and self.skipped.isdisjoint(requests[i].images):
                    self._failed += 1
                    self._last_failure = answer.error

    def check(self) -> None:
        """Checks that not too many calls have failed.

        Raises:
            CallsError: More have failed than `max_failed` allows.
        """
        with self._lock:
            failed, requests, last = self._failed, self._requests, self._last_failure
        if failed > self._max_failed * max(requests, FEW_CALLS):
            raise CallsError(
                f"{failed} of {requests} VLM calls failed, more than --max-failed {self._max_failed:g} allows; the "
                f"last: {last}. Completed work is kept: fix the cause and run the same command again."
            )

    @property
    def requests(self) -> int:
        """How many requests have an answer or have failed."""
        with self._lock:
            return self._requests

    @property
    def cut_share(self) -> float:
        """The share of all answers so far that reached their maximum length."""
        with self._lock:
            return self._cut / max(1, self._requests)
