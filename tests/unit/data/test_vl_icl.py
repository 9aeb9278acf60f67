"""Folders of VL-ICL Bench, in the forms of its tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from icdsel.check.dataset import check_dataset
from icdsel.data.datasets import load_split, read_dataset
from icdsel.data.rows import Reading
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.settings.loading import settings_from


def task(folder: Path, name: str, query: Any, support: Any, *images: str) -> Path:
    own = folder / "VL-ICL" / name
    own.mkdir(parents=True)
    (own / "query.json").write_text(json.dumps(query))
    (own / "support.json").write_text(json.dumps(support))
    for image in images:
        place = folder / "VL-ICL" / image
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"image")
    return own


def read(folder: Path, refuse: Any = None) -> Reading:
    settings = settings_from({"data": {"dataset": str(folder)}}).data
    return read_dataset(settings, refuse=refuse) if refuse else read_dataset(settings)


def split(folder: Path, name: str) -> dict[Any, Example]:
    loaded = load_split(settings_from({"data": {"dataset": str(folder)}}).data, name)
    return {example.question_id: example for example in loaded}


def test_support_is_for_training_and_queries_are_for_validation(tmp_path: Path) -> None:
    def counted(number: int, place: str) -> dict[str, Any]:
        return {"image": [f"clevr/{place}/{number}.png"], "question": "size: large", "answer": number}

    support = [counted(3, "support") | {"id": "CLEVR_3"}, counted(4, "support") | {"id": "CLEVR_4"}]
    queries = [counted(5, "query") | {"id": "CLEVR_5"}]
    folder = task(tmp_path, "clevr", queries, support, "clevr/support/3.png", "clevr/query/5.png")
    train = split(folder, "train")
    assert [*train] == ["CLEVR_3", "CLEVR_4"] and train["CLEVR_3"].answers == ("3",)
    assert train["CLEVR_3"].image == folder / "support/3.png" and train["CLEVR_3"].image.is_file()
    [query] = split(folder, "validation").values()
    assert (query.question, query.answer, query.pool) == ("size: large", "5", None)
    reading = read(folder)
    assert reading.names == {"support": "train", "query": "validation"}


def test_two_images_of_a_question_stay_together(tmp_path: Path) -> None:
    pair = {"image": ["m/a.png", "m/b.png"], "question": "Match?", "answer": "yes"}
    folder = task(tmp_path, "matching_mi", [pair], [{"same": pair, "diff": pair | {"answer": "no"}}] * 2)
    train = split(folder, "train")
    assert {key: example.answer for key, example in train.items()} == {
        "0-same": "yes",
        "0-diff": "no",
        "1-same": "yes",
        "1-diff": "no",
    }
    assert all([image.name for image in example.images] == ["a.png", "b.png"] for example in train.values())
    assert split(folder, "validation")[0].pool is None


@pytest.mark.parametrize("images", [["o/a.png"], ["o/a.png", "o/b.png"]])
def test_a_query_of_an_operator_learns_from_its_answers(tmp_path: Path, images: list[str]) -> None:
    asked = {"image": images, "question": "What is the result?"}
    support = [asked | {"id": "s1", "answer": [9, 3, 18]}, asked | {"id": "s2", "answer": [5, 1, 6]}]
    queries = [asked | {"id": "q1", "operator": "x", "answer": 8}, asked | {"id": "q2", "operator": "+", "answer": 6}]
    folder = task(tmp_path, "operator_induction", queries, support)
    train, validation = split(folder, "train"), split(folder, "validation")
    assert {key: train[key].answer for key in ("s1-plus", "s1-minus", "s1-times", "s2-times")} == {
        "s1-plus": "9",
        "s1-minus": "3",
        "s1-times": "18",
        "s2-times": "6",
    }
    assert len(train) == 6 and all(len(example.images) == len(images) for example in train.values())
    assert validation["q1"].pool == ("s1-times", "s2-times") and validation["q2"].pool == ("s1-plus", "s2-plus")
    assert train["s1-minus"].pool == ("s2-minus",)


def test_questions_of_several_operators_are_no_repetitions(tmp_path: Path) -> None:
    asked = {"image": ["o/a.png"], "question": "What is the result?"}
    support = [{"image": [f"o/{i}.png"], "question": "What is the result?", "answer": [1, 2, 3]} for i in range(3)]
    folder = task(tmp_path, "operator_induction", [asked | {"operator": "x", "answer": 8}], support)
    checked = check_dataset(settings_from({"data": {"dataset": str(folder)}}), "a", images=False)
    assert not [one for one in checked.findings if "repeated" in one.problem]


def open_query(key: str, *classes: str) -> dict[str, Any]:
    held = {
        name: {"images": [f"open_mi/support/{key}-{name}-{i}.jpg" for i in range(2)], "caption": f"This is a {name}"}
        for name in classes
    }
    asked = {"image": [f"open_mi/query/{key}.jpg"], "question": "This is a", "answer": classes[0]}
    return asked | {"id": key, "classes": list(classes), "support": held}


def test_a_query_with_support_of_its_own_learns_from_that_alone(tmp_path: Path) -> None:
    """The same made-up word means another class in each query."""
    folder = task(
        tmp_path,
        "open_mi",
        [open_query("q1", "dax", "blicket"), open_query("q2", "blicket", "dax")],
        [{"image": ["unused.jpg"]}],
        "open_mi/support/q2-dax-1.jpg",
    )
    train, validation = split(folder, "train"), split(folder, "validation")
    assert validation["q1"].pool == ("q1-dax-0", "q1-dax-1", "q1-blicket-0", "q1-blicket-1")
    assert len(train) == 8 and set(validation["q2"].pool or ()) == {key for key in train if str(key).startswith("q2")}
    example = train["q2-dax-1"]
    assert (example.question, example.answer, example.options) == ("This is a", "dax", ())
    assert example.image.is_file()
    assert example.pool == ("q2-blicket-0", "q2-blicket-1", "q2-dax-0")
    assert validation["q1"].answers == ("dax",)


def test_objects_without_ids_are_numbered(tmp_path: Path) -> None:
    queries = [{k: v for k, v in open_query(key, "dax", "wug").items() if k != "id"} for key in "ab"]
    folder = task(tmp_path, "open_mi", queries, [])
    assert [example.pool for example in split(folder, "validation").values()][1] == (
        *("1-dax-0", "1-dax-1"),
        *("1-wug-0", "1-wug-1"),
    )


@pytest.mark.parametrize(
    ("query", "support", "part"),
    [
        ([{"task_label": "dax", "classes": []}], [], "query.json: the answers of this task are images"),
        ([{"latent": "color", "task": "x"}], [], "the answers of this task are images"),
        ({"a": 1}, [], 'query.json: "a": the file should be a list of objects, but this is 1'),
        (
            [open_query("q", "dax") | {"support": ["x"]}],
            [],
            'query.json: number 1: its "support" should hold the images',
        ),
        (
            [{"image": ["a"], "question": "?", "answer": 1, "operator": "/"}],
            [{"image": ["a"], "question": "?", "answer": [1, 2, 3]}],
            "query.json: number 1: its operator is '/', not one of +, -, x",
        ),
        (
            [{"image": ["a"], "question": "?", "answer": 1, "operator": "+"}],
            [{"image": ["a"], "question": "?", "answer": [1, 2]}],
            "support.json: number 1: it should have 3 answers, one for each of +, -, x, but its answer is [1, 2]",
        ),
        (
            [{"question": "size: large", "answer": 1}],
            [{"question": "size: large", "answer": 1}],
            'support.json: number 1 (question 0): it has no "image"',
        ),
    ],
)
def test_tasks_that_cannot_be_read_are_described(tmp_path: Path, query: Any, support: Any, part: str) -> None:
    folder = task(tmp_path, "any", query, support)
    with pytest.raises(DataError) as error:
        read(folder)
    assert part in str(error.value)
    errors: list[str] = []
    read(folder, lambda error: errors.append(str(error)))
    assert sum(part in message for message in errors) == 1 or "should hold" in part
