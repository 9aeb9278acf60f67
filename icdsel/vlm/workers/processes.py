"""Workers as processes of this machine: one for each device, or several that share the CPU."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
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
        self._executor: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._process = 0

    def start(self) -> None:
        """Starts the process, unless it runs.

        Raises:
            WorkerLostError: It ended at once.
        """
        with self._lock:
            if self._executor is None:
                # Not forked: a copy of a process with threads and a GPU cannot use them.
                with _safe_path():
                    executor = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (self._open_engine,))
                    first = executor.submit(os.getpid)  # starts the process
                try:
                    self._process = first.result()
                except BrokenExecutor:
                    raise WorkerLostError("its process ended at once") from None
                self._executor = executor

    def call(self, method: str, *values: Any) -> Reply:
        """Calls a method of the `EngineWorker`, and waits for it.

        Raises:
            WorkerLostError: The process ended before it replied, or does not run.
            UserError: Raised by the method.
        """
        executor = self._executor
        if executor is None:
            raise WorkerLostError("its process does not run")
        try:
            return executor.submit(_call, method, values).result()
        except BrokenExecutor:
            with self._lock:
                if self._executor is executor:  # the first of several calls that fail
                    self._executor = None
            raise WorkerLostError(f"its process {self._process} ended") from None
        except CancelledError:
            raise WorkerLostError("it was stopped") from None

    def stop(self) -> None:
        """Ends the process at once."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)


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
