from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.errors import RunError
from icdsel.settings.loading import Settings, load_settings
from icdsel.stages.threads import use_threads
from icdsel.store.slot import Slot, State


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def settings(**data: Any) -> Settings:
    return load_settings({"data": data})


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    path = tmp_path / "rows.jsonl"
    return Slot(path, {"data.seed": 1}, path.exists, RunError, "Use another file.")


def interrupted(slot: Slot, **environment: Any) -> None:
    """Leaves what an interrupted command leaves, with other values in the recorded environment."""
    with slot.open() as result:
        result.begin({}, "cpu", 3)
        assert result.metadata is not None
        here = {name: value for name, value in result.metadata.environment.items() if name != "threads"}
        result.metadata.updated(environment=here | environment).write(slot.metadata_file)
        result.journal.append([{"a": 1}])
    assert slot.peek() is State.STARTED


def test_the_number_is_the_given_one_else_that_of_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert use_threads(settings()) == torch.get_num_threads() == 2
    assert use_threads(settings(threads=3)) == torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("vlm", "threads"),
    [
        ({"workers": 4}, 2),
        ({"device": "cpu,cpu,cpu"}, 3),
        ({"workers": 99}, 1),
        ({"ray": True, "workers": 3}, 3),
        ({"ray_address": "auto", "workers": 3}, 9),  # they are on other machines
    ],
)
def test_workers_share_the_cpus(vlm: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert use_threads(load_settings({"vlm": vlm})) == threads
    assert use_threads(load_settings({"vlm": vlm, "data": {"threads": 7}})) == 7


def test_unfinished_work_keeps_its_number(slot: Slot, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    interrupted(slot, threads=3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with slot.open() as result:
        assert use_threads(settings(), result) == torch.get_num_threads() == 3
        assert use_threads(settings(threads=3), result) == 3
    assert "resuming with --threads 3" in capfd.readouterr().err


def test_another_number_is_rejected_for_unfinished_work(slot: Slot) -> None:
    interrupted(slot, threads=3)
    with slot.open() as result, pytest.raises(RunError, match=r"started with --threads 3.*--threads 3") as raised:
        use_threads(settings(threads=2), result)
    assert str(slot.unfinished_file) in str(raised.value)


@pytest.mark.parametrize("recorded", [{}, {"threads": "3"}, {"threads": 0}, {"threads": 10**9}, {"threads": True}])
def test_a_number_that_is_not_recorded_or_is_none_is_ignored(slot: Slot, recorded: dict[str, Any]) -> None:
    interrupted(slot, **recorded)
    with slot.open() as result:
        assert use_threads(settings(threads=2), result) == 2
