"""Multiple choice and classes, from RL data to the comparison, on small worlds with options."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from worlds import write_small_world

WORLDS = {"world-choice": ("choice", 4), "world-classes": ("classify", 24)}
FEW = """
[data]
pool_size = 16
[proposals]
queries = 8
beam = 2
samples = 1
retrieval = 1
random = 1
"""


def lines_of(pattern: str) -> list[dict[str, Any]]:
    [path] = Path("results").glob(pattern)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a world in whose folder everything was run."""
    folder, before = tmp_path_factory.mktemp("options"), Path.cwd()
    write_small_world(folder / "data", train=60, tuning=4, validation=12, name=request.param)
    (folder / "icdsel.toml").write_text(FEW)
    os.chdir(folder)
    try:
        icdsel("train", "--dataset", request.param, "--reward-mode", "margin", "--rce-epochs", 1)
        icdsel("infer", "--dataset", request.param, "--shots", 1, "--selector", "policy,random,nearest-both")
        yield request.param
    finally:
        os.chdir(before)


def test_rl_data_have_the_margin_of_the_right_option(world: str) -> None:
    task, _ = WORLDS[world]
    groups = lines_of(f"{world}/generated_data/*.jsonl")
    assert {group["task"] for group in groups} == {task}
    candidates = [candidate for group in groups for candidate in group["pointer_candidates"]]
    assert len(candidates) > 20
    for candidate in candidates:  # the option ahead of all others is the answer
        assert (candidate["vqa_margin"] > 0) == (candidate["vqa_correct"] == 1)
        assert candidate["vqa_acc_score"] == candidate["vqa_correct"]
    assert len({candidate["vqa_margin"] for candidate in candidates}) > 10


def test_every_prediction_is_one_of_the_options(world: str) -> None:
    task, count = WORLDS[world]
    data = Path("data") / world
    questions = json.loads((data / "questions_validation.json").read_text())["questions"]
    options = {question["question_id"]: question["multiple_choices"] for question in questions}
    assert {len(own) for own in options.values()} == {count}
    for record in lines_of(f"{world}/infer/*/random-*.jsonl"):
        assert record["prediction"] in options[record["question_id"]] and record["task"] == task


def test_the_table_speaks_of_accuracy_not_of_vqa(world: str) -> None:
    output = icdsel("compare", "--dataset", world, "--html", "page.html", "--markdown", "t.md")
    page = Path("page.html").read_text()
    assert "Accuracy (accuracy) in points, n = 12 queries" in output
    assert ("macro-F1, of all queries together" in output) == (world == "world-classes")
    assert ("macro-F1, interval of Δ" in Path("t.md").read_text()) == (world == "world-classes")
    assert ('<th scope="col">macro-F1</th>' in page) == (world == "world-classes")
    for text in (output, Path("t.md").read_text(), page[page.index("<body") : page.rindex("</main>")]):
        assert "VQA" not in text


def test_the_check_has_nothing_to_say(world: str) -> None:
    assert "no problems" in icdsel("check", "--dataset", world)


def test_options_that_are_missing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_world(tmp_path / "data", train=10, tuning=2, validation=2)
    output = icdsel("infer", "--dataset", "world", "--task", "choice", "--selector", "random", "--n", 2, code=2)
    assert "question 135: it has 0 options" in output and 'add "options" to the record (2 such examples)' in output
    assert output.count("\n") == 1 and not list(Path("results").glob("*/infer/*/*.jsonl"))
