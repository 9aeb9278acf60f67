import threading
import time

import pytest

from icdsel.stages.in_order import in_order


def test_results_come_in_the_order_of_the_units_whatever_finishes_first():
    def work(unit):
        time.sleep(0.02 if unit % 3 == 0 else 0)
        return unit * unit

    with in_order(work, range(20), at_once=4) as results:
        assert list(results) == [unit * unit for unit in range(20)]


def test_units_are_worked_on_at_the_same_time():
    together = threading.Barrier(3, timeout=10)  # broken, and raises, if fewer than three are in progress

    with in_order(lambda unit: together.wait() * 0 + unit, range(6), at_once=3) as results:
        assert list(results) == list(range(6))


def test_one_at_once_stays_in_the_calling_thread_and_takes_units_when_they_are_needed():
    taken = []

    def units():
        for unit in range(3):
            taken.append(unit)
            yield unit

    with in_order(lambda unit: threading.current_thread(), units()) as results:
        assert next(results) is threading.current_thread()
        assert taken == [0]


def test_units_are_taken_in_the_calling_thread_and_not_far_ahead():
    takers, taken = set(), 0

    def units():
        nonlocal taken
        for unit in range(100):
            takers.add(threading.current_thread())
            taken += 1
            yield unit

    with in_order(lambda unit: unit, units(), at_once=2) as results:
        assert next(results) == 0
        assert taken == 4
    assert takers == {threading.current_thread()}


def test_an_error_of_a_unit_is_raised_in_its_place_after_the_results_before_it():
    def work(unit):
        if unit == 2:
            raise LookupError("the third unit")
        return unit

    seen = []
    with in_order(work, range(9), at_once=3) as results, pytest.raises(LookupError, match="the third unit"):
        for result in results:
            seen.append(result)
    assert seen == [0, 1]


def test_an_exception_in_the_block_stops_the_work_and_leaves_no_thread():
    stopped = threading.Event()

    def work(unit):
        assert unit == 0 or stopped.wait(10), "it was not stopped"
        return unit

    with pytest.raises(KeyboardInterrupt), in_order(work, range(50), at_once=2, stop=stopped.set) as results:
        assert next(results) == 0
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unit")]
