"""A pool of workers that answers lists of requests, each list with the worker that is free first."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from icdsel.console import logger, warn
from icdsel.errors import CallsError, VlmError
from icdsel.records import Answer
from icdsel.vlm.call_count import CallCount, OnAnswers
from icdsel.vlm.engine import Engine, Request
from icdsel.vlm.workers.worker import Description, Worker, WorkerLostError

if TYPE_CHECKING:
    from torch import Tensor

IN_FLIGHT = 2
"""Lists that a worker has at the same time: while it answers one, the next is on its way."""
MOST_LOST = 3
"""If so many workers are lost with the same list, its prompts are the likely cause, and the run stops. So it does if a
worker is lost so often in a row while it loads the model."""
EMBEDDED_TOGETHER = 64
"""Images in a call. It does not depend on the number of workers, so that features do not either."""


class EnginePool(Engine):
    """Engines in workers, used like a single one.

    A list of requests goes to one worker. If that is lost, another one answers the list, and the lost one is started
    again in the meantime.

    Args:
        workers: The workers; all are started.
        device: Where they run, as a label for logs.
        max_failed: The share of requests that may fail.
        threads: The number of threads that each worker computes with.

    Attributes:
        calls: The calls so far.

    Raises:
        VlmError: A worker cannot open its engine, or they have different ones.
    """

    def __init__(self, workers: Sequence[Worker], device: str, max_failed: float, threads: Callable[[], int]) -> None:
        self._workers, self._threads = workers, threads
        self.calls = CallCount(max_failed)
        self.device, self.at_once = device, IN_FLIGHT * len(workers)
        self._closed = False
        self._free: SimpleQueue[Worker | None] = SimpleQueue()
        """Each worker as often as it can take another list. None if there are no workers any more."""
        self._slots = self.at_once
        self._lost: set[Worker] = set()
        self._lock = threading.Lock()
        try:
            self._describe(self._started())
        except BaseException:
            self.close()
            raise
        for _ in range(IN_FLIGHT):
            for worker in workers:
                self._free.put(worker)

    def _started(self) -> list[Description]:
        with ThreadPoolExecutor(len(self._workers)) as threads:
            started = [threads.submit(self._start, worker) for worker in self._workers]
            try:
                return [each.result() for each in started]
            except BaseException:
                self.close()  # so that the other threads end
                raise

    def _start(self, worker: Worker) -> Description:
        """Starts a worker, again if it is lost while it loads the model."""
        for _ in range(MOST_LOST):
            try:
                worker.start()
                described: Description = self._ask(worker, "describe")
                return described
            except WorkerLostError as lost:
                reason = lost
                if self._closed:
                    break
                warn(f"{worker.name} was lost while it loaded the model ({reason}): it is started again")
        raise VlmError(f"{worker.name} ends whenever it loads the model: {reason}")

    def _describe(self, found: Sequence[Description]) -> None:
        first = found[0]
        self.name, self.fingerprint, self.dtype = first.name, first.fingerprint, first.dtype
        self.can_score_references, self.can_embed = first.can_score_references, first.can_embed
        self.described = found
        for worker, each in zip(self._workers, found, strict=True):
            self._require_same(worker, each)

    def _require_same(self, worker: Worker, described: Description) -> None:
        if (described.fingerprint, described.dtype) != (self.fingerprint, self.dtype):
            raise VlmError(
                f"{worker.name} ({described.machine}) runs {described.name} with other files or another dtype than "
                f"{self._workers[0].name} ({self.described[0].machine}): give all of them the same model"
            )

    # ---- calls ----

    def answer(self, requests: Sequence[Request], on_answers: OnAnswers | None = None) -> list[Answer]:
        """Has one worker answer the requests; the answer to one that fails has an error.

        Args:
            requests: The requests.
            on_answers: Called with the answers, by their position in `requests`.

        Raises:
            CallsError: More requests have failed so far than `max_failed` allows, or no worker is left.
        """
        answers: list[Answer] = self._call("answer", list(requests))
        found = dict(enumerate(answers))
        self.calls.add(requests, found)
        if on_answers:
            on_answers(found)
        self.calls.check()
        return answers

    def embed_images(self, paths: Sequence[Path]) -> "tuple[Tensor, dict[int, str]]":
        """Features of images, float32 (N, d), and position → reason for unreadable ones; all workers take part."""
        import torch

        starts = range(0, max(1, len(paths)), EMBEDDED_TOGETHER)
        with ThreadPoolExecutor(self.at_once) as threads:
            parts = list(
                threads.map(lambda at: self._call("embed_images", list(paths[at : at + EMBEDDED_TOGETHER])), starts)
            )
        failed = {at + i: reason for at, (_, own) in zip(starts, parts, strict=True) for i, reason in own.items()}
        return torch.cat([torch.tensor(features) for features, _ in parts]), failed  # a copy: Ray's is read-only

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Features of texts, float32 (N, d)."""
        import torch

        return torch.tensor(self._call("embed_texts", list(texts)))

    def advice(self) -> str | None:
        """The advice of one of the workers."""
        advice: str | None = self._call("advice")
        return advice

    def _call(self, method: str, *values: Any) -> Any:
        """Calls a method of a worker; of another one if it is lost."""
        lost = 0
        while lost < MOST_LOST:
            worker = self._free.get()
            if worker is None:
                self._free.put(None)  # for the others that wait
                raise CallsError("no worker is left. Completed work is kept: run the same command again to resume")
            if worker in self._lost:  # with another list
                self._start_again_later(worker)
                continue
            try:
                value = self._ask(worker, method, *values)
            except WorkerLostError as reason:
                if self._closed:
                    raise CallsError("the workers were stopped") from None
                warn(f"{worker.name} was lost ({reason}): another one takes over, and it is started again")
                lost += reason.by_call
                self._lost.add(worker)
                self._start_again_later(worker)
            except BaseException:
                self._free.put(worker)
                raise
            else:
                self._free.put(worker)
                return value
        raise CallsError(
            f"{MOST_LOST} workers were lost in a row with the same prompts; they may need too much memory "
            "(--batch-tokens). Completed work is kept: run the same command again to resume"
        )

    def _ask(self, worker: Worker, method: str, *values: Any) -> Any:
        reply = worker.call(method, self._threads(), *values)
        for level, message in reply.messages:
            logger.log(level, f"{worker.name}: {message}")
        return reply.value

    def _start_again_later(self, worker: Worker) -> None:
        threading.Thread(target=self._start_again, args=(worker,), daemon=True).start()

    def _start_again(self, worker: Worker) -> None:
        """Starts a lost worker, and lets it take one more list; called for each of the lists that it could take."""
        try:
            if self._closed:
                raise WorkerLostError("the workers were stopped")
            self._require_same(worker, self._start(worker))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other workers go on
            with self._lock:
                self._slots -= 1
                left = self._slots
            if not self._closed:
                warn(f"{worker.name} could not be started again: {error}")
            if not left:
                self._free.put(None)
        else:
            self._lost.discard(worker)
            self._free.put(worker)

    def close(self) -> None:
        """Ends all workers at once; calls in progress raise CallsError."""
        self._closed = True
        self._free.put(None)
        for worker in self._workers:
            worker.stop()
