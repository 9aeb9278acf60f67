"""MLflow without a server: what it stored is read back with its own client."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import SettingsError
from icdsel.trackers import TRACKERS, Subject, require, track
from icdsel.trackers.mlflow import Mlflow

for library in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(library)
EPOCHS = [{"loss": 2.0, "kl_beta": 0.1}, {"loss": 1.5, "kl_beta": 0.1}, {"loss": 1.25, "kl_beta": 0.05}]


def log(subject: Subject, until: int) -> None:
    """Logs epochs up to a number, as a training does that starts or resumes."""
    with track(("mlflow",), subject) as tracking:
        for number, metrics in enumerate(EPOCHS[:until], 1):
            tracking.log_epoch(number, metrics)
        if until == len(EPOCHS):
            tracking.log_recommended("rce_epoch2.pt")


def runs(uri: str) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = client.search_experiments(filter_string="name LIKE 'icdsel%'")
    return client, list(client.search_runs([one.experiment_id for one in experiments]))


def store(subject: Subject) -> str:
    return f"sqlite:///{subject.results / 'mlflow/mlflow.db'}"


def test_a_resumed_training_is_one_run_with_every_epoch_once(subject, connections, capfd, monkeypatch):
    monkeypatch.chdir(subject.folder.parent)
    with pytest.raises(KeyboardInterrupt), track(("mlflow",), subject) as tracking:
        tracking.log_epoch(1, EPOCHS[0])
        raise KeyboardInterrupt
    client, [run] = runs(store(subject))
    assert run.info.status == "KILLED"
    changed = {**subject.settings, "train": {"rce_lr": 1e-4, "device": "cuda:1", "tracker": ["mlflow"]}}
    log(dataclasses.replace(subject, settings=changed), 3)  # continued on another machine
    client, [run] = runs(store(subject))
    for name in EPOCHS[0]:
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == [(number, epoch[name]) for number, epoch in enumerate(EPOCHS, 1)]
    assert (run.info.status, run.info.run_name, run.data.tags["recommended_checkpoint"]) == (
        "FINISHED",
        "mine",
        "rce_epoch2.pt",
    )
    assert run.data.params == {
        "data.dataset": "world",
        "train.rce_lr": "0.0001",
        "train.tracker": "['wandb']",
        "train.device": "cuda:1",
    }
    assert client.get_experiment(run.info.experiment_id).name == "icdsel world"
    assert not [tag for tag in run.data.tags if "git" in tag or "source" in tag]
    assert connections == []
    assert list(subject.folder.parent.iterdir()) == [subject.folder]
    shown = capfd.readouterr()
    assert shown.out == "" and all(line.startswith("MLflow logs to ") for line in shown.err.splitlines())


def test_another_training_is_another_run(subject):
    log(subject, 3)
    log(dataclasses.replace(subject, id="f" * 16), 1)
    _, found = runs(store(subject))
    assert sorted(len(run.data.tags.keys() & {"recommended_checkpoint"}) for run in found) == [0, 1]


def test_a_comparison_is_a_table_among_the_artefacts(subject):
    rows = [{"name": "a", "shots": 1, "accuracy": 50.5}, {"name": 'b, "c"', "shots": "auto", "accuracy": None}]
    with track(("mlflow",), dataclasses.replace(subject, kind="comparison")) as tracking:
        tracking.log_rows(rows)
    client, [run] = runs(store(subject))
    text = Path(client.download_artifacts(run.info.run_id, "comparison.csv")).read_text()
    assert list(csv.DictReader(io.StringIO(text))) == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in rows
    ]
    assert (subject.results / "mlflow/artifacts").is_dir()


def test_its_store_and_experiment_are_those_of_its_variables(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "icdsel of mine")
    monkeypatch.chdir(tmp_path)
    require(("mlflow",))
    log(subject, 1)
    client, [run] = runs(f"sqlite:///{tmp_path / 'own.db'}")
    assert client.get_experiment(run.info.experiment_id).name == "icdsel of mine"
    assert not (subject.results / "mlflow").exists()


@pytest.mark.parametrize(("uri", "limit"), [("nonsense://here", 60), ("http://127.0.0.1:9", 1)])
def test_a_wrong_or_silent_server_is_an_error_before_any_work(uri: str, limit: float, monkeypatch):
    tracker = Mlflow()
    tracker.limit = limit
    monkeypatch.setitem(TRACKERS, "mlflow", tracker)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(SettingsError, match=r"the tracker mlflow cannot be used: .*leave it out"):
        require(("mlflow",))
