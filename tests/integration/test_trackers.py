"""Trackers beside real trainings and comparisons: they show what is in the files, and change none of it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from wandb_files import history, offline_runs, run_of, summary
from worlds import write_small_world

from icdsel.errors import SettingsError
from icdsel.trackers import TRACKERS, Tracked, Tracker

WORDS = ("--queries", 10, "--beam", 1, "--samples", 1, "--retrieval", 1, "--random", 1, "--rce-epochs", 3)
WORDS = (*WORDS, "--grpo-epochs", 1)
RUNS = Path("results/world/model_cpk")


class Interrupts(Tracker, Tracked):
    """A tracker that interrupts a training at its second epoch, once."""

    name = "interrupts"

    def __init__(self) -> None:
        self.left = 1

    def start(self, subject: Any) -> Tracked:
        return self

    def log_epoch(self, number: int, metrics: Any) -> None:
        if number == 2 and self.left:
            self.left = 0
            raise KeyboardInterrupt


class Fails(Interrupts):
    """A tracker whose server goes away."""

    name = "fails"

    def log_epoch(self, number: int, metrics: Any) -> None:
        raise ConnectionError("the server is away")


@pytest.fixture(scope="module")
def libraries() -> str:
    """The trackers whose library is installed."""
    found = [name for name in ("tensorboard", "wandb", "mlflow") if _is_there(name)]
    assert "tensorboard" in found
    return ",".join(found)


def _is_there(name: str) -> bool:
    try:
        TRACKERS[name].require()
    except SettingsError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, libraries: str) -> Iterator[Path]:
    """A run without trackers, one that was interrupted and resumed with all of them, and one with a failing tracker."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("tracked")
        patch.chdir(place)
        for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        write_small_world(Path("data"), 100, 10, 20)
        for kind in (Interrupts, Fails):
            patch.setitem(TRACKERS, kind.name, kind())
        icdsel("train", *WORDS, "--run", "plain")
        names = f"{libraries},interrupts"
        assert "interrupted" in icdsel("train", *WORDS, "--run", "tracked", "--tracker", names, code=130)
        assert "resuming after rce epoch 2" in icdsel("train", *WORDS, "--run", "tracked", "--tracker", names)
        yield place


@pytest.fixture
def epochs() -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (RUNS / "tracked/metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("phase", "epoch")} for line in lines]


def results(run: str) -> dict[str, bytes]:
    files = [path for path in (RUNS / run).iterdir() if path.suffix in (".pt", ".jsonl")]
    return {path.name: path.read_bytes() for path in files}


def test_the_bytes_of_a_training_are_the_same_with_and_without():
    assert results("tracked") == results("plain") and len(results("plain")) == 5
    assert {path.name for path in (RUNS / "plain").iterdir()} & {"wandb", "tensorboard", "tracker-id.txt"} == set()


def test_a_run_is_reused_whatever_tracks_it(libraries: str):
    for words in ((), ("--tracker", "tensorboard"), ("--tracker", libraries)):
        assert "trained already" in icdsel("train", *WORDS, "--run", "plain", *words)


def test_a_tracker_that_fails_changes_nothing_and_is_warned_of_once():
    output = " ".join(icdsel("train", *WORDS, "--run", "failed", "--tracker", "fails,tensorboard").split())
    assert output.count("the tracker fails failed: the server is away. Not logged there: epoch 1 and what follows") == 1
    assert results("failed") == results("plain")
    assert any((RUNS / "failed/tensorboard").iterdir())


def test_wandb_has_every_epoch_once_in_one_run(epochs: list[dict[str, Any]]):
    pytest.importorskip("wandb")
    files = offline_runs(RUNS / "tracked")
    run = run_of(files[-1])
    assert {run_of(path).run_id for path in files} == {run.run_id} and run.display_name == "tracked"
    assert (RUNS / "tracked/tracker-id.txt").read_text().strip() == run.run_id
    rows = sorted(history(files[-1]), key=lambda row: row["_step"])
    assert [row.pop("_step") for row in rows] == [1, 2, 3, 4]
    assert [row.keys() for row in rows] == [epoch.keys() for epoch in epochs]
    for row, epoch in zip(rows, epochs, strict=True):
        assert row == pytest.approx(epoch, rel=1e-4)  # its own process rounds them
    assert summary(files[-1])["recommended_checkpoint"] in {path.name for path in (RUNS / "tracked").iterdir()}


def test_mlflow_has_every_epoch_once_in_one_run(epochs: list[dict[str, Any]]):
    client, runs = stored()
    [run] = [run for run in runs if run.info.run_name == "tracked"]
    assert run.data.metrics.keys() == {name for epoch in epochs for name in epoch}
    for name in run.data.metrics:
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == [(number, epoch[name]) for number, epoch in enumerate(epochs, 1) if name in epoch]
    assert run.data.params["train.rce_epochs"] == "3" and run.info.status == "FINISHED"


def stored() -> tuple[Any, list[Any]]:
    for library in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(library)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('results/world/mlflow/mlflow.db').absolute()}")
    return client, list(client.search_runs([client.get_experiment_by_name("icdsel world").experiment_id]))


def test_a_comparison_is_logged_as_its_table_has_it(libraries: str):
    icdsel("infer", "--n", 12, "--shots", 1, "--selector", "random,nearest-both,zero-shot", "--run", "plain")
    icdsel("compare", "--json", "table.json", "--tracker", libraries)
    rows = json.loads(Path("table.json").read_text())
    [folder] = Path("results/world/comparisons").iterdir()
    shown = ("name", "shots", "accuracy", "low", "high", "reference", "difference", "p_value", "p_holm")
    expected = [[row[name] for name in shown] for row in rows]
    if "wandb" in libraries:
        [path] = offline_runs(folder)
        [logged] = history(path)
        table = json.loads((path.parent / "files" / logged["comparison/path"]).read_text())
        places = [table["columns"].index(name) for name in shown]
        assert [[line[place] for place in places] for line in table["data"]] == expected
    if "mlflow" in libraries:
        client, runs = stored()
        [run] = [run for run in runs if run.data.tags["icdsel.kind"] == "comparison"]
        text = Path(client.download_artifacts(run.info.run_id, "comparison.csv")).read_text()
        lines = csv.DictReader(text.splitlines())
        assert [[line[name] for name in shown] for line in lines] == [
            ["" if value is None else str(value) for value in row] for row in expected
        ]


def test_a_table_does_not_depend_on_trackers_and_takes_no_other_flag_of_training():
    icdsel("compare", "--json", "again.json")
    assert Path("again.json").read_bytes() == Path("table.json").read_bytes()
    assert "has no effect without --train" in " ".join(icdsel("compare", "--tensorboard", code=2).split())


def test_mistakes_are_found_before_any_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Interrupts, "require", lambda self: 1 / 0)
    for words in (("train", "--run", "never", "--tracker", "interrupts"), ("compare", "--tracker", "interrupts")):
        assert "the tracker interrupts cannot be used" in " ".join(icdsel(*words, code=2).split())
    assert "unknown tracker 'wandbb'" in " ".join(icdsel("train", "--tracker", "wandbb", code=2).split())
    assert not (RUNS / "never").exists()
