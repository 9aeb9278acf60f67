"""Requests that wait at the same time are worked on together, in one thread. A single one does not wait for others."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Waiting(Generic[_Job, _Result]):
    """A job, and where its result goes."""

    job: _Job
    future: "asyncio.Future[_Result]"


class Batcher(Generic[_Job, _Result]):
    """Collects the jobs that arrive while the thread is busy, and then works on all of them in one call.

    A batch that fails is worked on again one by one, so that a job cannot make others fail. A job whose waiting task
    was cancelled is left out.

    Args:
        work: Called in the thread, with 1 to `most` jobs; gives their results in order.
        most: The most jobs of a call.
        name: What the thread is called.
        observe: Called with the size of each batch.
        weight: What a job weighs, such as the memory that it needs.
        heaviest: What the jobs of a call weigh together, at most; one that weighs more is worked on alone.
    """

    def __init__(
        self,
        work: Callable[[Sequence[_Job]], Sequence[_Result]],
        most: int,
        name: str,
        observe: Callable[[int], object] = lambda _: None,
        weight: Callable[[_Job], int] = lambda _: 0,
        heaviest: int = 0,
    ) -> None:
        self._work, self._most, self._observe = work, most, observe
        self._weight, self._heaviest = weight, heaviest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[_Waiting[_Job, _Result]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def result(self, job: _Job) -> _Result:
        """The result of a job.

        Raises:
            Exception: What `work` raises for this job alone.
        """
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(job, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    @property
    def waiting(self) -> int:
        """How many jobs wait for the thread."""
        return len(self._waiting)

    def close(self) -> None:
        """Ends the thread after what it works on; jobs that wait are cancelled."""
        for waiting in self._waiting:
            waiting.future.cancel()
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        try:
            while self._waiting:
                if batch := self._next():
                    await self._answer(batch)
        finally:
            self._running = None

    def _next(self) -> list[_Waiting[_Job, _Result]]:
        """Takes the jobs of the next batch from those that wait."""
        batch: list[_Waiting[_Job, _Result]] = []
        total = 0
        while self._waiting and len(batch) < self._most:
            waiting = self._waiting[0]
            if not waiting.future.done():  # else nobody waits for it any more
                total += self._weight(waiting.job)
                if batch and total > self._heaviest:
                    break
                batch.append(waiting)
            self._waiting.popleft()
        return batch

    async def _answer(self, batch: Sequence[_Waiting[_Job, _Result]]) -> None:
        self._observe(len(batch))
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._work, [waiting.job for waiting in batch])
        except Exception as error:  # noqa: BLE001 - it is handed to whoever waits
            if len(batch) == 1:
                if not batch[0].future.done():
                    batch[0].future.set_exception(error)
                return
            for one in batch:
                if not one.future.done():
                    await self._answer([one])
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(result)
