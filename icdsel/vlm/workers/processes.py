"""Workers as processes of this machine: one for each device, or several that share the CPU."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from icdsel.settings.devices import label
from icdsel.settings.tables import VlmSettings
from icdsel.vlm import time_limit
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.worker import EngineWorker, Reply, WorkerLostError, leave_stuck_call, opener


def open_processes(settings: VlmSettings, max_image_pixels: int, devices: Sequence[str]) -> EnginePool:
    """Starts a worker process for each device; several may name the same one.

    Raises:
        VlmError: The model does not exist or cannot be used.
    """
    import torch

    workers = [
        ProcessWorker(f"worker {n} ({device})", opener(settings, max_image_pixels, device))
        for n, device in enumerate(devices, 1)
    ]
    return EnginePool(workers, label(devices), settings.max_failed, torch.get_num_threads)


class ProcessWorker:
    """A worker in a process of its own.

    Args:
        name: What messages call it.
        open_engine: Opens its engine; it is sent to the process.
    """

    def __init__(self, name: str, open_engine: Callable[[], SupervisedEngine]) -> None:
        self.name, self._open_engine = name, open_engine
        self._running: _Running | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the process, unless it runs.

        Raises:
            WorkerLostError: It ended at once, or the worker was stopped.
        """
        with self._lock:
            if self._stopped:
                raise WorkerLostError("it was stopped")
            if self._running is None:
                self._running = _Running(self._open_engine)
            running = self._running
        try:
            running.first.result()  # without the lock: it may take long, and be stopped meanwhile
        except (BrokenExecutor, CancelledError):
            self._forget(running)
            raise WorkerLostError("it was stopped" if self._stopped else "its process ended at once") from None

    def call(self, method: str, *values: Any) -> Reply:
        """Calls a method of the `EngineWorker`, and waits for it.

        Raises:
            WorkerLostError: The process ended before it replied, or does not run.
            UserError: Raised by the method.
        """
        running = self._running
        if running is None:
            raise WorkerLostError("its process does not run")
        try:
            return running.call(method, values)
        except BrokenExecutor:
            self._forget(running)
            raise WorkerLostError(f"its process {running.process.pid} ended") from None
        except CancelledError:
            raise WorkerLostError("it was stopped") from None

    def stop(self) -> None:
        """Ends the process at once, also while it starts; it is not started again."""
        with self._lock:
            running, self._running, self._stopped = self._running, None, True
        if running is not None:
            running.end()

    def _forget(self, running: "_Running") -> None:
        """Another process takes the place of one that has ended; called for each call that it ended with."""
        with self._lock:
            if self._running is running:
                self._running = None


class _Running:
    """A process that runs, or starts.

    Args:
        open_engine: Opens its engine.

    Attributes:
        first: Done once it has started.
    """

    def __init__(self, open_engine: Callable[[], SupervisedEngine]) -> None:
        self._context = _Context()
        with _safe_path():
            self._executor = ProcessPoolExecutor(1, self._context, _prepare, (open_engine,))
            self.first: Future[int] = self._executor.submit(os.getpid)  # starts the process

    @property
    def process(self) -> SpawnProcess:
        """The process."""
        return self._context.made[0]

    def call(self, method: str, values: Sequence[Any]) -> Reply:
        """The reply to a call.

        Raises:
            BrokenExecutor: The process has ended.
            CancelledError: It was ended.
        """
        try:
            replying = self._executor.submit(_call, method, values)
        except BrokenExecutor:
            raise
        except RuntimeError:  # of an executor that was shut down
            raise CancelledError from None
        return replying.result()

    def end(self) -> None:
        """Ends the process at once."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.process.kill()  # not by its number, which may be another process's once it has ended


class _Context(SpawnContext):
    """Keeps the processes that are made. They are not forked: a copy of one with threads and a GPU cannot use them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[SpawnProcess] = []

    def Process(self, *values: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]
        self.made.append(SpawnProcess(*values, **options))
        return self.made[-1]


_starting = threading.Lock()


@contextmanager
def _safe_path() -> Iterator[None]:
    """Python that starts meanwhile imports nothing from the working directory, which may hold somebody else's files.

    Otherwise `python -c`, with which processes are spawned, looks there first. They get this process's path later.
    """
    name = "PYTHONSAFEPATH"
    with _starting:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


# ---- in the process ----

_worker: EngineWorker


def _prepare(open_engine: Callable[[], SupervisedEngine]) -> None:
    """Prepares the process of a worker. Ctrl-C is handled by the main process, with which it ends."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    time_limit.on_stuck = leave_stuck_call
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = EngineWorker(open_engine)


def _call(method: str, values: Sequence[Any]) -> Reply:
    reply: Reply = getattr(_worker, method)(*values)
    return reply


def _end_with_parent() -> None:
    """Ends the process once the main process has ended, in whatever way."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
