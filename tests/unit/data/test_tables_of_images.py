"""Tables of the library `datasets` with several images in a row, options and classes: Parquet, `save_to_disk`, hub."""

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from icdsel.data.datasets import Split, load_split, read_dataset
from icdsel.data.readers.base import CLASS_QUESTION
from icdsel.errors import DataError
from icdsel.records.examples import PLACE
from icdsel.settings.loading import settings_from

datasets = pytest.importorskip("datasets")

TEXT, NUMBER, IMAGE = datasets.Value("string"), datasets.Value("int8"), datasets.Image()
FORMS = ("Parquet", "save_to_disk", "hub")


def png(colour: str) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(encoded, "PNG")
    return encoded.getvalue()


def cell(colour: str | None) -> dict[str, Any] | None:
    return {"bytes": png(colour), "path": f"{colour}.png"} if colour else None


def table(kinds: dict[str, Any], *rows: dict[str, Any]) -> Any:
    return datasets.Dataset.from_list(list(rows), features=datasets.Features(kinds))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes splits in one of the forms, and returns settings for them."""
    held: dict[str, Any] = {}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(held))

    def write(**splits: Any) -> Any:
        name = str(tmp_path / "set")
        if request.param == "hub":
            held.update(splits)
            name = "hub:owner/name"
        elif request.param == "save_to_disk":
            datasets.DatasetDict(splits).save_to_disk(name)
        else:
            for split, part in splits.items():
                part.to_parquet(tmp_path / f"set/{split}-00000-of-00001.parquet")
        return lambda **more: settings_from({"data": {"dataset": name, "data_dir": tmp_path / "made"} | more}).data

    (tmp_path / "set").mkdir()
    return write


def load(settings: Any, split: str = "train", **more: Any) -> Split:
    return load_split(settings(**more), split)


@pytest.mark.parametrize("name", ["image", "images"])
def test_lists_of_images_are_copied(form: Any, name: str) -> None:
    kinds = {name: datasets.List(IMAGE), "question": TEXT, "answer": TEXT}
    rows = [
        {name: [cell("red"), cell("blue")], "question": "Is <image> over <image>?", "answer": "no"},
        {name: [cell("blue")], "question": "?", "answer": "yes"},
        {name: [], "question": "Text alone?", "answer": "x"},
    ]
    settings = form(train=table(kinds, *rows))
    two, one, none = load(settings)
    assert [path.read_bytes() for path in two.images] == [png("red"), png("blue")]
    assert two.question == f"Is {PLACE} over {PLACE}?"
    assert one.images == two.images[1:]  # equal images share a file
    assert none.image.name == "row-2-has-no-image" and not none.image.exists()
    assert list(load(settings)) == [two, one, none]  # also once copies are made


def test_all_splits_find_the_images_that_are_copied_for_them(form: Any) -> None:
    kinds = {"image": IMAGE, "question": TEXT, "answer": TEXT}
    about = {"question": "?", "answer": "x"}
    parts = {"train": ("red", "blue"), "validation": ("green", "white")}
    settings = form(**{split: table(kinds, *({"image": cell(one)} | about for one in parts[split])) for split in parts})
    reading = read_dataset(settings())
    for split, colours in parts.items():
        assert [e.image.read_bytes() for e in reading.splits[split]] == [png(colour) for colour in colours]


def test_rows_of_mmmu_are_read(form: Any) -> None:
    kinds = {"id": TEXT, "question": TEXT, "options": TEXT, "answer": TEXT, "question_type": TEXT}
    kinds |= {f"image_{number}": IMAGE for number in range(1, 8)}
    empty = {f"image_{number}": None for number in range(1, 8)}
    choose = {
        "id": "dev_Art_1",
        "question": "Compare <image 2> to <image 1>.",
        "options": "['older', \"the artist's\"]",
    }
    choose |= {"answer": "B", "question_type": "multiple-choice", "image_1": cell("red"), "image_2": cell("blue")}
    ask = {"id": "dev_Art_2", "question": "Compute <image 1>.", "options": "[]", "answer": "8.3"}
    ask |= {"question_type": "open", "image_1": cell("red")}
    first, second = load(form(dev=table(kinds, empty | choose, empty | ask)), "validation")
    assert [path.read_bytes() for path in first.images] == [png("blue"), png("red")]
    assert first.question == f"Compare {PLACE} to {PLACE}." and first.question_type == "multiple-choice"
    assert (first.answer, first.options) == ("the artist's", ("older", "the artist's"))
    assert (second.answers, second.options, len(second.images)) == (("8.3",), (), 1)


def test_rows_of_scienceqa_are_read(form: Any) -> None:
    kinds = {"image": IMAGE, "question": TEXT, "choices": datasets.List(TEXT), "answer": NUMBER, "hint": TEXT}
    kinds |= {"task": TEXT, "lecture": TEXT}
    row = {"image": cell("red"), "question": "Which?", "choices": ["1", "2", "0"], "answer": 2, "hint": "Look."}
    row |= {"task": "closed choice", "lecture": "Long."}
    text = row | {"image": None, "hint": "", "answer": 0, "task": "yes or no"}
    settings = form(train=table(kinds, row, text))
    first, second = load(settings)
    assert (first.question, first.answer, first.options) == ("Look.\nWhich?", "0", ("1", "2", "0"))
    assert (second.question, second.answer) == ("Which?", "1") and not second.image.exists()
    assert read_dataset(settings(), "train").task == ""
    assert load(settings, columns="hint=lecture")[0].question == "Long.\nWhich?"


@pytest.mark.parametrize("asked", [True, False])
def test_classes_are_options_of_all_rows(form: Any, asked: bool) -> None:
    kinds = {"image": IMAGE, "label": datasets.ClassLabel(names=["ant", "bee", "A"])}
    kinds |= {"question": TEXT} if asked else {}
    rows = [{"image": cell("red"), "label": label} | ({"question": "Which?"} if asked else {}) for label in (1, 2, 0)]
    unknown = table(kinds, rows[0] | {"label": -1})
    settings = form(train=table(kinds, *rows), test=unknown)
    train = load(settings)
    assert [(e.answer, e.answers) for e in train] == [("bee", ("bee",)), ("A", ("A",)), ("ant", ("ant",))]
    assert {(e.question, e.options) for e in train} == {("Which?" if asked else CLASS_QUESTION, ("ant", "bee", "A"))}
    assert load(settings, "test")[0].answers == ()
    assert read_dataset(settings(), "train").task == "classify"
    assert list(load(settings)) == list(train)  # also once copies are made


def test_classes_beside_the_answers_of_people_are_no_options(form: Any) -> None:
    kinds = {"image": IMAGE, "question": TEXT, "answers": datasets.List(TEXT)}
    kinds |= {"answer": datasets.ClassLabel(names=["ant", "bee"])}
    row = {"image": cell("red"), "question": "?", "answers": ["an ant", "ant"], "answer": 0}
    [example] = load(form(train=table(kinds, row)))
    assert (example.answer, example.answers, example.options) == ("ant", ("an ant", "ant"), ())


def test_pools_and_letters_are_copied(form: Any) -> None:
    kinds = {"id": TEXT, "image": IMAGE, "question": TEXT, "A": TEXT, "B": TEXT, "C": TEXT, "answer": TEXT}
    train = {"id": "t", "image": cell("red"), "question": "?", "A": "x", "B": "y", "C": None, "answer": "B"}
    query = table(kinds | {"pool": datasets.List(TEXT)}, train | {"id": "q", "pool": ["t"]})
    settings = form(train=table(kinds, train), validation=query)
    [example] = load(settings)
    assert (example.options, example.answer) == (("x", "y"), "y")
    assert load(settings, "validation")[0].pool == ("t",)


def test_a_named_task_is_kept(form: Any) -> None:
    kinds = {"image": IMAGE, "question": TEXT, "answer": TEXT, "kind": TEXT}
    settings = form(train=table(kinds, {"image": cell("red"), "question": "?", "answer": "x", "kind": "counting"}))
    assert read_dataset(settings(columns="task=kind"), "train").task == "counting"


def test_copies_without_options_are_made_again(tmp_path: Path) -> None:
    """Copies by earlier versions lack the columns that are read now; those that miss nothing keep their folder."""
    for names, kept in ((("other",), True), (("options",), False), (("A", "B"), False)):
        kinds = {"image": IMAGE, "question": TEXT, "answer": TEXT} | dict.fromkeys(names, TEXT)
        row = {"image": cell("red"), "question": "?", "answer": "A"} | dict.fromkeys(names, "['x', 'y']")
        row |= {"B": "y"} if "B" in names else {}
        path = tmp_path / "a.parquet"
        table(kinds, row).to_parquet(path)
        settings = settings_from({"data": {"dataset": str(path), "data_dir": tmp_path / "made"}}).data
        [example] = load_split(settings, "train")
        states = [("a.parquet", path.stat().st_size, path.stat().st_mtime_ns)]
        earlier = hashlib.sha256(repr([states, []]).encode()).hexdigest()[:12]
        assert (example.image.parent.parent.name == f"a-{earlier}") == kept


def test_a_damaged_file_of_classes_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"image": IMAGE, "label": datasets.ClassLabel(names=["ant", "bee"])}
    held = {"train": table(kinds, {"image": cell("red"), "label": 1})}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(held))
    settings = settings_from({"data": {"dataset": "hub:owner/name", "data_dir": tmp_path}}).data
    assert load_split(settings, "train")[0].answer == "bee"
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_split(settings, "train")[0].options == ("ant", "bee")
    path = tmp_path / "hub/owner--name/train.classes.json"
    assert json.loads(path.read_text()) == ["ant", "bee"]
    path.write_text("[")
    with pytest.raises(DataError, match=r"train\.classes\.json is damaged"):
        load_split(settings, "train")
