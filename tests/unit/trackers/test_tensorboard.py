"""What TensorBoard shows of a training is what its file of metrics holds."""

import importlib.util
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner
from worlds import write_small_world

from icdsel.artefacts.run_folder import run_name
from icdsel.cli.app import app
from icdsel.settings.loading import settings_from
from icdsel.trackers import Subject, track

PLAIN = settings_from({})
ASKED = settings_from({"train": {"tensorboard": True, "tracker": "wandb,mlflow"}})


def icdsel(*words: object, code: int = 0) -> str:
    made = CliRunner().invoke(app, [str(word) for word in words])
    output = made.output + (made.stderr if made.stderr not in made.output else "")
    assert made.exit_code == code, output + str(made.exception)
    return output


def test_every_metric_of_every_epoch_is_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_world(Path("data"), 100, 10, 20)
    words = ("train", "--queries", 10, "--rce-epochs", 2, "--grpo-epochs", 1, "--run", "seen")
    icdsel(*words, "--tensorboard")
    run = tmp_path / "results/world/model_cpk/seen"
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, list[tuple[int, float]]] = {}
    for number, epoch in enumerate(epochs, 1):
        for name, value in epoch.items():
            if name not in ("phase", "epoch"):
                expected.setdefault(name, []).append((number, value))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, curve in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in curve]
        assert [value for _, value in found] == pytest.approx([value for _, value in curve], rel=1e-6)
    # It is no part of what a run is: without it the run is the same one.
    assert "trained already" in icdsel(*words)


def test_it_is_no_part_of_a_runs_name():
    assert run_name(ASKED) == run_name(PLAIN)


def test_without_the_library_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    output = icdsel("train", "--tensorboard", code=2)
    assert 'pip install "icdsel[tensorboard]"' in output and "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_has_curves_over_the_shots_and_a_table(tmp_path):
    subject = Subject("comparison", "now", "world", tmp_path, tmp_path, {"data": {"seed": 1}})
    rows = [{"name": "run 1: a", "shots": shots, "accuracy": 50.0 + shots, "p_holm": None} for shots in (1, 2)]
    rows += [{"name": "policy", "shots": "auto", "accuracy": 60.0, "p_holm": 0.5}]
    with track(("tensorboard",), subject) as tracking:
        tracking.log_rows(rows)
    curve = EventAccumulator(str(tmp_path / "tensorboard/run_1__a"))
    curve.Reload()
    assert curve.Tags()["scalars"] == ["accuracy"]
    assert [(event.step, event.value) for event in curve.Scalars("accuracy")] == [(1, 51.0), (2, 52.0)]
    whole = EventAccumulator(str(tmp_path / "tensorboard"))
    whole.Reload()
    [event] = whole.Tensors("comparison/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    assert "| run 1: a | 2 | 52.0 |  |" in table and "| policy | auto | 60.0 | 0.5 |" in table
