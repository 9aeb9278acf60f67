import os

import pytest

from icdsel.errors import SettingsError
from icdsel.settings.devices import available_threads, label, resolve_device, worker_devices


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


@pytest.mark.parametrize(
    ("names", "workers", "gpus", "devices"),
    [
        ("auto", None, 0, ["cpu"]),
        ("auto", None, 4, ["cuda:0"]),
        ("auto", 3, 0, ["cpu", "cpu", "cpu"]),
        ("auto", 3, 4, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 4, 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        ("cuda:0, cuda:2", None, 3, ["cuda:0", "cuda:2"]),
        ("cuda:1,cuda:0", 3, 2, ["cuda:1", "cuda:0", "cuda:1"]),
        ("cpu", 2, 8, ["cpu", "cpu"]),
    ],
)
def test_workers_share_the_devices(names: str, workers: int | None, gpus: int, devices: list[str]) -> None:
    assert list(worker_devices(names, workers, gpus)) == devices


@pytest.mark.parametrize(
    ("names", "workers", "message"),
    [
        ("cpu,cuda:0", None, "mixes CPU and GPU"),
        ("cuda:0,cuda:1", 1, "--workers 1 cannot use the 2 devices of --device cuda:0,cuda:1"),
        ("cuda:0,cuda:9", None, "device 'cuda:9' does not exist"),
        ("cuda:0,", None, "unknown device ''"),
    ],
)
def test_impossible_devices_of_workers_are_rejected(names: str, workers: int | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        worker_devices(names, workers, 2)


def test_the_label_counts_workers_on_the_same_device() -> None:
    assert label(["cpu"]) == "cpu"
    assert label(["cuda:0", "cuda:1", "cuda:0"]) == "cuda:0 (2 workers), cuda:1"
