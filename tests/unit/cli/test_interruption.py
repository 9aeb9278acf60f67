import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from icdsel.cli.interruption import KEPT

# A library that takes any exception from an import for a missing module, as some do.
SWALLOWS = """
import os, signal, sys
from icdsel.cli.interruption import raised
with raised():
    try:
        import interrupted_import
    except BaseException:
        pass
    print("continued")
"""
RAISES = """
import os, signal, sys, time
from icdsel.cli.interruption import raised
try:
    with raised():
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(10)
except KeyboardInterrupt as stopped:
    print("cleaned up after", int(stopped.args[0]))
"""
TWICE = """
import os, sys, time
from icdsel.cli.interruption import raised
with raised():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(10)
    finally:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(10)
"""
CLOSED_STDERR = """
import os, signal, sys, time
from icdsel.cli.interruption import handle, leave
handle(leave)
os.close(2)
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(10)
"""


def python(code: str, by: signal.Signals, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, str(int(by))]
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)


BOTH = pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_a_signal_ends_a_process_that_cannot_print(by: signal.Signals, tmp_path: Path) -> None:
    assert python(CLOSED_STDERR, by, tmp_path).returncode == 128 + by


@BOTH
def test_the_first_signal_is_raised_so_that_work_is_cleaned_up(by: signal.Signals, tmp_path: Path) -> None:
    made = python(RAISES, by, tmp_path)
    assert (made.returncode, made.stdout, made.stderr) == (0, f"cleaned up after {int(by)}\n", "")


@BOTH
def test_a_signal_during_an_import_ends_the_process(by: signal.Signals, tmp_path: Path) -> None:
    module = "import os, sys, time\nos.kill(os.getpid(), int(sys.argv[1]))\ntime.sleep(10)\n"
    (tmp_path / "interrupted_import.py").write_text(module)
    made = python(SWALLOWS, by, tmp_path)
    assert (made.returncode, made.stdout, made.stderr) == (128 + by, "", f"interrupted; {KEPT}\n")


@BOTH
def test_a_second_signal_ends_the_process_at_once(by: signal.Signals, tmp_path: Path) -> None:
    made = python(TWICE, by, tmp_path)
    assert (made.returncode, made.stderr) == (128 + by, f"interrupted; {KEPT}\n")


@BOTH
def test_the_message_of_an_end_at_once_says_what_is_kept(by: signal.Signals, tmp_path: Path) -> None:
    assert python(TWICE.replace("raised()", "raised('all of it')"), by, tmp_path).stderr == "interrupted; all of it\n"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    code = "import signal\nfrom icdsel.cli.interruption import raised\n"
    code += "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwith raised():\n    signal.raise_signal(signal.SIGINT)\n"
    assert python(f"{code}print('here')", signal.SIGINT, tmp_path).stdout == "here\n"
