"""An event loop in a thread of its own, which serves any number of threads, and ends without anybody's help."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from icdsel.errors import CallsError

_T = TypeVar("_T")
_ENDING = 5.0  # seconds that cancelled tasks have to end


class BackgroundLoop:
    """Runs coroutines in a daemon thread, so that neither an error nor the end of the program waits for a network."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine and returns its result; if the waiting thread is interrupted, it is cancelled.

        Raises:
            CallsError: The loop was closed meanwhile.
        """
        if self._closed:
            work.close()
            raise CallsError("the servers are not asked any more, since the command ends")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise CallsError("what was asked of servers was cancelled, since the command ends") from None
        finally:
            future.cancel()  # has no effect on finished work

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels everything that runs, runs `last`, and ends the thread; calling it again changes nothing."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(_end(last), self._loop).add_done_callback(
            lambda _: self._loop.call_soon_threadsafe(self._loop.stop)
        )
        self._thread.join(_ENDING)
        if not self._thread.is_alive():
            self._loop.close()


async def _end(last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_ENDING / 2)
    await last()


async def all_or_cancelled(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of coroutines that run side by side, started in order; the first error cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
