"""Queries of a file: several images, options, and what is wrong with a line."""

import json
from pathlib import Path

import pytest
from bundles import Bundled

from icdsel.choosing.selector import Selector
from icdsel.errors import DataError
from icdsel.records.examples import PLACE
from icdsel.stages.new_queries import queries_of_file


@pytest.fixture(scope="module")
def selector(bundled: Bundled) -> Selector:
    return Selector.load(bundled.folder)


@pytest.fixture
def images(bundled: Bundled, tmp_path: Path) -> list[str]:
    held_out = bundled.session.split("validation")
    for name, example in zip(("a.png", "b.png"), held_out, strict=False):
        (tmp_path / name).write_bytes(example.image.read_bytes())
    return ["a.png", "b.png"]


def written(folder: Path, *lines: dict) -> Path:
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_several_images_stand_where_the_question_says(selector: Selector, images: list[str], tmp_path: Path) -> None:
    lines = [{"image": images, "question": text} for text in ("Which?", "<image 2> or <image 1>?", "Which? ")]
    first, placed, same = queries_of_file(selector, written(tmp_path, *lines[:2], lines[2] | {"question_id": 7}))
    assert [path.name for path in first.images] == ["a.png", "b.png"] and first.question == "Which?"
    assert [path.name for path in placed.images] == ["b.png", "a.png"]
    assert placed.question == f"{PLACE} or {PLACE}?" and same.question_id == 7
    assert len({first.question_id, placed.question_id}) == 2
    [choice] = selector.choose_all([placed], 1)
    *_, turn = choice.messages
    assert [part["type"] for part in turn["content"][-4:]] == ["image_url", "text", "image_url", "text"]


def test_options_belong_to_a_query(selector: Selector, images: list[str], tmp_path: Path) -> None:
    line = {"image": images[0], "question": "Which?"}
    with_options, other = queries_of_file(
        selector, written(tmp_path, line | {"options": ["cat", "dog"]}, line | {"options": ["cat", "cow"]})
    )
    assert with_options.options == ("cat", "dog") and with_options.question_id != other.question_id


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": [], "question": "Which?"}, 'it has no "image"'),
        ({"image": ["a.png", 3], "question": "Which?"}, 'it has no "image"'),
        ({"image": ["a.png", "b.png"], "question": "<image>?"}, "its question has 1 mark"),
        ({"image": "a.png", "question": "Which?", "options": "cat"}, 'its "options" are not a list of texts'),
        ({"image": ["a.png", "c.png"], "question": "Which?"}, "c.png is missing"),
    ],
)
def test_what_is_wrong_is_told(selector: Selector, images: list[str], tmp_path: Path, line: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        queries_of_file(selector, written(tmp_path, line))
