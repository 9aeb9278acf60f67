"""A limit of time for calls of a model, which may hang: interrupted, and where that does not help the process ends."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from icdsel.console import warn

GRACE = 30.0
"""Seconds that an interrupted call has to return, before the process ends without it."""
GIVEN_UP = "What was finished is kept: see to the device and give the same command again, or raise --call-timeout."
"""What to tell whoever waited."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupts what runs inside after so many seconds, in the main thread; elsewhere there is no limit.

    What hangs outside of Python (a driver, a device that is gone) cannot be interrupted: `GRACE` seconds later the
    process ends with exit code 1, as if it had been killed. Work that survives being killed survives that.

    Raises:
        TimeoutError: The time is up.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    too_long = f"no answer of the VLM after {seconds:g} seconds"

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(too_long)

    def end() -> None:
        if done.wait(seconds) or done.wait(GRACE):  # one after the other: a process may be stopped for longer than both
            return
        try:
            warn(f"{too_long}, and it cannot be interrupted: the process ends. {GIVEN_UP}")
        finally:
            os._exit(1)

    done = threading.Event()
    before = signal.signal(signal.SIGALRM, interrupt)
    threading.Thread(target=end, daemon=True).start()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        done.set()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)  # the alarm may ring until then
        finally:
            signal.signal(signal.SIGALRM, before)
