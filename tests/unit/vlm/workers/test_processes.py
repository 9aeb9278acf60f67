"""Workers in real processes, with an engine that needs no model."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from fakes import FakeEngine

from icdsel.errors import CallsError
from icdsel.records import Example
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.processes import ProcessWorker


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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    made = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not (folder / "was-run").exists()
    assert (made.returncode, made.stdout) == (0, "False\n"), made.stderr
