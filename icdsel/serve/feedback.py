"""Scores of served requests, journalled in the form of RL data, with the images of the queries beside them."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from icdsel.artefacts.rl_data import parse_group
from icdsel.errors import RlDataError
from icdsel.records import Example, PoolIds, QueryGroup, ScoredPointer
from icdsel.serve.errors import ApiError
from icdsel.store.files import make_folder, write_bytes
from icdsel.store.journal import Journal
from icdsel.store.lock import locked

METHOD = "served"
"""How the pointers were proposed."""


@dataclass(frozen=True)
class Served:
    """A request that was served, until its score arrives.

    Attributes:
        query: The query.
        icds: The demonstrations that were shown; none is a choice too.
        image: The content of its image.
        at: When, in seconds of a monotonic clock.
    """

    query: Example
    icds: tuple[Example, ...]
    image: bytes
    at: float


class Feedback:
    """Remembers what was served, in bounded memory, and journals the scores that arrive for it.

    Args:
        path: The journal, JSON lines; an existing one is continued. Images go to the folder `NAME.images` beside it.
        task: The task of the scores.
        most: Requests that are remembered.
        minutes: How long they are remembered.
        image_mb: Memory for their images, in MB.

    Raises:
        RlDataError: Another process writes the journal, or it cannot be read.
    """

    def __init__(self, path: Path, task: str, most: int = 10_000, minutes: float = 60, image_mb: float = 256) -> None:
        if path.suffix != ".jsonl":
            raise RlDataError(f"feedback is JSON lines: the name of --feedback {path} must end in .jsonl")
        self._path, self._task = path, task
        self._most, self._seconds, self._most_bytes = most, 60 * minutes, int(image_mb * 2**20)
        self._served: OrderedDict[str, Served] = OrderedDict()
        self._bytes, self._lock, self._open = 0, Lock(), ExitStack()
        self._open.enter_context(locked(path, f"the feedback {path}", RlDataError))
        self._journal = Journal(path, RlDataError)
        self.scores = sum(1 for _ in self._journal.read(_group))

    def remember(self, request_id: str, served: Served) -> None:
        """Remembers a request, and forgets the oldest ones above the limits."""
        with self._lock:
            self._served[request_id] = served
            self._bytes += len(served.image)
            for old in list(self._too_many(served.at)):
                self._bytes -= len(self._served.pop(old).image)

    def score(self, request_id: str, score: float) -> QueryGroup:
        """Journals the score of a request, once; it is on disk when this returns.

        Raises:
            ApiError: The request is not known, or not any more, or has a score.
            OSError: It cannot be written.
        """
        with self._lock:
            served = self._served.pop(request_id, None)
            if served is not None:
                self._bytes -= len(served.image)
            if served is None or time.monotonic() - served.at > self._seconds:
                raise ApiError(
                    404, "no such request, or it is too old, or has a score already", "unknown_request", "request_id"
                )
            try:
                return self._write(served, score)
            except OSError:
                self._served[request_id] = served  # it may be sent again
                self._bytes += len(served.image)
                raise

    def close(self) -> None:
        """Gives the journal free for other processes."""
        self._open.close()

    def _write(self, served: Served, score: float) -> QueryGroup:
        image = self._images / hashlib.sha256(served.image).hexdigest()
        if not image.exists():
            make_folder(self._images)
            write_bytes(image, served.image)
        pointer = ScoredPointer(
            tuple(icd.question_id for icd in served.icds), METHOD, correct=float(score > 0), score=score
        )
        group = QueryGroup.of_query(served.query, PoolIds(None), [pointer], self._task)
        self._journal.append([group.to_json() | {"image": f"{self._images.name}/{image.name}"}])
        self.scores += 1
        return group

    @property
    def _images(self) -> Path:
        return self._path.with_name(f"{self._path.stem}.images")

    def _too_many(self, now: float) -> Iterator[str]:
        """The oldest requests that are above the limits."""
        count, size = len(self._served), self._bytes
        for request_id, served in self._served.items():
            if count <= self._most and size <= self._most_bytes and now - served.at <= self._seconds:
                return
            count, size = count - 1, size - len(served.image)
            yield request_id


def _group(value: object) -> QueryGroup:
    group, rejected = parse_group(value)
    if rejected:
        raise ValueError(rejected[0].reason)
    return group
