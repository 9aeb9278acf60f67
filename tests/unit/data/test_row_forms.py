"""Rows with several images, options, hints, pools and tasks."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from icdsel.check.dataset import check_dataset
from icdsel.data.datasets import Split, load_split, read_dataset
from icdsel.data.rows import Reading
from icdsel.errors import DataError, SettingsError
from icdsel.records import Example
from icdsel.records.examples import PLACE
from icdsel.settings.loading import settings_from


def png(colour: str) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(encoded, "PNG")
    return encoded.getvalue()


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def load(dataset: Path, split: str = "train", **more: Any) -> Split:
    return load_split(settings_from({"data": {"dataset": str(dataset), **more}}).data, split)


def reading_of(dataset: Path, **more: Any) -> Reading:
    return read_dataset(settings_from({"data": {"dataset": str(dataset), **more}}).data)


def one(folder: Path, columns: str | None = None, **row: Any) -> Example:
    [example] = load(
        lines(folder / "a.jsonl", {"image": "a.png", "question": "?", "answer": "x"} | row),
        data_dir=folder / "made",
        **({"columns": columns} if columns else {}),
    )
    return example


def refusal(folder: Path, columns: str | None = None, **row: Any) -> str:
    with pytest.raises(DataError) as error:
        one(folder, columns, **row)
    message = str(error.value)
    assert message.startswith(f"{folder / 'a.jsonl'}: line 1 (question 0): ")
    return message


def findings(dataset: Path) -> dict[str, int]:
    checked = check_dataset(settings_from({"data": {"dataset": str(dataset)}}), "a", images=False)
    return {finding.problem: finding.count for finding in checked.findings}


def names(example: Example) -> list[str]:
    return [image.name for image in example.images]


# --- images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"image": ["a.png", "b.png"]},
        {"images": ["a.png", "b.png"], "image": None} | {"image_id": None},
        {"image": ["a.png", None, "b.png", ""]},
        {"image": [{"bytes": None, "path": "a.png"}, {"path": "b.png"}]},
    ],
)
def test_a_list_of_images_is_shown_in_its_order(tmp_path: Path, row: dict[str, Any]) -> None:
    if row.get("image") is None:
        row = {"images": row["images"]}
        path = lines(tmp_path / "a.jsonl", {"question": "?", "answer": "x"} | row)
        [example] = load(path)
    else:
        example = one(tmp_path, **row)
    assert names(example) == ["a.png", "b.png"] and example.question == "?"


def test_images_in_numbered_columns_follow_their_numbers(tmp_path: Path) -> None:
    """As MMMU has them: columns without an image are empty."""
    row = {"question": "?", "answer": "x", "image_10": "j.png", "image_2": "b.png", "image_1": "a.png", "image_3": None}
    [example] = load(lines(tmp_path / "a.jsonl", row))
    assert names(example) == ["a.png", "b.png", "j.png"]
    [example] = load(lines(tmp_path / "b.jsonl", {"question": "?", "answer": "x", "image1": "a.png", "image2": ""}))
    assert names(example) == ["a.png"]
    table = tmp_path / "a.csv"
    table.write_text("image1,image2,question,answer\na.png,b.png,<image2> or <image1>?,x\nc.png,,?,y\n")
    first, second = load(table)
    assert names(first) == ["b.png", "a.png"] and names(second) == ["c.png"]


def test_encoded_images_of_one_row_are_copied(tmp_path: Path) -> None:
    both = [base64.b64encode(png(colour)).decode() for colour in ("red", "green")]
    example = one(tmp_path, image=both)
    assert [path.read_bytes() for path in example.images] == [png("red"), png("green")]


def test_images_together_have_an_id_of_their_own(tmp_path: Path) -> None:
    single, pair, turned = (one(tmp_path, image=given) for given in ("a.png", ["a.png", "b.png"], ["b.png", "a.png"]))
    assert len({single.image_id, pair.image_id, turned.image_id}) == 3
    assert one(tmp_path, image=["a.png"]).image_id == single.image_id
    assert one(tmp_path, image=["a.png", "b.png"]).image_id == pair.image_id
    assert one(tmp_path, image=["a.png", "b.png"], image_id=7).image_id == 7


@pytest.mark.parametrize(
    ("question", "count", "placed", "order"),
    [
        ("What?", 2, "What?", "ab"),
        ("<image>What?", 1, f"{PLACE}What?", "a"),
        ("Is <image> before <image>?", 2, f"Is {PLACE} before {PLACE}?", "ab"),
        ("Is <image 1> before <image 2>?", 2, f"Is {PLACE} before {PLACE}?", "ab"),
        ("Is <image_2> before <image_1>?", 2, f"Is {PLACE} before {PLACE}?", "ba"),
        ("<|image_3|><|image_1|>\n<|image_2|>?", 3, f"{PLACE}{PLACE}\n{PLACE}?", "cab"),
        ("<image 2>, <image 1>: like <image 2>?", 2, f"{PLACE}, {PLACE}: like image 1?", "ba"),
        (f"Is {PLACE} {PLACE}?", 2, f"Is {PLACE} {PLACE}?", "ab"),
    ],
)
def test_marks_become_places(tmp_path: Path, question: str, count: int, placed: str, order: str) -> None:
    example = one(tmp_path, image=[f"{name}.png" for name in "abc"[:count]], question=question)
    assert example.question == placed
    assert names(example) == [f"{name}.png" for name in order]


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("<image>?", "has 1 mark of images ('<image>'), but it has 2 images"),
        ("<image><image><image>?", "has 3 marks"),
        ("<image 1>?", "name images 1, but it has 2 images (numbers 1, 2)"),
        ("<image 1><image 3>?", "name images 1, 3,"),
        ("<image 0><image 1>?", "name images 0, 1,"),
        ("<image><image 2>?", "with numbers and without"),
    ],
)
def test_marks_that_do_not_fit_are_refused(tmp_path: Path, question: str, part: str) -> None:
    message = refusal(tmp_path, image=["a.png", "b.png"], question=question)
    assert part in message and "leave out all marks" in message


def test_images_that_options_name_stand_in_front(tmp_path: Path) -> None:
    """As in MMMU, whose options may be images: a prompt has no places for these."""
    example = one(
        tmp_path,
        image=["a.png", "b.png", "c.png"],
        question="What follows <image 1>?",
        options=["<image 3>", "<image 2>"],
        answer="A",
    )
    assert names(example) == ["a.png", "b.png", "c.png"]
    assert (example.question, example.options) == ("What follows image 1?", ("image 3", "image 2"))
    assert (example.answer, example.answers) == ("image 3", ("image 3",))


def test_a_conversation_about_several_images_keeps_its_marks(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Is <image> before <image>?"}, {"from": "gpt", "value": "yes"}]
    [example] = load(lines(tmp_path / "a.jsonl", {"image": ["a.png", "b.png"], "conversations": talk}))
    assert example.question == f"Is {PLACE} before {PLACE}?"


def test_rows_without_an_image_are_counted_in_one_error(tmp_path: Path) -> None:
    rows = [{"image": image, "question": "?", "answer": "x"} for image in (["a.png"], None, [], [None])]
    path = lines(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f'{path}: line 2 (question 1): it has no "image"')
    assert "(3 rows have none)" in message and "leave out those about text alone" in message
    assert findings(path)["questions have no image"] == 3


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "answer", "meant"),
    [
        (["a cat", "a dog"], "a dog", "a dog"),
        (["a cat", "a dog"], "B", "a dog"),
        (["a cat", "a dog"], "(b)", "a dog"),
        (["a cat", "a dog"], "B.", "a dog"),
        (["a cat", "a dog"], 0, "a cat"),
        (["a cat", "a dog"], 1.0, "a dog"),
        (["a cat", "a dog"], "1", "a dog"),
        (["a cat", "a dog"], ["A"], "a cat"),
        ("['a cat', \"a dog's\"]", "B", "a dog's"),
        ('["a cat", "a dog"]', "A", "a cat"),
        (["1", "2", "3"], 1, "2"),  # an integer is a number of texts
        ([1, 2, 3], 1, "1"),  # and one of numbers
        (["1", "2", "3"], "1", "1"),
        (["A", "B"], "B", "B"),
        ({"A": "B", "B": "A"}, "B", "A"),  # a letter, where options have letters
        ({"A": "x", "B": None, "C": "y"}, "C", "y"),
    ],
)
def test_an_answer_is_an_option_its_letter_or_its_number(tmp_path: Path, options: Any, answer: Any, meant: str) -> None:
    for name in ("options", "choices"):
        example = one(tmp_path, answer=answer, **{name: options})
        assert (example.answer, example.answers) == (meant, (meant,))
        assert meant in example.options and len(example.options) > 1


def test_columns_with_letters_are_options(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,question,A,B,C,answer\na.png,?,C,B,A,A\na.png,?,1,2,,B\na.png,?,x,y,,\n")
    with pytest.raises(DataError, match="at least one is needed in the training split"):
        load(path)
    path.write_text("image,question,A,B,C,answer\na.png,?,C,B,A,A\na.png,?,1,2,,B\n")
    assert [(e.options, e.answer) for e in load(path)] == [(("C", "B", "A"), "C"), (("1", "2"), "2")]
    path.write_text("image,question,A,C,answer\na.png,?,C,B,A\n")
    assert load(path)[0].options == ()


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"options": ["x", "x"]}, "its option 'x' occurs twice"),
        ({"options": ["a", "b"], "answer": "z"}, "its answer 'z' is none of its options"),
        ({"options": ["a", "b"], "answer": 2}, "but it has 2 options, which count from 0: give one of 0 to 1"),
        ({"options": ["a", "b"], "answer": -1}, "but it has 2 options"),
        ({"options": ["B", "A"], "answer": "A"}, "also the letter of another, 'B': give the number of the option"),
        ({"options": ["a", "b"], "answer": "x", "answers": ["a"]}, "is none of its options"),
        ({"options": ["a", "b"], "answer": None, "answers": ["a", "q"]}, "is none of its options"),
        ({"options": "a, b"}, "not a list of texts"),
        ({"options": [["a"], "b"]}, "options are texts"),
        ({"options": {"A": ["x"], "B": "y"}}, "options are texts"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, row: dict[str, Any], part: str) -> None:
    assert part in refusal(tmp_path, **row)
    assert one(tmp_path, "options=", **({"answer": "z"} | row)).options == ()


def test_an_open_question_beside_those_with_options_has_none(tmp_path: Path) -> None:
    assert one(tmp_path, options="[]", answer="12").answers == ("12",)
    assert one(tmp_path, options=None, answer="12").options == ()


def test_answers_of_people_are_no_choices(tmp_path: Path) -> None:
    """As in A-OKVQA: its question also has choices, and the number of the right one."""
    people = {"question": "?", "image": "a.png", "direct_answers": ["q", "q"], "choices": ["a", "b"]}
    path = lines(tmp_path / "a.jsonl", people | {"correct_choice_idx": 1})
    [example] = load(path)
    assert (example.answers, example.options) == (("q", "q"), ())
    [example] = load(path, columns="answer=correct_choice_idx")
    assert (example.answers, example.options) == (("b",), ("a", "b"))


def test_a_query_with_options_needs_no_answer(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "?", "options": ["a", "b"], "split": "test"}
    [example] = load(lines(tmp_path / "a.jsonl", row), "test")
    assert (example.answer, example.answers, example.options) == ("", (), ("a", "b"))


# --- hints, pools, tasks ----------------------------------------------------------------------------------


def test_a_hint_stands_in_front_of_the_question(tmp_path: Path) -> None:
    assert one(tmp_path, hint="Look left.").question == "Look left.\n?"
    assert [one(tmp_path, hint=none).question for none in (None, "", " ", float("nan"))] == ["?"] * 4
    assert one(tmp_path, lecture="Light is fast.").question == "?"
    assert one(tmp_path, "hint=lecture", lecture="Light is fast.", hint="Look left.").question == "Light is fast.\n?"
    assert one(tmp_path, "hint=", hint="Look left.").question == "?"
    assert "4,096" in refusal(tmp_path, hint="x" * 4096)


def test_a_query_may_bring_its_own_pool(tmp_path: Path) -> None:
    train = [{"question_id": i, "image": "a.png", "question": "?", "answer": "x"} for i in (1, 2, "c")]
    query = {"question_id": "q", "image": "b.png", "question": "?", "answer": "x", "split": "val"}
    path = lines(tmp_path / "a.jsonl", *train, query | {"pool": [2, "c"]}, query | {"question_id": "r", "pool": None})
    assert [e.pool for e in load(path, "validation")] == [(2, "c"), None]
    unknown = query | {"pool": ["2", "c"]}
    path = lines(tmp_path / "b.jsonl", *train, unknown, query | {"question_id": "r", "pool": [5]})
    for split in ("validation", None):
        settings = settings_from({"data": {"dataset": str(path)}}).data
        with pytest.raises(DataError) as error:
            read_dataset(settings, split)
        message = str(error.value)
        assert (
            f'{path}: the pool of question q names examples that are not in the training split, first ["2"]' in message
        )
        assert "so do the pools of 1 other queries" in message and "--columns pool=" in message
    assert len(load(path, "train")) == 3
    assert load(path, "validation", columns="pool=")[0].pool is None
    assert findings(path)["pools name examples that are not in the training split"] == 2


@pytest.mark.parametrize("pool", [[], "q", [1.5], [[1]], {"a": 1}, [3, "3"]])
def test_a_pool_is_a_list_of_ids(tmp_path: Path, pool: Any) -> None:
    assert 'its "pool"' in refusal(tmp_path, pool=pool)


def test_a_dataset_may_say_its_task(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "?", "answer": "x"}
    assert reading_of(lines(tmp_path / "a.jsonl", row, row)).task == ""
    path = lines(tmp_path / "b.jsonl", row | {"task": "vqa"}, row)
    assert reading_of(path).task == "vqa"
    assert "task: vqa" in check_dataset(settings_from({"data": {"dataset": str(path)}}), "b", False).about
    kinds = [row | {"task": "closed choice"}, row | {"task": "yes or no"}, row | {"task": ["x"]}]  # as ScienceQA's
    path = lines(tmp_path / "c.jsonl", *kinds)
    assert reading_of(path).task == ""
    with pytest.raises(DataError, match=r"line 2 .*its task is 'yes or no', that of rows before it 'closed choice'"):
        reading_of(path, columns="task=task")


def test_only_optional_columns_can_be_ignored() -> None:
    for name in ("question", "answer", "image", "split"):
        with pytest.raises(SettingsError, match=r"names no column; only id=, .*pool=, task= may be empty"):
            settings_from({"data": {"columns": f"{name}="}})
