"""A time limit for calls to a model that may hang."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from icdsel.console import warn
from icdsel.errors import CallsError

GRACE = 30.0
"""Seconds that an interrupted call has to return before it counts as stuck."""
MOST_TIMEOUTS = 3
"""After this many timeouts in a row the device counts as lost: a single prompt cannot cause all of them."""
RESUME = "Completed work is kept: check the device and run the same command again, or raise --call-timeout."
"""The advice to the user after a timeout."""


def warn_of_stuck_call(reason: str) -> None:
    """Logs that a call has timed out and cannot be interrupted."""
    warn(f"{reason}. {RESUME}")


on_stuck: Callable[[str], None] = warn_of_stuck_call
"""Called in a separate thread, with the reason, if a call cannot be interrupted.

A program may replace it, like `threading.excepthook`: the command line sets a function that ends the process. Python
cannot interrupt code that hangs outside of Python (a driver, a lost device), so the calling thread stays blocked.
"""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupts the block after `seconds`.

    It uses a signal (SIGALRM), so there is no limit outside the main thread. The previous handler is restored.

    Raises:
        TimeoutError: The time limit has expired.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    reason = f"no answer from the VLM after {seconds:g} seconds"

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(reason)

    def watch() -> None:
        # Two separate waits, since the process may be suspended for longer than both: it still gets the grace period.
        if not done.wait(seconds) and not done.wait(GRACE):
            on_stuck(f"{reason}, and it cannot be interrupted")

    done = threading.Event()
    before = signal.signal(signal.SIGALRM, interrupt)
    threading.Thread(target=watch, daemon=True).start()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        done.set()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)  # until then the alarm may still go off
        finally:
            signal.signal(signal.SIGALRM, before)


class CallTimer:
    """The time limit of all calls of one engine; stops the run if call after call times out.

    Args:
        seconds: The limit of one call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._timeouts = 0  # in a row

    def reset(self) -> None:
        """Resets the count of timeouts in a row."""
        self._timeouts = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Limits the time of the block, which is one call of the model.

        Raises:
            TimeoutError: The time limit has expired.
            CallsError: It has expired in this call and in the previous ones, `MOST_TIMEOUTS` times in a row.
        """
        try:
            with time_limit(self.seconds):
                yield
        except TimeoutError as error:
            self._timeouts += 1
            if self._timeouts == MOST_TIMEOUTS:
                raise CallsError(f"{error}, {MOST_TIMEOUTS} times in a row. {RESUME}") from None
            raise
        self._timeouts = 0
