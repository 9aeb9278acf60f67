"""Own data that say what their task is are read, answered and compared as such without a flag."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from PIL import Image

SMALL = ("--model", "tiny-vlm", "--pool-size", 4)


def lines_of(pattern: str) -> list[dict[str, Any]]:
    [path] = Path("results").glob(pattern)
    return [json.loads(line) for line in path.read_text().splitlines()]


def picture(path: Path, colour: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), colour).save(path)
    return path.name


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_multiple_choice_with_two_images_by_letters() -> None:
    rows = []
    for number in range(12):
        right = random.Random(number).choice("AB")
        rows.append(
            {
                "question_id": number,
                "images": [picture(Path(f"{number}a.png"), "red"), picture(Path(f"{number}b.png"), "blue")],
                "question": "<image 1> or <image 2>: which is red?",
                "options": ["the first", "the second"],
                "answer": right,
                "split": "train" if number < 8 else "validation",
                "task": "choice",
            }
        )
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = icdsel("infer", "--dataset", "pairs.jsonl", *SMALL, "--shots", 2, "--selector", "random", "--n", 4)
    assert "Accuracy in points" in output and "VQA" not in output
    records = lines_of("pairs/infer/*/random-*.jsonl")
    assert {record["task"] for record in records} == {"choice"} and len(records) == 4
    assert all(record["prompt_tokens"] > 100 for record in records)  # three examples of two images


def test_a_folder_of_classes() -> None:
    for split, count in (("train", 5), ("val", 2)):
        for colour in ("blue", "red"):
            for number in range(count):
                picture(Path(f"colours/{split}/{colour}/{number}.png"), colour)
    words = ("--dataset", "colours", *SMALL, "--shots", 1, "--selector", "nearest-image", "--choice-by", "rank")
    output = icdsel("infer", *words, "--n", 4)
    assert "Accuracy in points" in output
    records = lines_of("colours/infer/*/nearest-image_*.jsonl")
    assert {record["prediction"] for record in records} <= {"blue", "red"}
    assert {name for record in records for name in record["statistics"]} == {"macro-F1", "AUROC"}
    compared = icdsel("compare", "--dataset", "colours", *SMALL, "--choice-by", "rank")
    assert "AUROC, of all queries together" in compared and "macro-F1, of all queries together" in compared


def test_a_task_that_is_named_counts_before_that_of_the_data() -> None:
    row = {"question_id": 1, "image": picture(Path("a.png"), "red"), "question": "What?", "answer": "red"}
    other = row | {"question_id": 2, "image": picture(Path("b.png"), "blue"), "split": "validation"}
    Path("set.jsonl").write_text(json.dumps(row | {"task": "classify"}) + "\n" + json.dumps(other) + "\n")
    words = ("--dataset", "set.jsonl", "--model", "tiny-vlm", "--pool-size", 1, "--shots", 1, "--selector", "random")
    assert "VQA accuracy" in icdsel("infer", *words, "--task", "vqa")
    assert "it has 0 options" in icdsel("infer", *words, code=2)


def test_a_pool_that_a_query_brings_and_that_is_too_small_is_told() -> None:
    rows = [
        {"question_id": number, "image": picture(Path(f"{number}.png"), "red"), "question": "What?", "answer": "red"}
        for number in range(4)
    ]
    rows[3] |= {"split": "validation", "pool": [0, 1]}
    Path("set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("infer", "--dataset", "set.jsonl", "--model", "tiny-vlm", "--pool-size", "all", "--selector", "random")
    told = " ".join(icdsel(*words, "--shots", 3, code=2).split())
    assert "question 3 brings a pool of 2 examples, of which 2 may be shown: 3 shots need more" in told
    icdsel(*words, "--shots", 2)
    [record] = lines_of("set/infer/*/random-*.jsonl")
    assert set(record["icds"]) == {0, 1}
