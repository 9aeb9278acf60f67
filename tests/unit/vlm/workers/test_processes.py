"""Workers in real processes, with the tiny VLM."""

import os
import signal
import threading
import time

import pytest
import torch

from icdsel.data.datasets import load_split
from icdsel.errors import CallsError
from icdsel.settings.tables import DataSettings, VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import open_engine
from icdsel.vlm.workers.pool import EnginePool

PIXELS = 10**6


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_answer_like_one_and_replace_one_that_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = load_split(DataSettings(), "train")
    lists = [
        [Request((train[k + n],), train[k + n + 1], train[k + n + 1].answers[:2]) for n in range(4)]
        for k in range(0, 40, 4)
    ]
    with torch.random.fork_rng():
        alone = open_engine(VlmSettings(), PIXELS)
    expected = [alone.answer(each) for each in lists]
    several = open_engine(VlmSettings(workers=2), PIXELS)
    assert isinstance(several, EnginePool)
    try:
        assert (several.fingerprint, several.dtype) == (alone.fingerprint, alone.dtype)
        processes = [each.process for each in several.described]
        assert len({os.getpid(), *processes}) == 3
        os.kill(processes[0], signal.SIGKILL)
        assert [several.answer(each) for each in lists] == expected  # to the last digit
        assert torch.equal(several.embed_texts(["a question"]), alone.embed_texts(["a question"]))
        threading.Timer(0.2, several.close).start()
        with pytest.raises(CallsError):
            while True:
                several.answer(lists[0])
    finally:
        several.close()
    deadline = time.monotonic() + 10
    while is_running(processes[1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(processes[1])
