"""The pool, with workers that are threads of this process and are lost on demand."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeEngine

from icdsel.console import note
from icdsel.errors import CallsError, VlmError
from icdsel.records import Answer, Example
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
from icdsel.vlm.workers.pool import MOST_LOST, EnginePool
from icdsel.vlm.workers.worker import EngineWorker, Reply, WorkerLostError

QUERIES = [Example(i, i, Path(f"{i}.png"), f"Question {i}?", f"answer {i}", (f"answer {i}",)) for i in range(200)]


def requests(start: int, count: int = 5) -> list[Request]:
    return [Request((QUERIES[i + 1],), QUERIES[i]) for i in range(start, start + count)]


class ThreadWorker:
    """A worker whose engine is in this process.

    Args:
        name: Its name.
        make: Makes its engine, each time it is started.
        lost: Called before each call with the number of calls so far; True if the worker ends in it.
        by_call: Whether the call may be why it ended.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], FakeEngine] = FakeEngine,
        lost: Callable[[int], bool] = lambda n: False,
        by_call: bool = True,
    ) -> None:
        self.name, self._make, self._lost, self._by_call = name, make, lost, by_call
        self._worker: EngineWorker | None = None
        self._lock = threading.Lock()
        self.calls = self.starts = 0
        self.stopped = False
        self.lose_at_start = 0

    def start(self) -> None:
        with self._lock:
            if self._worker is None:
                self.starts += 1
                engine = self._make()
                self._worker = EngineWorker(lambda: SupervisedEngine(engine, CallTimer(60), 1.0))

    def call(self, method: str, *values: Any) -> Reply:
        with self._lock:
            if method == "describe" and self.lose_at_start:
                self.lose_at_start -= 1
                self._worker = None
                raise WorkerLostError("killed while it loads")
            worker = self._worker
            self.calls += method == "answer"
            if worker is None or self.stopped or (method == "answer" and self._lost(self.calls)):
                self._worker = None
                raise WorkerLostError("killed by the test", self._by_call)
        return getattr(worker, method)(*values)

    def stop(self) -> None:
        self.stopped = True


def pool(*workers: ThreadWorker, max_failed: float = 0.1) -> EnginePool:
    return EnginePool(workers, "here", max_failed, torch.get_num_threads)


def answered(pool: EnginePool, lists: Sequence[Sequence[Request]]) -> list[list[Answer]]:
    """Answers of all lists, asked for in as many threads as the pool allows."""
    from icdsel.stages.in_order import in_order

    with in_order(pool.answer, lists, pool.at_once, pool.close) as results:
        return list(results)


EXPECTED = [[FakeEngine().alone(request) for request in requests(start)] for start in range(0, 100, 5)]
LISTS = [requests(start) for start in range(0, 100, 5)]


def test_every_list_is_answered_as_by_one_engine_and_all_workers_take_part() -> None:
    workers = [ThreadWorker(f"worker {n}") for n in range(3)]
    assert answered(pool(*workers), LISTS) == EXPECTED
    assert all(worker.calls for worker in workers)
    assert [worker.starts for worker in workers] == [1, 1, 1]


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_lost_worker_is_started_again_and_its_lists_are_answered(at: int, caplog: pytest.LogCaptureFixture) -> None:
    lossy = ThreadWorker("worker 1", lost=lambda calls: calls == at)
    assert answered(pool(lossy, ThreadWorker("worker 2")), LISTS) == EXPECTED
    assert "worker 1 was lost (killed by the test)" in caplog.text


def test_workers_that_cannot_be_started_again_leave_the_work_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    lost = ThreadWorker("worker 1", lost=lambda calls: True)

    def only_once() -> FakeEngine:
        if lost.starts > 1:
            raise VlmError("the machine is gone")
        return FakeEngine()

    lost._make = only_once
    other = ThreadWorker("worker 2")
    assert answered(pool(lost, other), LISTS) == EXPECTED
    assert other.calls == len(LISTS)


def test_without_any_worker_the_run_stops_and_says_how_to_resume() -> None:
    def once() -> FakeEngine:
        if worker.starts > 1:
            raise VlmError("no memory left")
        return FakeEngine()

    worker = ThreadWorker("worker 1", once, lost=lambda calls: True)
    with pytest.raises(CallsError, match=r"no worker is left.*run the same command again"):
        answered(pool(worker), LISTS)


