import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from icdsel.errors import RunError
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


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
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


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(tmp_path: Path, by: signal.Signals) -> None:
    process = holder(tmp_path / "run")
    process.send_signal(by)
    process.wait()
    with locked(tmp_path / "run", "run x", RunError):
        assert (tmp_path / ".run.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_can_be_taken_again_and_makes_its_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "a/b/run", "run x", RunError):
            pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with locked(tmp_path / "run", "run x", RunError):
        pass
    assert "knows no locks (No locks available)" in " ".join(capsys.readouterr().err.split())
