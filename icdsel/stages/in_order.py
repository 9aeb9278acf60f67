"""Units of work in parallel, with results in the order of the units.

Threads wait for the VLM: a server, or several devices, are busy only if several units are in progress. Results come in
the order of the units, so that journals have the same bytes whatever finishes first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def in_order(
    work: Callable[[T], R], units: Iterable[T], at_once: int = 1, stop: Callable[[], None] = lambda: None
) -> Iterator[Iterator[R]]:
    """Yields the results of `work`, one for each unit.

    Args:
        work: What is done with a unit.
        units: The units. They are taken in this thread, some before they are needed, so this iterator may do work that
            is not thread-safe.
        at_once: How many units are in progress at the same time. A single one is worked on in this thread, where
            signals can limit its time.
        stop: Called if an exception leaves the block; it lets `work` end soon.
    """
    if at_once == 1:
        yield map(work, units)
        return
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="unit")
    try:
        yield _results(threads, work, units, 2 * at_once)
    except BaseException:
        stop()
        raise
    finally:
        threads.shutdown(cancel_futures=True)


def _results(threads: ThreadPoolExecutor, work: Callable[[T], R], units: Iterable[T], most: int) -> Iterator[R]:
    """Submits units ahead, but at most so many that are not yet yielded."""
    submitted: deque[Future[R]] = deque()
    for unit in units:
        submitted.append(threads.submit(work, unit))
        if len(submitted) == most:  # twice those in progress: a slow one must not keep the others waiting
            yield submitted.popleft().result()
    while submitted:
        yield submitted.popleft().result()