def test_prompts_that_end_worker_after_worker_stop_the_run() -> None:
    workers = [ThreadWorker(f"worker {n}", lost=lambda calls: True) for n in range(2)]
    with pytest.raises(CallsError, match=f"{MOST_LOST} workers were lost in a row with the same prompts"):
        pool(*workers).answer(requests(0))


def test_prompts_are_not_blamed_for_machines_that_are_gone() -> None:
    lost = [ThreadWorker(f"worker {n}", lost=lambda calls: calls == 1, by_call=False) for n in range(MOST_LOST + 2)]
    assert pool(*lost).answer(requests(0)) == EXPECTED[0]


def test_a_worker_with_another_model_is_not_let_in_again(caplog: pytest.LogCaptureFixture) -> None:
    other = ThreadWorker("worker 1", lambda: FakeEngine("other" if other.starts > 1 else "fake"), lambda calls: True)
    assert answered(pool(other, ThreadWorker("worker 2", lambda: FakeEngine("fake"))), LISTS) == EXPECTED
    assert "worker 1 could not be started again: worker 1" in caplog.text


def test_failed_calls_are_counted_over_all_workers() -> None:
    def fails() -> FakeEngine:
        return FakeEngine(answer_of=lambda request: Answer("", error="no answer"))

    one = pool(ThreadWorker("worker 1", fails), ThreadWorker("worker 2", fails), max_failed=0.5)
    assert all(answer.error == "no answer" for answer in one.answer(requests(0, 15)))  # 15 of at least 32 calls
    with pytest.raises(CallsError, match=r"30 of 30 VLM calls failed.*the last: no answer"):
        one.answer(requests(0, 15))


def test_images_known_to_be_unreadable_do_not_stop_the_run() -> None:
    one = pool(ThreadWorker("w", lambda: FakeEngine(answer_of=lambda _: Answer("", error="unreadable"))), max_failed=0)
    one.calls.skipped = {example.image for example in QUERIES[:20]}
    assert len(one.answer(requests(0, 15))) == 15


def test_workers_with_different_models_are_rejected() -> None:
    with pytest.raises(VlmError, match=r"worker 2 \(.*\) runs other with other files or another dtype than worker 1"):
        pool(ThreadWorker("worker 1"), ThreadWorker("worker 2", lambda: FakeEngine("other")))


def test_an_engine_that_cannot_be_opened_is_the_users_message_and_stops_the_others() -> None:
    def broken() -> FakeEngine:
        raise VlmError("no such model")

    workers = [ThreadWorker("worker 1"), ThreadWorker("worker 2", broken)]
    with pytest.raises(VlmError, match="no such model"):
        pool(*workers)
    assert all(worker.stopped for worker in workers)


def test_a_worker_that_is_lost_while_it_loads_the_model_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    worker = ThreadWorker("worker 1")
    worker.lose_at_start = 1
    assert answered(pool(worker), LISTS) == EXPECTED
    assert "worker 1 was lost while it loaded the model" in caplog.text
    worker = ThreadWorker("worker 1")
    worker.lose_at_start = MOST_LOST
    with pytest.raises(VlmError, match="worker 1 ends whenever it loads the model: killed while it loads"):
        pool(worker)


def test_what_a_worker_logs_is_shown_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: Request) -> str:
        note("something to know")
        return "yes"

    caplog.set_level("INFO", "icdsel")
    pool(ThreadWorker("worker 7", lambda: FakeEngine(answer_of=answer))).answer(requests(0, 1))
    assert "worker 7: something to know" in caplog.messages


def test_embeddings_are_those_of_one_engine(tmp_path: Path) -> None:
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(150)]
    for i, path in enumerate(paths):
        if i != 77:
            Image.new("RGB", (8, 8), (i, 2 * i % 256, 9)).save(path)
    several = pool(*(ThreadWorker(f"worker {n}") for n in range(3)))
    features, failed = several.embed_images(paths)
    expected, reasons = FakeEngine().embed_images(paths)
    assert torch.equal(features, expected)
    assert failed == reasons and list(failed) == [77]
    assert torch.equal(several.embed_texts(["a", "b"]), FakeEngine().embed_texts(["a", "b"]))


def test_closing_ends_calls_that_wait_for_a_worker() -> None:
    waiting = threading.Event()

    def slow(request: Request) -> str:
        waiting.set()
        threading.Event().wait(0.2)
        return "late"

    worker = ThreadWorker("worker 1", lambda: FakeEngine(answer_of=slow))
    one = pool(worker)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            one.answer(requests(0, 1))
        except CallsError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    waiting.wait(5)
    one.close()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert len(errors) >= 2
