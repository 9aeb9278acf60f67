"""A time limit for calls of a model that may hang."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from icdsel.console import warn
from icdsel.errors import CallsError

GRACE = 30.0
"""Seconds that an interrupted call has to return, before it counts as stuck."""
MOST_TIMEOUTS = 3
"""Timeouts in a row after which the device is taken for gone: a single prompt cannot be the cause of all of them."""
RESUME = "Completed work is kept: check the device and run the same command again, or raise --call-timeout."
"""What the user can do about a timeout."""


def warn_of_stuck_call(reason: str) -> None:
    """Logs that a call can be neither awaited nor interrupted."""
    warn(f"{reason}. {RESUME}")


on_stuck: Callable[[str], None] = warn_of_stuck_call
"""Called, in a thread of its own, with the reason if a call cannot be interrupted.

A program may replace it, as it may `threading.excepthook`: the command line ends the process. Python cannot interrupt
what hangs outside of it (a driver, a lost device), so the thread that made the call stays blocked.
"""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupts the block after so many seconds.

    It takes a signal (SIGALRM), so there is no limit outside of the main thread. The previous handler is restored.

    Raises:
        TimeoutError: The time is up.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    reason = f"no answer of the VLM after {seconds:g} seconds"

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(reason)

    def watch() -> None:
        # One after the other: a process may be suspended for longer than both.
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
            signal.setitimer(signal.ITIMER_REAL, 0)  # the alarm may go off until then
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
        """Begins to count timeouts in a row again."""
        self._timeouts = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Limits the time of the block, which is one call of the model.

        Raises:
            TimeoutError: The time is up.
            CallsError: The time is up, and so it was in the calls before.
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
