"""The time limit of calls, and what happens if a call cannot be interrupted."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from icdsel.errors import CallsError
from icdsel.vlm.time_limit import CallTimer, time_limit

# A hang in C, where no Python runs and the signal is blocked.
STUCK = """
import signal, icdsel.vlm.time_limit as limit
{set_up}
limit.GRACE = 0.3
with limit.time_limit(0.2):
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGALRM}})
    signal.sigtimedwait({{signal.SIGUSR1}}, 3)
"""
COMMAND_LINE = "from icdsel.cli.process import set_up_process; set_up_process()"


def run(program: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], text=True, timeout=60, check=False, **({"capture_output": True} | more)
    )


def test_a_block_is_interrupted_and_the_signal_handler_restored():
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer from the VLM after 0.1 seconds"), time_limit(0.1):
        time.sleep(30)
    assert time.monotonic() - started < 10
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with time_limit(0.1):
        pass
    time.sleep(0.2)  # nothing goes off afterwards


def test_other_threads_have_no_limit():
    done: list[bool] = []

    def work() -> None:
        with time_limit(0.05):
            time.sleep(0.3)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def time_out(timer: CallTimer) -> None:
    with timer.call():
        time.sleep(30)


def test_three_timeouts_in_a_row_stop_the_run():
    timer = CallTimer(0.05)
    for _ in range(2):  # a call that returns, or a reset, begins the count again
        for _ in range(2):
            with pytest.raises(TimeoutError):
                time_out(timer)
        with timer.call():
            pass
    for _ in range(2):
        with pytest.raises(TimeoutError):
            time_out(timer)
    timer.reset()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            time_out(timer)
    with pytest.raises(CallsError, match=r"after 0.05 seconds, 3 times in a row\. .*--call-timeout"):
        time_out(timer)


def test_the_command_line_ends_with_a_call_that_cannot_be_interrupted():
    ended = run(STUCK.format(set_up=COMMAND_LINE))
    assert ended.returncode == 1 and ended.stdout == "" and "Traceback" not in ended.stderr
    assert "after 0.2 seconds, and it cannot be interrupted: the process ends. Completed work is kept" in ended.stderr
    with Path("/dev/full").open("w") as full:  # not even the message can be written
        assert run(STUCK.format(set_up=COMMAND_LINE), capture_output=False, stderr=full).returncode == 1


def test_the_library_only_logs_it():
    ended = run(STUCK.format(set_up=""))
    assert ended.stderr.startswith("no answer from the VLM after 0.2 seconds, and it cannot be interrupted. ")
    assert "the process ends" not in ended.stderr and "TimeoutError: no answer" in ended.stderr


def test_importing_the_library_changes_nothing_global():
    program = (
        "import logging, signal, warnings\n"
        "import numpy, torch, torchvision, qwen_vl_utils, huggingface_hub, transformers, PIL.Image\n"
        "from transformers import Qwen2_5_VLForConditionalGeneration, AutoProcessor, AutoModelForImageTextToText\n"
        "def state():\n"
        "    levels = {name: logging.getLogger(name).level for name in ('transformers', 'huggingface_hub', 'PIL')}\n"
        "    return levels, warnings.filters[:], PIL.Image.MAX_IMAGE_PIXELS, signal.getsignal(signal.SIGALRM)\n"
        "before = state()\n"
        "import icdsel.data.images, icdsel.retrieval.encoders, icdsel.stages.session\n"
        "from icdsel.settings.tables import VlmSettings\n"
        "from icdsel.vlm.engines import open_engine\n"
        "open_engine(VlmSettings(model='tiny-vlm', device='cpu'), 10**6)\n"
        "print(state() == before, transformers.utils.logging.is_progress_bar_enabled())\n"
    )
    ended = run(program)
    assert ended.stdout == "True True\n", ended.stderr
