import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from icdsel.errors import RunError
from icdsel.store import lock
from icdsel.store.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from icdsel.errors import RunError
from icdsel.store.lock import locked
with locked(Path(sys.argv[1]), "run x", RunError):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_process_fails_with_the_name_of_the_first(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        for _ in range(2):  # the attempt leaves the name of the owner alone
            with (
                pytest.raises(RunError, match=f"run x is being written by process {process.pid} on .*--results-dir"),
                locked(tmp_path / "run", "run x", RunError),
            ):
                pass
        with locked(tmp_path / "other", "run y", RunError):
            pass
    finally:
        process.kill()
        process.wait()


def test_waiting_for_a_lock_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = holder(tmp_path / "world")
    threading.Timer(0.2, process.kill).start()
    with locked(tmp_path / "world", "the bundled world"):
        assert process.wait() == -signal.SIGKILL
    assert f"the bundled world: waiting for process {process.pid} on " in caplog.text


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(tmp_path: Path, by: signal.Signals) -> None:
    process = holder(tmp_path / "run")
    process.send_signal(by)
    process.wait()
    with locked(tmp_path / "run", "run x", RunError):
        assert (tmp_path / ".run.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_can_be_taken_again_and_its_folder_is_created(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "a/b/run", "run x", RunError):
            pass
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == [".run.lock"]


def test_there_is_a_warning_on_a_file_system_without_locks(tmp_path, monkeypatch, caplog) -> None:
    def rejected(*args: object, **options: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "lock_descriptor", rejected)
    with locked(tmp_path / "cache", "answers", quiet=True):
        pass
    assert not caplog.text
    with locked(tmp_path / "run", "run x", RunError):
        pass
    assert f"{tmp_path} does not support locks (No locks available)" in caplog.text
