"""People's own data in the forms that they have: each is read as the same examples."""

import base64
import csv
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor

from icdsel.data.datasets import Split, load_split, read_dataset
from icdsel.data.readers import READERS
from icdsel.errors import DataError, SettingsError
from icdsel.records import Example
from icdsel.settings.loading import settings_from

COLOURS = {"q1": "red", "q2": "green", "007": "blue", "v1": "white"}
TRAIN = ("q1", "q2", "007")


def png(colour: str) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(encoded, "PNG")
    return encoded.getvalue()


def images(folder: Path, *ids: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ids or COLOURS:
        (folder / f"{name}.png").write_bytes(png(COLOURS[name]))
    return folder


def row(name: str, **more: Any) -> dict[str, Any]:
    answers = [COLOURS[name], f"very {COLOURS[name]}", COLOURS[name]]
    asked = {"question": f"Which colour, {name}?", "answers": answers}
    return {"question_id": name, "image": f"{name}.png"} | asked | more


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def dump(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def load(dataset: Path, split: str = "train", **more: Any) -> Split:
    data = {"dataset": str(dataset), "data_dir": str(dataset.parent / "made")} | more
    return load_split(settings_from({"data": data}).data, split)


def refusal(dataset: Path, split: str = "train", **more: Any) -> str:
    with pytest.raises(DataError) as error:
        load(dataset, split, **more)
    return str(error.value)


# --- every form -------------------------------------------------------------------------------------------


def as_json_lines(folder: Path) -> Path:
    images(folder)
    return lines(folder / "a.jsonl", *map(row, TRAIN), row("v1", split="dev"))


def as_list(folder: Path) -> Path:
    images(folder)
    return dump(folder / "a.json", [*map(row, TRAIN), row("v1", split="Val2014")])


def as_wrapped_list(folder: Path) -> Path:
    images(folder)
    return dump(folder / "a.json", {"version": 1, "data": [*map(row, TRAIN), row("v1", set_name="valid")]})


def as_lists_by_split(folder: Path) -> Path:
    images(folder)
    return dump(folder / "a.json", {"train": [*map(row, TRAIN)], "eval": [row("v1")]})


def as_objects_by_id(folder: Path) -> Path:
    images(folder)
    rows = {name: {k: v for k, v in row(name).items() if k != "question_id"} for name in TRAIN}
    return dump(folder / "a.json", rows | {"v1": row("v1", split="validation")})


def as_questions_and_annotations(folder: Path) -> Path:
    images(folder)
    questions, annotations = vqa_lists(COLOURS)
    files = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(COLOURS)]
    content = {"images": files, "questions": questions, "annotations": annotations}
    content["annotations"][-1]["split"] = "val"
    return dump(folder / "a.json", content)


def vqa_lists(ids: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    numbers = {name: number for number, name in enumerate(COLOURS)}
    questions = [{"question_id": name, "image_id": numbers[name], "question": row(name)["question"]} for name in ids]
    annotations = [
        {"question_id": name, "image_id": numbers[name], "answers": [{"answer": a} for a in row(name)["answers"]]}
        for name in ids
    ]
    return questions, annotations


def as_vqa_folder(folder: Path) -> Path:
    numbers = {name: number for number, name in enumerate(COLOURS)}
    for split, ids in (("train2017", TRAIN), ("val2017", ("v1",))):
        for name in ids:
            place = folder / "set/coco" / split / f"{numbers[name]:012d}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png(COLOURS[name]))
        questions, annotations = vqa_lists(ids)
        dump(folder / f"set/my_{split}_ask.json", {"info": {}, "questions": questions})
        dump(folder / f"set/labels-{split}.json", {"annotations": annotations})
    return folder / "set"


def as_csv(folder: Path, ending: str = "csv", separator: str = ",") -> Path:
    images(folder)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(["id", "image_path", "question", "answers", "split"])
    for name in COLOURS:
        one = row(name)
        given = [json.dumps(one["answers"]), "|".join(one["answers"]), str(one["answers"])][len(name) % 3]
        writer.writerow([name, one["image"], one["question"], given, "val" if name == "v1" else ""])
    path = folder / f"a.{ending}"
    path.write_text("\ufeff" + text.getvalue(), encoding="utf-8")
    return path


def as_tsv_in_base64(folder: Path) -> Path:
    rows = [f"{name}\t{row(name)['question']}\t{'|'.join(row(name)['answers'])}\t" for name in COLOURS]
    encoded = [base64.b64encode(png(COLOURS[name])).decode() for name in COLOURS]
    splits = ["train", "train", "train", "val"]
    content = [f"{one}{image}\t{split}" for one, image, split in zip(rows, encoded, splits, strict=True)]
    path = folder / "a.tsv"
    path.write_text("\n".join(["question_id\tquestion\tanswers\timage\tsplit", *content]) + "\n")
    return path


def as_image_folder(folder: Path, ending: str = "jsonl") -> Path:
    for split, ids in (("train", TRAIN), ("val", ("v1",))):
        images(folder / "set" / split, *ids)
        rows = [{"file_name" if k == "image" else k: v for k, v in row(name).items()} for name in ids]
        if ending == "jsonl":
            lines(folder / "set" / split / "metadata.jsonl", *rows)
        else:
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0])
            writer.writeheader()
            writer.writerows(one | {"answers": json.dumps(one["answers"])} for one in rows)
            (folder / "set" / split / "metadata.csv").write_text(text.getvalue())
    return folder / "set"


