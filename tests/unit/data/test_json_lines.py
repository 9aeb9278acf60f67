"""Datasets in files of JSON lines, through `load_split`."""

import json
from pathlib import Path
from typing import Any

import pytest

from icdsel.data.datasets import Split, load_split
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.settings.tables import DataSettings
from icdsel.store.fingerprints import fingerprint_examples

Record = dict[str, Any]


def line(question_id: int, **more: Any) -> Record:
    return {"question_id": question_id, "image": "a.jpg", "question": "What?", "answers": ["cat"]} | more


def write(folder: Path, *records: Any, name: str = "my-set.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(path: Path | str, split: str = "train", **more: Any) -> Split:
    return load_split(DataSettings(dataset=str(path), **more), split)


def refusal(path: Path | str, split: str = "train", **more: Any) -> str:
    with pytest.raises(DataError) as error:
        load(path, split, **more)
    return str(error.value)


# --- what is read -----------------------------------------------------------------------------------------


def test_examples_by_hand(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        line(9, image="photos/b.png", question="¿Qué?", answers=["gato", "cat", "gato"], image_id=7),
        line(2, answers=["dog", "puppy"], answer="puppy"),
        line(5, answers=[{"answer": "ride", "raw_answer": "riding"}, {"answer": "ride", "raw_answer": "rides"}]),
    )
    split = load(path)
    made_up = split[0].image_id
    assert list(split) == [
        Example(2, made_up, tmp_path / "a.jpg", "What?", "puppy", ("dog", "puppy")),
        Example(5, made_up, tmp_path / "a.jpg", "What?", "riding", ("ride", "ride"), ("riding", "rides")),
        Example(9, 7, tmp_path / "photos/b.png", "¿Qué?", "gato", ("gato", "cat", "gato")),
    ]
    assert split.rows_of_image(tmp_path / "a.jpg") == [0, 1]
    assert [example.answer for example in load(path, shown_answer="stemmed")] == ["puppy", "ride", "gato"]


def test_types_of_questions_are_read_and_decide_nothing(tmp_path: Path) -> None:
    given = [{}, {"question_type": "how  many", "answer_type": "number"}, {"question_type": "ten"}]
    given += [{"question_type": value} for value in (7, None, ["a"], "a\x00b", "x" * 81)]  # left out, not rejected
    split = load(write(tmp_path, *(line(i, **types) for i, types in enumerate(given))))
    read = [(example.question_type, example.answer_type) for example in split]
    assert read == [("", ""), ("how many", "number"), ("Weather and Climate", ""), *[("", "")] * 5]
    plain = load(write(tmp_path, *(line(i) for i in range(len(given))), name="plain.jsonl"))
    assert fingerprint_examples(split) == fingerprint_examples(plain)


def test_lines_are_assigned_to_splits(tmp_path: Path) -> None:
    names = ["train", "validation", "val", "tuning", "test", "val", None]
    path = write(tmp_path, *(line(i, split=name) for i, name in enumerate(names)), line(7))
    ids = {name: [e.question_id for e in load(path, name)] for name in ("train", "validation", "tuning", "test")}
    assert ids == {"train": [0, 6, 7], "validation": [1, 2, 5], "tuning": [3], "test": [4]}
    assert load(path, "validation").name == "validation"


def test_derived_image_ids_depend_on_the_path_alone(tmp_path: Path) -> None:
    path = write(tmp_path, line(1, image="x/a.jpg"), line(2, image="./x//a.jpg"), line(3, image="x/b.jpg"))
    one, same, other = load(path)
    assert one.image_id == same.image_id != other.image_id
    assert one.image == same.image
    assert all(0 < example.image_id < 2**53 for example in (one, other))
    elsewhere = write(tmp_path / "copy", line(8, image="x/a.jpg"))
    assert load(elsewhere)[0].image_id == one.image_id == 0x9734E2128262D


def test_images_are_beside_the_file_or_in_the_image_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "set", line(1))
    assert load(path)[0].image == tmp_path / "set" / "a.jpg"
    assert load(path, image_dir=tmp_path / "photos")[0].image == tmp_path / "photos" / "a.jpg"


def test_the_file_is_searched_in_the_working_directory_then_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", line(1))
    write(tmp_path / "here", line(2))
    monkeypatch.chdir(tmp_path / "here")
    assert load("my-set.jsonl", data_dir=tmp_path / "data")[0].question_id == 2
    Path("my-set.jsonl").unlink()
    assert load("my-set.jsonl", data_dir=tmp_path / "data")[0].question_id == 1


# --- what is rejected -------------------------------------------------------------------------------------


def test_the_error_of_a_missing_file_names_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path, line(1), name="mine.jsonl")
    message = refusal(tmp_path / "my-set.jsonl")
    assert f"{tmp_path / 'my-set.jsonl'} does not exist. {tmp_path} holds mine.jsonl. " in message
    assert "--dataset" in message
    message = refusal("my-set.jsonl", data_dir=tmp_path / "nowhere")
    assert f"neither my-set.jsonl nor {tmp_path / 'nowhere' / 'my-set.jsonl'}" in message and "no dataset" in message


def test_the_error_of_an_empty_split_names_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, line(1), line(2), line(3, split="test"))
    message = refusal(path, "validation")
    assert f"{path} has no examples of the split 'validation', only of train (2), test (1)" in message
    assert 'Add "split": "validation" to' in message


