"""TSV as VLMEvalKit writes it: images in base64, alone, in lists, or shared by the index of another row."""

import base64
import csv
import random
from pathlib import Path
from typing import Any

import pytest

from icdsel.data.datasets import Split, load_split, read_dataset
from icdsel.errors import DataError
from icdsel.records.examples import PLACE
from icdsel.settings.loading import settings_from

RED, BLUE, LARGE = (b"\x89PNG\r\n\x1a\n" + bytes([kind]) * size for kind, size in ((1, 60), (2, 60), (3, 200_000)))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def tsv(path: Path, *rows: dict[str, Any]) -> Path:
    names = [*dict.fromkeys(name for row in rows for name in row)]
    with path.open("w", encoding="utf-8", newline="") as file:  # as pandas writes it
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(index: Any, image: Any, answer: str = "A", **more: Any) -> dict[str, Any]:
    about = {"index": index, "image": image, "question": f'Say "which",\nof {index}?', "hint": ""}
    return about | {"A": "yes", "B": 2, "C": "", "answer": answer, "category": "x", "split": "dev"} | more


def load(path: Path, split: str = "validation", **more: Any) -> Split:
    data = {"dataset": str(path), "data_dir": path.parent / "made"} | more
    return load_split(settings_from({"data": data}).data, split)


def contents(split: Split) -> list[list[bytes]]:
    return [[image.read_bytes() for image in example.images] for example in split]


def test_rows_share_the_image_of_another_row(tmp_path: Path) -> None:
    """As in circular evaluation: the row with the image may come before or after, and belong to another split."""
    rows = [row(1000007, 7, "B"), row(7, encoded(RED)), row(9, encoded(LARGE)), row(1000009, " 9 "), row(3, 9)]
    path = tsv(tmp_path / "a.tsv", *rows, row(4, 7, split="test"), row(5, "photos/a.png"))
    split = load(path)
    assert [e.question_id for e in split] == [3, 5, 7, 9, 1000007, 1000009]
    assert [e.answer for e in split] == ["yes", "yes", "yes", "yes", "2", "yes"]
    assert split[0].options == ("yes", "2") and split[0].question == 'Say "which",\nof 3?'
    assert split.by_id(5).image == tmp_path / "photos/a.png"
    del rows
    images = {e.question_id: e.image for e in split}
    assert images[7] == images[1000007] and images[7].read_bytes() == RED
    assert images[3] == images[9] == images[1000009] and images[9].read_bytes() == LARGE
    assert split.by_id(7).image_id == split.by_id(1000007).image_id
    assert load(path, "test")[0].image.read_bytes() == RED


def test_several_images_are_a_list_in_one_cell(tmp_path: Path) -> None:
    marked = {"question": "Is <image 2> like <image 1>?"}
    rows = [row(1, str([encoded(RED), encoded(BLUE)]), **marked), row(2, 1, **marked)]
    rows.append(row(3, str([encoded(LARGE), encoded(RED)])))  # longer than lists of answers may be
    rows.append(row(4, "", image_path="['a.png', 'b.png']"))
    split = load(tsv(tmp_path / "a.tsv", *rows))
    assert contents(Split("", split[:3])) == [[BLUE, RED], [BLUE, RED], [LARGE, RED]]
    assert split[0].question == f"Is {PLACE} like {PLACE}?"
    assert [image.name for image in split[3].images] == ["a.png", "b.png"]


def test_the_image_counts_before_its_path(tmp_path: Path) -> None:
    [example] = load(tsv(tmp_path / "a.tsv", row(1, encoded(RED), image_path="1.png")))
    assert example.image.read_bytes() == RED


def test_an_index_without_an_image_is_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "a.tsv", row(1, encoded(RED)), row(2, 8), row(3, 2))
    errors: list[str] = []
    settings = settings_from({"data": {"dataset": str(path), "data_dir": tmp_path / "made"}}).data
    reading = read_dataset(settings, refuse=lambda error: errors.append(str(error)))
    assert [e.question_id for e in reading.splits["validation"]] == [1]
    assert [error.partition(". ")[0] for error in errors] == [
        f"{path}: line 5: its image is 8, but no row with this index holds an image",
        f"{path}: line 7: its image is 2, but no row with this index holds an image",
    ]
    with pytest.raises(DataError, match="line 5"):
        load(path)


def test_answers_and_hints_of_rows_are_those_of_their_options(tmp_path: Path) -> None:
    rows = [row(1, encoded(RED), "B", hint="Look left."), row(2, encoded(BLUE), "", split="test")]
    path = tsv(tmp_path / "a.tsv", *rows)
    assert load(path)[0].question.startswith("Look left.\nSay")
    assert load(path, "test")[0].answers == ()
    with pytest.raises(DataError, match=r"line \d+ \(question 3\): its answer 'D' is none of its options"):
        load(tsv(tmp_path / "b.tsv", row(3, encoded(RED), "D")))


def test_every_row_finds_its_image_in_any_order(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [row(number, encoded(RED + bytes([number]) * 60)) for number in range(40)]
    rows += [row(1000 + number, rng.randrange(40)) for number in range(60)]
    expected = {one["index"]: one["image"] if one["index"] >= 1000 else one["index"] for one in rows}
    rng.shuffle(rows)
    split = load(tsv(tmp_path / "a.tsv", *rows))
    assert {e.question_id: e.image.read_bytes()[-1] for e in split} == expected