def as_files_by_split(folder: Path) -> Path:
    images(folder / "set/images")
    lines(folder / "set/my_train.jsonl", *map(row, TRAIN))
    lines(folder / "set/my_dev.jsonl", row("v1"))
    return folder / "set"


def table(*ids: str) -> Any:
    datasets = pytest.importorskip("datasets")
    kinds = {"qid": datasets.Value("string"), "img": datasets.Image(), "question": datasets.Value("string")}
    features = datasets.Features(kinds | {"answers": datasets.List(datasets.Value("string"))})
    rows = [row(name) for name in ids]
    return datasets.Dataset.from_dict(
        {
            "qid": list(ids),
            "img": [{"bytes": png(COLOURS[name]), "path": f"{name}.png"} for name in ids],
            "question": [one["question"] for one in rows],
            "answers": [one["answers"] for one in rows],
        },
        features=features,
    )


def as_saved_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": table(*TRAIN), "dev": table("v1")}).save_to_disk(folder / "set")
    return folder / "set"


def as_parquet_shards(folder: Path) -> Path:
    (folder / "set/data").mkdir(parents=True)
    table("q1", "q2").to_parquet(folder / "set/data/train-00000-of-00002.parquet")
    table("007").to_parquet(folder / "set/data/train-00001-of-00002.parquet")
    table("v1").to_parquet(folder / "set/data/validation-00000-of-00001.parquet")
    return folder / "set"


