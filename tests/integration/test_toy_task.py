"""A task that is not VQA goes through every command, from RL data to the page, without a change to the package."""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from toy_task import letters_task

from icdsel.data.world import CODE_QUESTIONS, all_scenes, draw, world_codes

FEW = ("--dataset", "codes.jsonl", "--task", "letters", "--model", "tiny-vlm", "--pool-size", "16")
PROPOSE = ("--queries", "24", "--beam", "2", "--samples", "1", "--retrieval", "2", "--random", "2")
RL_DATA = "results/codes/generated_data/rl_data_RandSampler_tiny-vlm_pool-size-16.jsonl"


def write_codes(folder: Path) -> None:
    """60 training and 20 validation examples of the world, each with the code as its only answer, in upper case."""
    rng, codes, scenes = random.Random(7), world_codes(), all_scenes()
    lines = []
    for i in range(80):
        scene, attribute = rng.choice(scenes), rng.choice(("colour", "shape"))
        draw(scene, rng).save(folder / f"{i}.png")
        line = {"question_id": 100 + i, "image": f"{i}.png", "split": "train" if i < 60 else "validation"}
        question = rng.choice(CODE_QUESTIONS).format(attribute=attribute)
        code = codes[attribute, scene.value(attribute)]
        lines.append(json.dumps(line | {"question": question, "answers": [code], "answer": code.upper()}))
    (folder / "codes.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which RL data were generated, a policy trained, and queries answered."""
    folder, before = tmp_path_factory.mktemp("letters"), Path.cwd()
    write_codes(folder)
    os.chdir(folder)
    try:
        with letters_task():
            icdsel("train", *FEW, *PROPOSE, "--rce-epochs", 2, "--grpo-epochs", 1, "--online", "--online-samples", 1)
            icdsel("infer", *FEW, "--n", 20, "--shots", "1,2", "--selector", "policy,random,nearest-both")
            yield folder
    finally:
        os.chdir(before)


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_rl_data_name_the_task_and_have_scores_above_1_without_correctness(folder: Path) -> None:
    groups = lines_of(RL_DATA)
    assert len(groups) == 24 and {group["task"] for group in groups} == {"letters"}
    candidates = [candidate for group in groups for candidate in group["pointer_candidates"]]
    scores = {candidate["vqa_acc_score"] for candidate in candidates}
    assert {0.0, 3.0} < scores <= {0.0, 1.0, 2.0, 3.0}
    assert {candidate["vqa_correct"] for candidate in candidates} == {None}
    assert {candidate["vqa_gt_prob"] for candidate in candidates} == {None}


def test_a_policy_is_trained_on_the_scores(folder: Path) -> None:
    run = next(Path("results/codes/model_cpk").glob("*/run.json"))
    metadata = json.loads(run.read_text())
    assert (metadata["identity"]["data.task"], metadata["identity"]["data.metric"]) == ("letters", "leading")
    epochs = lines_of(str(run.with_name("metrics.jsonl")))
    assert [(epoch["phase"], epoch["epoch"]) for epoch in epochs] == [("rce", 1), ("rce", 2), ("grpo", 1)]
    # A reward is the score alone, as nothing is correct: up to 3.
    assert all(1 < epoch["oracle_reward"] <= 3 for epoch in epochs)
    assert {record["task"] for record in lines_of(str(run.with_name("online.jsonl")))} == {"letters"}


def test_predictions_have_the_scores_of_the_tasks_metrics(folder: Path) -> None:
    paths = list(Path("results/codes/infer").glob("*/*.jsonl"))
    assert len(paths) == 5  # with zero-shot and the majority answer
    for record in (record for path in paths for record in lines_of(str(path))):
        assert record["task"] == "letters" and 0 <= record["accuracy"] <= record["accuracy_in-place"] <= 3
        assert not any(key.startswith("accuracy_o") for key in record)  # official, openflamingo


def test_the_comparison_speaks_of_letters(folder: Path) -> None:
    output = icdsel("compare", *FEW, "--json", "t.json", "--csv", "t.csv", "--markdown", "t.md")
    markdown = Path("t.md").read_text()
    for text in (output, markdown):
        assert "Letters in common (leading), n = 20 queries" in text
        assert "McNemar" not in text and "correct:" not in text and "accuracy" not in text.lower()
    assert re.search(r"policy run 1 +(\d+ +)?\d\.\d\d +\d\.\d\d … \d\.\d\d", output)
    rows = json.loads(Path("t.json").read_text())
    assert {row["task"] for row in rows} == {"letters"}
    best = max(row["accuracy"] for row in rows)
    assert 1 < best <= 3 and all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    assert {(row["correct"], row["mcnemar_p"]) for row in rows} == {(None, None)}
    assert any(row["p_value"] is not None for row in rows)
    assert f"| {best:.2f} |" in markdown
    runs = icdsel("runs")
    assert re.search(r"2: \d\.\d\d\b", runs)


def test_the_page_speaks_of_letters(folder: Path) -> None:
    icdsel("compare", *FEW, "--html", "page.html", "--plots", "plots")
    page = Path("page.html").read_text()
    text = page[page.index("<body") : page.rindex("</main>")]
    assert "Letters in common" in text and '<h2 id="accuracy-heading">Letters</h2>' in text
    for absent in ("VQA", "McNemar", ">Correct<", "No selector is right", "✓ right", "no pointer correct", "Accuracy"):
        assert absent not in text
    assert re.search(r'class="verdict scored">letters \d\.\d\d<', text)
    assert "queries for which it finds a best pointer" in text and "<dt>Task</dt><dd>letters</dd>" in text
    assert Path("plots/accuracy.svg").is_file() and Path("plots/landscape.svg").is_file()


def test_data_of_another_task_are_rejected(folder: Path) -> None:
    vqa = [word for word in FEW if word not in ("--task", "letters")]
    output = icdsel("train", *vqa, "--rl-data", RL_DATA, "--run", "other", code=2)
    assert "the RL data are of the task letters, not of vqa: use --task letters" in " ".join(output.split())
    checked = icdsel("check", RL_DATA, *vqa, code=1)
    assert "of another task" in checked and "no correct pointer" not in checked
    assert "cannot be converted: Lever-Plus knows only VQA" in " ".join(
        icdsel("convert", RL_DATA, *vqa, code=2).split()
    )
    icdsel("infer", *vqa, "--n", 20, "--shots", "1", "--selector", "random")
    both = list(Path("results/codes/infer").iterdir())
    assert len(both) == 2  # a folder for each task
    output = " ".join(icdsel("compare", *FEW, *both, "--allow-different", code=2).split())
    assert "rows of different tasks have no score in common: letters, vqa" in output


def test_check_finds_nothing_wrong_with_the_task(folder: Path) -> None:
    run = next(Path("results/codes/model_cpk").glob("*/run.json")).parent
    icdsel("check", RL_DATA, run, "codes.jsonl", *FEW[2:], "--dataset", "codes.jsonl", "--json", "check.json")
    checked = json.loads(Path("check.json").read_text())
    problems = {finding["problem"] for one in checked["checked"] for finding in one["findings"]}
    assert checked["must_be_fixed"] == 0
    assert not any("correct" in problem or "fewer than" in problem for problem in problems)


def test_a_metric_of_another_task_is_rejected(folder: Path) -> None:
    output = " ".join(icdsel("gen-rl-data", *FEW, "--metric", "official", code=2).split())
    assert "unknown metric of the task letters 'official': choose one of leading, in-place" in output