@pytest.mark.parametrize("content", ["", "\n  \n\n"])
def test_an_empty_file_is_rejected(tmp_path: Path, content: str) -> None:
    path = write(tmp_path)
    path.write_text(content)
    assert f"{path} is empty" in refusal(path)


@pytest.mark.parametrize(
    ("image", "part"),
    [
        ("/root/a.jpg", "--image-dir /root"),
        ("../a.jpg", "--image-dir"),
        ("x/../../a.jpg", "--image-dir"),
        ("https://example.org/a.jpg", "nothing is fetched"),
        ("FILE:///etc/a.jpg", "nothing is fetched"),
        ("data:image/png;base64,AAAA", "nothing is fetched"),
        ("", "which is not a path"),
        (".", "which is not a path"),
        ("a\0.jpg", "which is not a path"),
        (None, 'it has no "image"'),
        (7, 'its "image" is 7, not a string'),
        ({"bytes": "AAAA"}, 'its "image" is {"bytes": "AAAA"}, not a string'),
    ],
)
def test_images_outside_of_the_folder_are_rejected(tmp_path: Path, image: Any, part: str) -> None:
    path = write(tmp_path, line(1), line(2, image=image))
    for more in ({}, {"image_dir": Path("/etc")}):
        message = refusal(path, **more)
        assert f"{path}: line 2 (question 2): " in message and part in message


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ([1], "line 2: it is [1], not an object"),
        ({"image": "a.jpg"}, 'line 2: it has no "question_id"'),
        (
            line(2) | {"question_id": "a\nb"},
            "line 2: its \"question_id\" is 'a\\nb': an id is an integer, or a text of",
        ),
        (line(2) | {"question_id": "x" * 257}, "an id is an integer, or a text of one line with 1 to 256 characters"),
        (line(2) | {"question_id": 1e400}, 'line 2: its "question_id" is Infinity: an id is an integer'),
        (line(2) | {"question_id": 2**64}, 'line 2: its "question_id" is beyond 64 bits'),
        (line(2, image_id=[1]), 'line 2 (question 2): its "image_id" is [1]: an id is an integer'),
        (line(2, question=None), 'line 2 (question 2): it has no "question"'),
        (line(2, answers=[]), 'line 2 (question 2): its "answers" are []: at least one is needed'),
        (line(2, question="x" * 4097), "line 2 (question 2): the text 'xxx"),
        (line(2, question="x" * 20_000), "has 20,000 characters; a question or an answer may have at most 4,096"),
        (line(2, answers=["cat", "x" * 4097]), "line 2 (question 2): the text 'xxx"),
        (line(2, answer="x" * 4097), "line 2 (question 2): the text 'xxx"),
        (
            line(2, answers=["x" * 4096] * 11),
            '(question 2): its "answers" have 45,056 characters in total; at most 40,960',
        ),
        (line(2, answers=["a"] * 1001), 'line 2 (question 2): it has 1,001 "answers"; at most 1,000'),
        (line(2, answers=""), "line 2 (question 2): its \"answers\" are '': at least one is needed"),
        (line(2, answers=True), 'line 2 (question 2): its "answers" are [true]: each must be a string'),
        (line(2, answers=["cat", None]), 'line 2 (question 2): its "answers" are ["cat", null]: each must be a string'),
        (line(2, answer=[3]), 'line 2 (question 2): its "answer" is [3], not a string'),
        (line(2, split=3), 'line 2 (question 2): its "split" is 3, not a string'),
        (line(2, question={"a": "b" * 200}), 'its "question" is {"a": "bbb'),
    ],
)
def test_errors_of_invalid_lines_name_the_line(tmp_path: Path, record: Any, part: str) -> None:
    path = write(tmp_path, line(1), record)
    message = refusal(path)
    assert f"{path}: " in message and part in message
    assert len(message) < len(str(path)) + 200


def test_the_error_of_a_truncated_line_names_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, line(1), line(2))
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    message = refusal(path)
    assert f"{path} is not valid JSON: line 2, byte " in message
    assert int(message.split("byte ")[1].split(":")[0]) == len(content) - 10


def test_question_ids_are_unique_within_a_split(tmp_path: Path) -> None:
    path = write(tmp_path, line(1), line(2), line(1), line(2, split="test"))
    assert f"{path}: 1 question_ids occur more than once" in refusal(path)
    assert refusal(path).endswith("first [1]")
    assert len(load(path, "test")) == 1


def test_ids_that_are_text_are_kept(tmp_path: Path) -> None:
    ids = ["q17", "0", "007", 10, 9, "5f0c-aa", "10x"]
    path = write(tmp_path, *(line(1) | {"question_id": i, "image_id": f"n{i}"} for i in ids))
    split = load(path)
    assert [example.question_id for example in split] == [9, 10, "0", "007", "10x", "5f0c-aa", "q17"]
    assert [example.image_id for example in split][:3] == ["n9", "n10", "n0"]
    assert split.by_id("007").question_id == "007"


def test_7_and_the_text_7_are_one_id(tmp_path: Path) -> None:
    path = write(tmp_path, line(7), line(7) | {"question_id": "7"}, line(7) | {"question_id": "07"})
    assert "first [7, '7'] (an integer and the same digits as text count as one id)" in refusal(path)


def test_json_with_the_suffix_of_json_lines_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([line(1)], indent=1))
    assert "line 1, byte 1" in refusal(path)