FORMS: dict[str, Callable[[Path], Path]] = {
    "JSON lines": as_json_lines,
    "list": as_list,
    "wrapped list": as_wrapped_list,
    "lists by split": as_lists_by_split,
    "objects by id": as_objects_by_id,
    "questions and annotations": as_questions_and_annotations,
    "folder of VQA's files": as_vqa_folder,
    "CSV": as_csv,
    "CSV with semicolons": lambda folder: as_csv(folder, separator=";"),
    "TSV": lambda folder: as_csv(folder, "tsv", "\t"),
    "TSV with images in base64": as_tsv_in_base64,
    "image folder": as_image_folder,
    "image folder with CSV": lambda folder: as_image_folder(folder, "csv"),
    "files by split": as_files_by_split,
    "save_to_disk": as_saved_dataset,
    "Parquet shards": as_parquet_shards,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(tmp_path: Path, form: str) -> None:
    dataset = FORMS[form](tmp_path)
    for split, ids in (("train", sorted(TRAIN)), ("validation", ["v1"])):
        read = load(dataset, split)
        assert [example.question_id for example in read] == ids
        for example in read:
            expected = row(str(example.question_id))
            assert (example.question, list(example.answers)) == (expected["question"], expected["answers"])
            assert example.answer == expected["answers"][0]
            with Image.open(example.image) as image:
                shown = image.convert("RGB").getpixel((0, 0))
            assert shown == ImageColor.getrgb(COLOURS[str(example.question_id)])
    assert list(load(dataset)) == list(load(dataset))  # also once copies are made
    both = read_dataset(settings_from({"data": {"dataset": str(dataset), "data_dir": str(tmp_path / "made")}}).data)
    assert {split: len(examples) for split, examples in both.splits.items()} == {"train": 3, "validation": 1}


def test_conversations_of_one_question_keep_their_id(tmp_path: Path) -> None:
    images(tmp_path / "coco/train2017")

    def said(name: str, *turns: str) -> dict[str, Any]:
        who = ("human", "gpt") * len(turns)
        talk = [{"from": one, "value": text} for one, text in zip(who, turns, strict=False)]
        return {"id": name, "image": f"coco/train2017/{name}.png", "conversations": talk}

    path = dump(
        tmp_path / "llava.json",
        [said("q1", "<image>\nWhat?", "red"), said("q2", "What?\n<image>", "green", "Sure?", "yes")],
    )
    read = load(path)
    assert [(e.question_id, e.question, e.answer) for e in read] == [
        ("q1", "What?", "red"),
        ("q2-0", "What?", "green"),
        ("q2-1", "Sure?", "yes"),
    ]
    assert all(example.image.is_file() for example in read)
    images(tmp_path / "elsewhere/mscoco/train2017")
    moved = load(path, image_dir=str(tmp_path / "elsewhere"))  # nested under another name
    assert all(e.image.parent == tmp_path / "elsewhere/mscoco/train2017" for e in moved)


def test_images_of_parquet_are_shared_by_all_splits_and_copied_again_if_a_file_changes(
    tmp_path: Path,
) -> None:
    dataset = as_parquet_shards(tmp_path)
    table("q1", "q2").to_parquet(dataset / "data/test.parquet")
    first, test = load(dataset), load(dataset, "test")
    assert {example.image for example in test} < {example.image for example in first}
    table("q2", "007").to_parquet(dataset / "data/train-00001-of-00002.parquet")
    assert "occur more than once" in refusal(dataset)


def test_columns_of_parquet_can_be_named(tmp_path: Path) -> None:
    names = {"img": "pic", "question": "ask", "answers": "said", "qid": "key"}
    table(*TRAIN).rename_columns(names).to_parquet(tmp_path / "a.parquet")
    columns = "question=ask,answers=said,image=pic,id=key"
    assert [e.question_id for e in load(tmp_path / "a.parquet", columns=columns)] == sorted(TRAIN)
    columns = "question=ask,answers=said,image=pic,id="
    assert [e.question_id for e in load(tmp_path / "a.parquet", columns=columns)] == [0, 1, 2]
    reading = read_dataset(
        settings_from({"data": {"dataset": str(tmp_path / "a.parquet"), "columns": columns, "data_dir": tmp_path}}).data
    )
    assert reading.columns == {"question": "ask", "answers": "said", "image": "pic"}
    assert reading.numbered == {"train": 3}


def test_paths_in_the_image_column_of_parquet_stay_paths(tmp_path: Path) -> None:
    """As `Image` columns that were made of files have them: `{"bytes": None, "path": ...}`."""
    datasets = pytest.importorskip("datasets")
    folder = images(tmp_path / "photos")
    rows = [row(name, image={"bytes": None, "path": str(folder / f"{name}.png")}) for name in TRAIN]
    rows.append(row("v1", image={"bytes": png("white"), "path": "v1.png"}))
    (tmp_path / "set").mkdir()
    kinds = {"image": datasets.Image(), "question_id": datasets.Value("string"), "question": datasets.Value("string")}
    features = datasets.Features(kinds | {"answers": datasets.List(datasets.Value("string"))})
    dataset = tmp_path / "set/a.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(dataset)
    assert f"--image-dir {folder}" in refusal(dataset)
    examples = {e.question_id: e.image for e in load(dataset, image_dir=str(folder))}
    assert {name: examples[name] for name in TRAIN} == {name: folder / f"{name}.png" for name in TRAIN}
    assert examples["v1"].read_bytes() == png("white")


def test_what_reads_parquet_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = as_parquet_shards(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert 'pip install "icdsel[hub]"' in refusal(dataset)


# --- columns, ids, splits ---------------------------------------------------------------------------------


def test_columns_can_be_named(tmp_path: Path) -> None:
    images(tmp_path)
    old = {"question_id": "uid", "image": "pic", "question": "ask", "answers": "labels"}
    path = lines(tmp_path / "a.jsonl", *({old[k]: v for k, v in row(name).items()} for name in TRAIN))
    message = refusal(path)
    assert 'it has no "question"; it has uid, pic, ask, labels: name the column with --columns question=COL' in message
    as_table = {"question": "ask", "answers": "labels", "image": "pic"}
    for columns in ("question=ask,answers=labels,image=pic,id=uid", as_table):
        assert [e.question_id for e in load(path, columns=columns)] == sorted(TRAIN)
    assert [e.question_id for e in load(path, columns="question=ask,answers=labels,image=pic,id=")] == [0, 1, 2]
    assert "(--columns question=asked)" in refusal(path, columns="question=asked,answers=labels,image=pic")
    for wrong in ("query=question", "question", "question=", "id=a,question_id=b"):
        with pytest.raises(SettingsError, match="--columns"):
            settings_from({"data": {"columns": wrong}})


def test_rows_without_ids_are_numbered_over_the_whole_file(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row(name).items() if k != "question_id"} for name in ("q1", "v1", "q2", "007")]
    rows[1]["split"] = "val"
    path = lines(tmp_path / "a.jsonl", *rows)
    assert [e.question_id for e in load(path)] == [0, 2, 3]
    assert [e.question_id for e in load(path, "validation")] == [1]
    path = lines(tmp_path / "b.jsonl", *rows[:2], row("q2"))
    assert 'line 3: it has a "question_id", and line 1 has none' in refusal(path)
    path = lines(tmp_path / "c.jsonl", row("q2"), rows[0])
    assert "line 1 has one. Give every row an id, or none" in refusal(path)


def test_integers_of_a_csv_are_integers_and_other_ids_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,image,question,answer\n7,a.png,?,yes\n007,b.png,?,2\n10,c.png,?,1.50\n")
    assert [(e.question_id, e.answers) for e in load(path)] == [(7, ("yes",)), (10, ("1.50",)), ("007", ("2",))]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "validation") for name in ("dev", "val", "VAL", "val2014", "validation", "valid", "eval", "val-2017")),
        *((name, "test") for name in ("test", "test2015", "test-dev", "testing")),
        *((name, "train") for name in ("training", "train2017", None)),
        ("tune", "tuning"),
    ],
)
def test_names_of_splits(tmp_path: Path, name: str | None, split: str) -> None:
    path = lines(tmp_path / "a.jsonl", row("q1", split=name), row("q2", split="other"))
    assert [e.question_id for e in load(path, split)] == ["q1"]
    assert [e.question_id for e in load(path, "other")] == ["q2"]


