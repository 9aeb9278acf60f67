"""What `check` says of icdsel's own folders and files."""

import json
from pathlib import Path

import pytest

from icdsel.check import own_files, paths
from icdsel.check.findings import Checked
from icdsel.check.paths import check
from icdsel.settings.loading import settings_from

ALL = "RL data in generated_data, runs in model_cpk, predictions in infer, caches in cache"
ANSWER = {"question_id": 1, "shots": 0, "icds": [], "prediction": "a", "accuracy": 1.0}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results of a dataset."""
    folder = tmp_path / "results/mine"
    for name, content in {
        "generated_data/rl_data_RandSampler_m.log": "",
        "generated_data/rl_data_RandSampler_m.meta.json": '{"identity": {}}',
        "model_cpk/run/run.json": '{"identity": {}}',
        "model_cpk/run/metrics.jsonl": '{"epoch": 1}\n',
        "infer/RandSampler_m/zero-shot_validation.jsonl": json.dumps(ANSWER) + "\n",
        "infer/RandSampler_m/zero-shot_validation.meta.json": '{"identity": {}, "answers": {"0": 1}}',
        "cache/servers.jsonl": '{"model": "m", "question": "?", "image": "a.png", "answer": "b"}\n',
        "cache/answers_0123abcd.jsonl": '{"prompt": "p", "answer": "a"}\n',
        "cache/train_embeddings_0123abcd.safetensors": "\x80",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="latin-1")
    return folder


def checked(path: Path) -> Checked:
    [found] = check(settings_from({}), [path])
    return found


@pytest.mark.parametrize(
    ("name", "is_a", "about"),
    [
        ("..", "icdsel's results", ALL),
        ("", "icdsel's results", ALL),
        ("generated_data", "a folder of icdsel's results", "RL data"),
        ("model_cpk", "a folder of icdsel's results", "runs"),
        ("infer", "a folder of icdsel's results", "predictions"),
        ("infer/RandSampler_m", "a folder of icdsel's results", "predictions"),
        ("cache", "a folder of icdsel's results", "caches: nothing to check"),
        ("cache/servers.jsonl", "a cache of icdsel", "the models that servers served"),
        ("cache/answers_0123abcd.jsonl", "a cache of icdsel", "answers that later commands reuse"),
        ("cache/train_embeddings_0123abcd.safetensors", "a cache of icdsel", "embeddings"),
        ("generated_data/rl_data_RandSampler_m.meta.json", "metadata of a result", "name the file beside them"),
        ("generated_data/rl_data_RandSampler_m.log", "the log of a result", "nothing to check"),
        ("model_cpk/run/metrics.jsonl", "a file of a run", "name its folder"),
        ("infer/RandSampler_m/zero-shot_validation.jsonl", "predictions", "answers: 1"),
    ],
)
def test_folders_and_files_of_results_are_recognised(results: Path, name: str, is_a: str, about: str):
    found = checked(results.parent if name == ".." else results / name)
    assert found.is_a == is_a and about in found.about and not found.findings


def test_the_same_names_elsewhere_are_read_as_data(results: Path, tmp_path: Path):
    servers = tmp_path / "servers.jsonl"
    servers.write_text('{"question": "?", "image": "a.png", "answer": "b"}\n')
    assert checked(servers).is_a == "dataset"
    assert checked(results / "model_cpk/run").is_a != "icdsel's results"


def test_predictions_that_were_cut_are_found(results: Path):
    path = results / "infer/RandSampler_m/zero-shot_validation.jsonl"
    path.with_suffix(".meta.json").write_text('{"identity": {}, "answers": {"0": 2}}')
    [finding] = checked(path).findings
    assert finding.problem == own_files.DAMAGED.problem and "1 of 2 answers at 0 shots" in finding.examples[0]


def test_what_is_unknown_is_shown_as_text(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("hello 'you'\n")
    [finding] = checked(path).findings
    assert finding.problem == paths.UNKNOWN.problem and finding.examples == ("it begins with: hello 'you'",)
