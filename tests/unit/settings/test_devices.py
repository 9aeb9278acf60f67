import os

import pytest

from icdsel.errors import SettingsError
from icdsel.settings.devices import available_threads, resolve_device


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_resolved_for_the_gpus_that_exist(name: str, gpus: int, device: str) -> None:
    assert resolve_device(name, gpus) == device


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu': --train-device takes auto, cpu, cuda or cuda:0"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:1", r"device 'cuda:1' does not exist \(1 GPUs found\): use --train-device cpu"),
    ],
)
def test_an_impossible_device_is_rejected_with_the_flag_to_change(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_device(name, 1, "--train-device")


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("4,2", 4), (" 2 ", 2)])
def test_openmp_decides_how_many_threads_compute(value: str, threads: int) -> None:
    assert available_threads({"OMP_NUM_THREADS": value}) == threads


@pytest.mark.parametrize("value", [None, "", "0", "-1", "many", "99999999999"])
def test_otherwise_the_cpus_of_the_process_do(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert available_threads({} if value is None else {"OMP_NUM_THREADS": value}) == 3
