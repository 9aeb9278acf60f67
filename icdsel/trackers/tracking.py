"""Several trackers at once. None of them can end, change or block what it tracks."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from icdsel.console import plain, warn
from icdsel.errors import SettingsError, UserError, reason_of
from icdsel.trackers.base import Row, Subject, Tracked, Tracker

_CLOSING_LIMIT = 10.0  # seconds to close a tracker that has failed
_Result = TypeVar("_Result")


def require_trackers(trackers: Sequence[Tracker]) -> None:
    """Checks that trackers can be used.

    Raises:
        SettingsError: One cannot; the message says why.
    """
    for tracker in trackers:
        _at_the_start(tracker, tracker.require)


class Tracking:
    """Trackers of one training or comparison; without any it does nothing.

    One that fails is warned of once, and gets nothing more.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Tracker, Tracked]] = []
        self._failed: set[str] = set()

    def start(self, tracker: Tracker, subject: Subject) -> None:
        """Adds a tracker.

        Raises:
            SettingsError: It cannot be started.
        """
        self._open.append((tracker, _at_the_start(tracker, partial(tracker.start, subject))))

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an epoch; epochs are counted over all phases from 1."""
        self._each(f"epoch {number} and what follows", lambda tracked: tracked.log_epoch(number, metrics))

    def log_recommended(self, checkpoint: str) -> None:
        """Logs the name of the recommended checkpoint."""
        self._each("the recommended checkpoint", lambda tracked: tracked.log_recommended(checkpoint))

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Logs the table of a comparison."""
        self._each("the comparison", lambda tracked: tracked.log_rows(rows))

    def close(self, finished: bool) -> None:
        """Closes all trackers."""
        self._each("perhaps the last figures", lambda tracked: tracked.close(finished), closing=True)
        self._open = []

    def _each(self, what: str, call: Callable[[Tracked], None], *, closing: bool = False) -> None:
        """Calls every tracker that has not failed; one that is closed is called in any case."""
        for tracker, tracked in self._open:
            failed = tracker.name in self._failed
            if failed and not closing:
                continue
            try:
                _limited(partial(call, tracked), _CLOSING_LIMIT if failed and tracker.limit else tracker.limit)
            except Exception as error:  # noqa: BLE001 - libraries and servers raise anything; the work goes on
                if not failed:
                    self._failed.add(tracker.name)
                    warn(
                        f"the tracker {tracker.name} failed: {plain(reason_of(error))}. Not logged there: {what}. "
                        "The work goes on, and icdsel's own files hold all of it"
                    )


@contextmanager
def open_trackers(trackers: Sequence[Tracker], subject: Subject) -> Iterator[Tracking]:
    """Yields a `Tracking` with these trackers, and closes them however the block ends.

    Raises:
        SettingsError: One cannot be started.
    """
    tracking, finished = Tracking(), False
    try:
        for tracker in trackers:
            tracking.start(tracker, subject)
        yield tracking
        finished = True
    finally:
        tracking.close(finished)


def _at_the_start(tracker: Tracker, call: Callable[[], _Result]) -> _Result:
    """Calls what may fail because of a wrong configuration.

    Raises:
        SettingsError: It failed.
    """
    try:
        return _limited(call, tracker.limit)
    except UserError:
        raise
    except Exception as error:
        reason = plain(reason_of(error))
        raise SettingsError(
            f"the tracker {tracker.name} cannot be used: {reason}. Correct its configuration, or leave it out "
            "(--tracker)"
        ) from error


def _limited(call: Callable[[], _Result], seconds: float | None) -> _Result:
    """What `call` returns, if it does within `seconds`; with a limit it runs in a thread of its own.

    Raises:
        TimeoutError: It did not.
    """
    if seconds is None:
        return call()
    results: list[_Result] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            errors.append(error)

    # A daemon, since the process must not wait at its end for one that hangs.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return results[0]
