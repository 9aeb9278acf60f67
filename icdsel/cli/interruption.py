"""Ctrl-C and SIGTERM: work is left where it may be, with a message that says how to go on. Loads nothing heavy."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

KEPT = "what was finished is kept: give the same command again to go on"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leave(number: int, _frame: FrameType | None) -> None:
    """A handler that ends the process at once, as a kill does, which what is written survives at any instant."""
    with suppress(OSError):  # stderr may be a pipe that nobody reads
        os.write(2, f"interrupted; {KEPT}\n".encode())  # past Python's buffers, which may be in use
    os._exit(128 + number)


def handle(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Has `handler` take both signals, where whoever started the process did not have them ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def raised() -> Iterator[None]:
    """Raises the first signal as KeyboardInterrupt, the signal's number in it; only in the main thread.

    A second one is not waited for. Nor is there any waiting within an import: an exception that comes out of half a
    module is caught by libraries that then take it for missing, and nothing is being written there.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        handle(leave)
        while frame:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                leave(number, frame)
            frame = frame.f_back
        raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        handle(stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