def test_one_answer_numbers_and_columns_of_answers(tmp_path: Path) -> None:
    given = [
        {"answer": "a cat"},
        {"answers": "a cat"},
        {"answers": [2, "two"]},
        {"answer": 2},
        {"answers": {"answer": ["ride", "ride"], "raw_answer": ["riding", "rides"]}},
        {"answers": {"text": ["x", "y"], "start": [0, 0]}},
        {"answers": [], "answer": "z"},
        {"answer": ["p", "q", "q"]},
    ]
    base = {k: v for k, v in row("q1").items() if k not in ("answers", "question_id")}
    read = load(lines(tmp_path / "a.jsonl", *(base | one for one in given)))
    assert [(e.answers, e.answer) for e in read] == [
        (("a cat",), "a cat"),
        (("a cat",), "a cat"),
        (("2", "two"), "2"),
        (("2",), "2"),
        (("ride", "ride"), "riding"),
        (("x", "y"), "x"),
        (("z",), "z"),
        (("p", "q", "q"), "q"),
    ]
    assert read[4].raw_answers == ("riding", "rides")


def test_json_lines_and_lists_under_one_another_s_ending_are_described(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.json", row("q1"), row("q2"))
    assert "give it the ending .jsonl" in refusal(path)
    (tmp_path / "b.jsonl").write_text(json.dumps([row("q1")], indent=1))
    assert "give it the ending .json" in refusal(tmp_path / "b.jsonl")


def test_nan_is_no_answer(tmp_path: Path) -> None:
    """As pandas writes what is missing."""
    base = {k: v for k, v in row("q1", split="test").items() if k != "answers"}
    path = lines(tmp_path / "a.jsonl", base | {"answer": float("nan")}, base | {"question_id": "q2", "answer": 1.5})
    assert [(e.answers, e.answer) for e in load(path, "test")] == [((), ""), (("1.5",), "1.5")]
    path = lines(tmp_path / "b.jsonl", base | {"answer": float("nan"), "split": "train"})
    assert "at least one is needed in the training split" in refusal(path)


def test_a_csv_may_have_spaces_after_commas_and_several_texts_as_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id, image, question, answer\n7, a.png, "Red, or not?", yes|no|no\n')
    assert [(e.question, e.answers, e.answer) for e in load(path)] == [("Red, or not?", ("yes", "no", "no"), "no")]


def test_only_the_training_split_needs_answers(tmp_path: Path) -> None:
    unlabelled = {k: v for k, v in row("q1").items() if k != "answers"}
    path = lines(tmp_path / "a.jsonl", row("q2"), unlabelled | {"split": "test"})
    [query] = load(path, "test")
    assert query == Example("q1", query.image_id, tmp_path / "q1.png", "Which colour, q1?", "", ())
    message = refusal(lines(tmp_path / "b.jsonl", unlabelled))
    assert 'it has no "answers"' in message and '"split": "test"' in message


# --- images -----------------------------------------------------------------------------------------------


def test_absolute_paths_lead_below_the_folder_or_the_image_folder(tmp_path: Path) -> None:
    own, other = images(tmp_path / "own"), images(tmp_path / "other")
    path = lines(own / "a.jsonl", row("q1", image=str(own / "q1.png")), row("q2", image="q2.png"))
    assert [e.image for e in load(path)] == [own / "q1.png", own / "q2.png"]
    relative = lines(own / "b.jsonl", row("q1"))
    assert load(path)[0].image_id == load(relative)[0].image_id  # the same image, by either path
    path = lines(own / "c.jsonl", row("q1", image=str(other / "q1.png")), row("q2", image=str(own / "q2.png")))
    message = refusal(path)
    assert "is outside of" in message and f"--image-dir {other}" in message
    assert [e.image for e in load(path, image_dir=str(other))] == [other / "q1.png", own / "q2.png"]
    assert "is outside of" in refusal(path, image_dir=str(tmp_path / "oth"))
    (tmp_path / "link").symlink_to(other)
    assert load(path, image_dir=str(tmp_path / "link"))[0].image.is_file()


def test_a_path_may_not_leave_its_folder(tmp_path: Path) -> None:
    for name in ("../a.png", f"{tmp_path}/x/../../a.png", "..\\a.png"):
        path = lines(tmp_path / "own/a.jsonl", row("q1", image=name))
        assert "--image-dir" in refusal(path)


def test_images_in_subfolders_are_found_if_only_one_has_the_name(tmp_path: Path) -> None:
    images(tmp_path / "pictures/a/b", "q1")
    images(tmp_path / "pictures/train", "q2")
    images(tmp_path / "pictures/val", "q2")
    rows = [row("q1"), row("q2"), row("v1", image="train/q2.png"), row("007", image="test/q1.png")]
    read = {e.question_id: e.image for e in load(lines(tmp_path / "a.jsonl", *rows))}
    assert read["q1"] == tmp_path / "pictures/a/b/q1.png"
    assert read["q2"] == tmp_path / "q2.png" and not read["q2"].exists()  # two have the name
    assert read["v1"] == tmp_path / "pictures/train/q2.png"
    assert read["007"] == tmp_path / "test/q1.png"  # that in another folder is another image
    assert load(lines(tmp_path / "w.jsonl", row("q1", image="a\\b\\q1.png")))[0].image == read["q1"]


def test_an_unknown_folder_is_described_with_the_forms_that_are_read(tmp_path: Path) -> None:
    images(tmp_path / "set")
    message = refusal(tmp_path / "set")
    assert "holds 007.png, q1.png" in message and "is no dataset that is known" in message
    for form in ("JSON lines", ".csv", "metadata.jsonl", "save_to_disk", "Parquet", '"questions"', "train.jsonl"):
        assert form in message


# --- a validation part ------------------------------------------------------------------------------------


def many(tmp_path: Path, images: int = 40, each: int = 3) -> Path:
    pairs = [(image, number) for image in range(images) for number in range(each)]
    rows = [row("q1", question_id=f"{image}-{number}", image=f"{image}.png") for image, number in pairs]
    return lines(tmp_path / "many.jsonl", *rows)


def test_a_validation_part_shares_no_image_with_the_training_part(tmp_path: Path) -> None:
    path = many(tmp_path)
    train, validation = (load(path, split, validation_fraction=0.1) for split in ("train", "validation"))
    assert len(validation) == 12 and len(train) == 108
    assert {e.image for e in train}.isdisjoint(e.image for e in validation)
    assert {e.question_id for e in train} | {e.question_id for e in validation} == {e.question_id for e in load(path)}
    assert list(load(path, "validation", validation_fraction=0.1)) == list(validation)
    other = load(path, "validation", validation_fraction=0.1, seed=7)
    assert {e.image for e in other} != {e.image for e in validation}


def test_images_of_one_image_id_stay_together(tmp_path: Path) -> None:
    rows = [row("q1", question_id=i, image=f"{i}.png", image_id=i // 2) for i in range(20)]
    path = lines(tmp_path / "a.jsonl", *rows)
    train, validation = (load(path, split, validation_fraction=0.3) for split in ("train", "validation"))
    assert {e.image_id for e in train}.isdisjoint(e.image_id for e in validation) and len(validation) == 6


def test_the_error_of_a_missing_validation_split_names_the_setting(tmp_path: Path) -> None:
    path = many(tmp_path, 1)
    assert "--validation-fraction 0.1" in refusal(path, "validation")
    assert "leaves 0 for training" in refusal(path, "validation", validation_fraction=0.1)
    own = lines(tmp_path / "own.jsonl", row("q1"), row("v1", split="val"))
    for split in ("train", "validation"):
        assert "has a validation split of its own" in refusal(own, split, validation_fraction=0.5)


def test_the_reader_of_the_documentation_is_complete(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/architecture.md").read_text(encoding="utf-8")
    [block] = [
        block for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "Quads" in block
    ]
    (tmp_path / "a.quads").write_text("q1;q1.png;What?;red\n007;q2.png;What?;green\n")
    assert "is no dataset that is known" in refusal(tmp_path / "a.quads")
    try:
        exec(block, {})
        assert [(e.question_id, e.answer) for e in load(tmp_path / "a.quads")] == [("007", "green"), ("q1", "red")]
    finally:
        READERS.pop("quads", None)


@pytest.mark.parametrize("form", ["Parquet shards", "save_to_disk"])
def test_damaged_tables_give_an_error_that_names_the_place(tmp_path: Path, form: str) -> None:
    dataset = FORMS[form](tmp_path)
    files = [path for path in dataset.rglob("*") if path.is_file() and "train" in str(path)]
    rng = random.Random(5)
    outcomes = set()
    for case in range(30):
        damaged = tmp_path / f"case-{case}/set"
        shutil.copytree(dataset, damaged)
        file = damaged / rng.choice(files).relative_to(dataset)
        content = bytearray(file.read_bytes())
        for _ in range(8):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content if case % 3 else content[: len(content) // 2])
        try:
            outcomes.add(len(load(damaged)))
        except DataError as error:
            outcomes.add("damaged" in str(error) or str(damaged) in str(error))
    assert True in outcomes and outcomes <= {True, 3, 2}


def test_an_id_of_an_image_leads_out_of_no_folder(tmp_path: Path) -> None:
    """As a path that is made of an id: `../../etc/passwd` was read as it is."""
    for image_id in ("../../etc/passwd", "/etc/passwd"):
        path = tmp_path / "x.json"
        path.write_text(json.dumps({"1": {"question": "Which?", "imageId": image_id, "answer": "x"}}))
        with pytest.raises(DataError, match="is outside of"):
            load_split(settings_from({"data": {"dataset": str(path)}}).data, "train")
