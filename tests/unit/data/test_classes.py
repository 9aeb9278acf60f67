"""Images with classes: in folders that are named after them, and the Hateful Memes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from icdsel.data.datasets import Split, load_split, read_dataset
from icdsel.data.readers import reader_of
from icdsel.data.readers.base import CLASS_QUESTION
from icdsel.errors import DataError
from icdsel.settings.loading import settings_from


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    return folder


def load(dataset: Path, split: str = "train", **more: Any) -> Split:
    return load_split(settings_from({"data": {"dataset": str(dataset), **more}}).data, split)


def task_of(dataset: Path) -> str:
    return read_dataset(settings_from({"data": {"dataset": str(dataset)}}).data).task


# --- folders ----------------------------------------------------------------------------------------------


def test_folders_of_classes_are_read_by_split(tmp_path: Path) -> None:
    names = ("train/polar_bear/2.JPG", "train/polar_bear/1.png", "train/ant/1.jpg", "val/zebra/1.webp", "test/9.jpg")
    folder = images(tmp_path / "set", *names, "train/ant/notes.txt", "train/.hidden/1.jpg", "train/ant/.1.jpg")
    train = load(folder)
    assert [(e.question_id, e.answer, e.answers) for e in train] == [
        ("train/ant/1.jpg", "ant", ("ant",)),
        ("train/polar_bear/1.png", "polar bear", ("polar bear",)),
        ("train/polar_bear/2.JPG", "polar bear", ("polar bear",)),
    ]
    assert {e.question for e in train} == {CLASS_QUESTION}
    assert {e.options for e in train} == {("ant", "polar bear", "zebra")}
    assert all(e.image == folder / str(e.question_id) for e in train)
    assert [e.answer for e in load(folder, "validation")] == ["zebra"]
    assert [(e.question_id, e.answers) for e in load(folder, "test")] == [("test/9.jpg", ())]
    assert task_of(folder) == "classify"


def test_folders_of_classes_need_no_splits(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", *(f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(10)))
    assert len(load(folder)) == 20
    assert len(load(folder, "validation", validation_fraction=0.2)) == 4


def test_letters_are_names_of_classes(tmp_path: Path) -> None:
    """As in sign language, where some letters are missing: "K" is not the eleventh class."""
    folder = images(tmp_path / "set", *(f"train/{name}/1.jpg" for name in "ACDK0"))
    assert sorted(e.answer for e in load(folder)) == ["0", "A", "C", "D", "K"]


def test_folders_with_data_files_are_read_as_before(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", "train/cat/1.jpg", "train/dog/1.jpg")
    row = {"file_name": "cat/1.jpg", "question": "?", "answer": "x"}
    (folder / "train/metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert [e.question for e in load(folder)] == ["?"]
    (folder / "train/metadata.jsonl").rename(folder / "all.jsonl")
    assert reader_of(folder).name == "files by split"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "names",
    [
        ("train2017/1.jpg", "val2017/1.jpg"),  # COCO's, whose images have no classes
        ("images/1.jpg",),
        ("1.jpg", "2.jpg"),
        ("train/only/1.jpg",),
        ("cat/notes.txt", "dog/notes.txt"),
    ],
)
def test_other_folders_of_images_are_not_recognised(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"is no dataset that is known[\s\S]*train/cat/, train/dog/"):
        load(images(tmp_path / "set", *names))


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", "train/polar_bear/1.jpg", "train/polar bear/1.jpg")
    with pytest.raises(DataError, match="the folders 'polar_bear' and 'polar bear' are the same class"):
        load(folder)


# --- memes ------------------------------------------------------------------------------------------------


def meme(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "img": f"img/{number:05d}.png", "text": f"look at <this> {{{number}}}"} | more


def memes(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_memes_are_classified(tmp_path: Path) -> None:
    folder = images(tmp_path / "memes", "img/00007.png")
    memes(folder / "train.jsonl", meme(7, label=1), meme(8, label=0))
    memes(folder / "dev_seen.jsonl", meme(9, label=0))
    memes(folder / "dev_unseen.jsonl", meme(9, label=0), meme(10, label=1))
    memes(folder / "test_unseen.jsonl", meme(11))
    first, second = load(folder)
    assert first.question == "Is this meme hateful? Its text is: look at <this> {7}"
    assert (first.answer, first.answers, first.options) == ("yes", ("yes",), ("no", "yes"))
    assert second.answer == "no" and first.image == folder / "img/00007.png"
    assert [e.question_id for e in load(folder, "validation")] == [9]  # the first of two files of a split
    assert [(e.question_id, e.answers) for e in load(folder, "test")] == [(11, ())]
    assert task_of(folder) == "classify"
    assert [e.answer for e in load(folder / "train.jsonl")] == ["yes", "no"]


def test_named_columns_of_memes_are_read_as_in_any_file(tmp_path: Path) -> None:
    path = memes(tmp_path / "memes/train.jsonl", meme(7, label="1"))
    for dataset in (path, path.parent):
        [example] = load(dataset, columns="question=text,answer=label")
        assert (example.question, example.answers, example.options) == ("look at <this> {7}", ("1",), ())


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    assert reader_of(tmp_path / "train.jsonl") is None


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (meme(8, label=2), "line 2 (question 8): its answer is the number 2 of an option, but it has 2 options"),
        (meme(8), 'line 2 (question 8): it has no "answers"'),
        (meme(8) | {"text": None}, "line 2: it is {"),
        ([1], "line 2: it is [1]"),
    ],
)
def test_damaged_memes_are_described(tmp_path: Path, row: Any, part: str) -> None:
    path = memes(tmp_path / "train.jsonl", meme(7, label=1), row)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(path) in str(error.value) and part in str(error.value)
