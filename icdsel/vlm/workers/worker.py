"""What runs in a worker, and how it is called from the main process.

A worker holds an engine and answers whole lists of requests. Everything else (proposals, the cache of answers, scores,
journals) stays in the main process. A list is answered exactly as in a single process, so results do not depend on
which worker answers it.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from icdsel.console import logger
from icdsel.records import Answer
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine

if TYPE_CHECKING:
    import numpy as np


class WorkerLostError(Exception):
    """A worker has ended (killed, out of memory, its machine is gone), and with it the call in progress.

    Args:
        reason: Why, for a message.
        by_call: Whether the call may have ended it, such as one that needs too much memory.
    """

    def __init__(self, reason: str, by_call: bool = True) -> None:
        super().__init__(reason)
        self.by_call = by_call


@dataclass(frozen=True)
class Description:
    """The attributes of the engine in a worker (`Engine`), and where the worker runs."""

    name: str
    fingerprint: str
    dtype: str
    can_score_references: bool
    can_embed: bool
    machine: str
    process: int


@dataclass(frozen=True)
class Reply:
    """The result of a call, and what was logged during it: the level and text of each message."""

    value: Any
    messages: Sequence[tuple[int, str]] = ()


class Worker(Protocol):
    """A worker, as the main process sees it."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def start(self) -> None:
        """Starts the worker, for the first time or after it was lost; does nothing if it runs.

        Raises:
            WorkerLostError: It ended at once, or the worker was stopped.
        """

    def call(self, method: str, *values: Any) -> Reply:
        """Calls a method of the `EngineWorker`; waits for it. Several threads may call at the same time.

        Raises:
            WorkerLostError: The worker ended before it replied, or does not run.
            UserError: Raised by the method.
        """

    def stop(self) -> None:
        """Ends the worker at once, for good; calls in progress raise WorkerLostError."""


class EngineWorker:
    """What runs in a worker: an engine, opened by the first call.

    Args:
        open_engine: Opens it. Failed calls are counted by the main process, so the engine must not stop on them.
    """

    def __init__(self, open_engine: Callable[[], SupervisedEngine]) -> None:
        self._open = open_engine

    @cached_property
    def engine(self) -> SupervisedEngine:
        """The engine."""
        return self._open()

    def describe(self, threads: int) -> Reply:
        """The `Description` of the worker."""
        with self._computing(threads) as messages:
            engine = self.engine
            here = (socket.gethostname(), os.getpid())
            references, embeds = engine.can_score_references, engine.can_embed
            found = Description(engine.name, engine.fingerprint, engine.dtype, references, embeds, *here)
        return Reply(found, messages)

    def answer(self, threads: int, requests: Sequence[Request]) -> Reply:
        """The answer to each request."""
        with self._computing(threads) as messages:
            answers: list[Answer] = self.engine.answer(requests)
        return Reply(answers, messages)

    def embed_images(self, threads: int, paths: Sequence[Path]) -> Reply:
        """Features as an array (N, d), and why images are unreadable, by position."""
        with self._computing(threads) as messages:
            features, failed = self.engine.embed_images(paths)
        return Reply((_array(features), failed), messages)

    def embed_texts(self, threads: int, texts: Sequence[str]) -> Reply:
        """Features as an array (N, d)."""
        with self._computing(threads) as messages:
            features = self.engine.embed_texts(texts)
        return Reply(_array(features), messages)

    def advice(self, threads: int) -> Reply:
        """How the user could speed up the work; None if there is no advice."""
        with self._computing(threads) as messages:
            advice = self.engine.advice()
        return Reply(advice, messages)

    @contextmanager
    def _computing(self, threads: int) -> Iterator[list[tuple[int, str]]]:
        """Computes with so many threads, on which last digits depend; collects what is logged."""
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        messages: list[tuple[int, str]] = []
        handler = _Collector(messages)
        logger.addHandler(handler)
        try:
            yield messages
        finally:
            logger.removeHandler(handler)


class _Collector(logging.Handler):
    """Collects messages for the main process, which shows them."""

    def __init__(self, messages: list[tuple[int, str]]) -> None:
        super().__init__(logging.INFO)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message."""
        self._messages.append((record.levelno, record.getMessage()))


def _array(features: Any) -> "np.ndarray":
    """A tensor as an array, which is pickled by value; tensors are sent between processes as files in memory."""
    array: np.ndarray = features.numpy()
    return array


def leave_stuck_call(reason: str) -> None:
    """Ends the process if a call is stuck; the main process notices it, and starts another worker."""
    print(f"{reason}: this worker ends", file=sys.stderr)
    os._exit(1)


def opener(settings: VlmSettings, max_image_pixels: int, device: str) -> Callable[[], SupervisedEngine]:
    """Opens the engine of a worker on its device; can be sent to another process."""
    # Failed calls are counted by the main process, over all workers.
    own = {"max_failed": 1.0, "workers": None, "device": device, "ray": False, "ray_address": None}
    return partial(_open, settings.model_copy(update=own), max_image_pixels)


def _open(settings: VlmSettings, max_image_pixels: int) -> SupervisedEngine:
    from icdsel.vlm.engines import open_engine

    engine = open_engine(settings, max_image_pixels)
    if not isinstance(engine, SupervisedEngine):
        raise TypeError(f"a worker has a single engine, not {engine}")
    return engine
