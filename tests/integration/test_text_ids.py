"""The commands on a set of one's own: ids that are text, a test split without answers, absolute paths of images."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import icdsel

ON = ("--dataset", "set", "--model", "tiny-vlm", "--pool-size", 8)
PROPOSE = ("--queries", 10, "--beam", 2, "--samples", 1, "--retrieval", 1)  # some of them earn a reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world_into: Callable[[Path], None]) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("text-ids")
    world_into(folder)
    for split, source, count in (("train", "train", 24), ("dev", "validation", 4), ("test", "tuning", 4)):
        questions = json.loads((folder / f"world/questions_{source}.json").read_text())["questions"]
        annotations = json.loads((folder / f"world/annotations_{source}.json").read_text())["annotations"]
        lines = []
        for number, (question, annotation) in enumerate(zip(questions[:count], annotations[:count], strict=True)):
            image = f"{question['image_id']:012d}.png"
            (folder / "pictures" / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"world/images/{source}/{image}", folder / "pictures" / split / image)
            record = {"id": f"{number:03d}", "image": str(folder / "pictures" / split / image)}
            record["query"] = question["question"]
            if split != "test":
                record["labels"] = [answer["answer"] for answer in annotation["answers"]]
            lines.append(json.dumps(record) + "\n")
        (folder / "set").mkdir(exist_ok=True)
        (folder / f"set/{split}.jsonl").write_text("".join(lines))
    shutil.rmtree(folder / "world")
    before = Path.cwd()
    os.chdir(folder)
    Path("icdsel.toml").write_text('[data]\nimage_dir = "pictures"\ncolumns = {answers = "labels"}\n')
    try:
        icdsel("gen-rl-data", *ON, *PROPOSE)
        icdsel("train", *ON, *PROPOSE, "--rce-epochs", 1)
        yield folder
    finally:
        os.chdir(before)


def lines(pattern: str) -> list[dict[str, object]]:
    [path] = Path("results/set").glob(pattern)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ids_are_written_as_they_are(folder: Path) -> None:
    known = {f"{number:03d}" for number in range(24)}
    for group in lines("generated_data/*.jsonl"):
        assert group["question_id"] in known and known.issuperset(group["candidate_pool_ids"])
        assert all(known.issuperset(candidate["pointer"]) for candidate in group["pointer_candidates"])


def test_scored_answers_are_compared_and_others_are_not(folder: Path) -> None:
    answer = ("infer", *ON, "--n", 4, "--shots", 1, "--selector", "policy,random")
    output = icdsel(*answer, "--split", "test")
    assert "4 of the 4 queries have no reference answers" in output and "Nothing is scored" in output
    predictions = lines("infer/*/random-*test*.jsonl")
    assert [prediction["question_id"] for prediction in predictions] == ["000", "001", "002", "003"]
    assert all(prediction["accuracy"] is None and prediction["prediction"] for prediction in predictions)
    output = icdsel("compare", *ON, *map(str, Path("results/set").glob("infer/*/random*test*.jsonl")), code=2)
    assert "nothing to compare" in output
    icdsel(*answer)
    icdsel("compare", *ON, "--json", "table.json")
    assert {row["n"] for row in json.loads(Path("table.json").read_text())} == {4}
    output = icdsel("gen-rl-data", *ON, *PROPOSE, "--split", "test", code=2)
    assert "no query of the split 'test' has reference answers" in output


def test_check_says_what_was_found(folder: Path) -> None:
    output = " ".join(icdsel("check", *ON).split())
    assert "train 24" in output and "validation 4" in output and "test 4" in output
    assert "validation from dev" in output and "question from query" in output and "answers from labels" in output
    assert "questions have no answers" in output


def test_a_missing_image_says_where_images_are_looked_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/other").mkdir(parents=True)
    Path("set/gone.jsonl").write_text(
        "".join(json.dumps({"image": f"{i}.png", "query": "?", "labels": ["x"]}) + "\n" for i in range(12))
    )
    words = ("--dataset", "set/gone.jsonl", *ON[2:], "--image-dir", tmp_path / "empty")
    output = " ".join(icdsel("gen-rl-data", *words, *PROPOSE, code=2).split())
    assert "Relative paths of images are looked up in" in output and "holds other/" in output
    Path("set/gone.jsonl").unlink()
