"""Ctrl-C and SIGTERM: work stops where it can be resumed, with a message that says how. Imports only light modules."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

KEPT = "finished work is kept: run the same command again to resume"
NOTHING_KEPT = "nothing is kept: the same command begins again"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leave(number: int, _frame: FrameType | None, kept: str = KEPT) -> None:
    """A signal handler that ends the process at once, as a kill does; files on disk survive that at any moment."""
    with suppress(OSError):  # stderr may be a pipe that nobody reads
        os.write(2, f"interrupted; {kept}\n".encode())  # not through Python's buffers, which may be in use
    os._exit(128 + number)


def handle(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Makes `handler` handle both signals, unless the parent process set them to be ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def raised(kept: str = KEPT) -> Iterator[None]:
    """Raises the first signal as a KeyboardInterrupt with the signal's number; for the main thread only.

    A second signal ends the process at once. So does one during an import: libraries catch any error of a
    half-imported module and treat the module as missing. Nothing is being written at that point. `kept` is what such an
    end leaves, for its message.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        handle(partial(leave, kept=kept))
        while frame:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                leave(number, frame, kept)
            frame = frame.f_back
        raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        handle(stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
