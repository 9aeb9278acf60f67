"""Workers in real processes, with an engine that needs no model."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from programs import run_program

from icdsel.errors import CallsError
from icdsel.records import Example
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.processes import ProcessWorker
from icdsel.vlm.workers.worker import WorkerLostError


def open_fake(name: str) -> SupervisedEngine:
    """Called in the worker's process."""
    return SupervisedEngine(FakeEngine(name), CallTimer(60), 1.0)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_answer_like_one_engine_replace_a_killed_one_and_end_with_the_pool() -> None:
    shown = [Example(i, i, Path(f"{i}.png"), f"Question {i}?", f"answer {i}", (f"answer {i}",)) for i in range(9)]
    lists = [[Request((shown[i + 1],), shown[i])] for i in range(8)]
    several = EnginePool([ProcessWorker(f"w{n}", partial(open_fake, "fake")) for n in range(2)], "here", 0.1, lambda: 1)
    try:
        processes = [each.process for each in several.described]
        assert len({os.getpid(), *processes}) == 3
        os.kill(processes[0], signal.SIGKILL)
        alone = FakeEngine()
        assert [several.answer(each) for each in lists] == [
            [alone.alone(request) for request in each] for each in lists
        ]
    finally:
        several.close()
    with pytest.raises(CallsError):
        several.answer(lists[0])
    deadline = time.monotonic() + 20
    while is_running(processes[1]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(processes[1])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_was_stopped_is_not_started_again() -> None:
    worker = ProcessWorker("w", partial(open_fake, "fake"))
    worker.start()
    process: int = worker.call("describe", 1).value.process
    worker.stop()
    until(lambda: not is_running(process))
    for ask in (worker.start, partial(worker.call, "describe", 1)):
        with pytest.raises(WorkerLostError):
            ask()
    assert not active_children()


def test_stopping_kills_no_process_that_has_got_the_number_of_one_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ProcessWorker("w", partial(open_fake, "fake"))
    worker.start()
    process: int = worker.call("describe", 1).value.process
    os.kill(process, signal.SIGKILL)
    until(lambda: not is_running(process))
    until(lambda: not active_children())
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, _: killed.append(number))
    worker.stop()
    assert not killed


class SlowToStart:
    """A process that it is sent to starts once a file is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return wait_in, (self.folder,)


def wait_in(folder: Path) -> Callable[[], SupervisedEngine]:
    (folder / "starts").touch()
    until((folder / "go").exists)
    return partial(open_fake, "fake")


def test_a_worker_that_starts_is_stopped_without_waiting_for_it(tmp_path: Path) -> None:
    worker = ProcessWorker("w", SlowToStart(tmp_path))  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as threads:
        starting = threads.submit(worker.start)
        until((tmp_path / "starts").exists)
        stopping = threads.submit(worker.stop)
        try:
            stopping.result(30)
            assert str(starting.exception(30)) == "it was stopped"
        finally:
            (tmp_path / "go").touch()
    until(lambda: not active_children())


PROGRAM = """
import os
from fakes import FakeEngine
from icdsel.vlm.workers.processes import ProcessWorker
if __name__ == "__main__":
    worker = ProcessWorker("w", FakeEngine)
    worker.start()
    worker.stop()
    print("PYTHONSAFEPATH" in os.environ)
"""


def test_files_of_the_working_directory_are_not_run(tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "folder"
    program.write_text(PROGRAM)
    folder.mkdir()
    (folder / "multiprocessing.py").write_text("open('was-run', 'w')\nraise SystemExit(1)\n")
    made = run_program(program, folder, 120)
    assert not (folder / "was-run").exists()
    assert (made.returncode, made.stdout) == (0, "False\n"), made.stderr
