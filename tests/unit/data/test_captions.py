"""COCO's captions, in the official form and in that of Karpathy's split."""

import json
from pathlib import Path
from typing import Any

import pytest

from icdsel.data.datasets import load_split, read_dataset
from icdsel.data.readers import reader_of
from icdsel.data.readers.captions import CAPTION_QUESTION
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.settings.loading import settings_from

NUMBERS = {"train": (9, 25), "val": (42,)}


def dump(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def name_of(number: int, split: str) -> str:
    return f"COCO_{split}2014_{number:012d}.jpg"


def official(split: str) -> dict[str, Any]:
    images = [{"license": 3, "file_name": name_of(i, split), "height": 8, "id": i} for i in NUMBERS[split]]
    captions = [
        {"image_id": i, "id": 10 * i + k, "caption": f"Caption {k} of {i}.\n"} for k in range(5) for i in NUMBERS[split]
    ]
    return {"info": {"year": 2014}, "images": images, "licenses": [{"id": 3}], "annotations": captions}


def karpathy() -> dict[str, Any]:
    def image(number: int, folder: str, split: str) -> dict[str, Any]:
        sentences = [{"tokens": ["a"], "raw": f"Caption {k} of {number}.", "imgid": 0, "sentid": k} for k in range(5)]
        about = {"filepath": f"{folder}2014", "filename": name_of(number, folder), "sentids": [0], "imgid": 0}
        return about | {"split": split, "sentences": sentences, "cocoid": number}

    rows = [image(9, "train", "train"), image(25, "val", "restval"), image(42, "val", "val"), image(7, "val", "test")]
    return {"images": rows, "dataset": "coco"}


def load(path: Path, split: str = "train", **more: Any) -> list[Example]:
    return list(load_split(settings_from({"data": {"dataset": str(path), **more}}).data, split))


def images(folder: Path) -> Path:
    for split, numbers in NUMBERS.items():
        for number in numbers:
            place = folder / f"{split}2014" / name_of(number, split)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"image")
    return folder


def test_the_official_files_give_an_example_for_each_image(tmp_path: Path) -> None:
    for split in NUMBERS:
        dump(tmp_path / f"annotations/captions_{split}2014.json", official(split))
    dump(tmp_path / "annotations/instances_train2014.json", {"images": [], "annotations": []})
    coco = images(tmp_path / "coco")
    first, _ = load(tmp_path / "annotations", image_dir=coco)
    assert first == Example(
        9,
        9,
        coco / "train2014" / name_of(9, "train"),
        CAPTION_QUESTION,
        "Caption 0 of 9.",
        tuple(f"Caption {k} of 9." for k in range(5)),
    )
    [query] = load(tmp_path / "annotations", "validation", image_dir=coco)
    assert query.question_id == 42 and query.image.is_file()
    data = settings_from({"data": {"dataset": str(tmp_path / "annotations")}}).data
    assert read_dataset(data).task == read_dataset(data, "validation").task == "caption"
    alone = load(tmp_path / "annotations/captions_train2014.json", image_dir=coco)
    assert alone == load(tmp_path / "annotations", image_dir=coco)


def test_the_file_of_karpathy_has_its_own_splits(tmp_path: Path) -> None:
    path = dump(tmp_path / "dataset_coco.json", karpathy())
    assert [e.question_id for e in load(path)] == [9, 25]  # the rest of the validation images is for training
    [query] = load(path, "validation")
    assert (query.question, query.answers[1], query.image_id) == (CAPTION_QUESTION, "Caption 1 of 42.", 42)
    assert query.image == tmp_path / "val2014" / name_of(42, "val")
    assert [e.question_id for e in load(path, "test")] == [7]
    assert load(tmp_path) == load(path)
    assert read_dataset(settings_from({"data": {"dataset": str(path)}}).data).task == "caption"


def test_other_datasets_in_the_form_of_karpathy_have_names_alone(tmp_path: Path) -> None:
    image = {"filename": "7.jpg", "imgid": 3, "split": "train", "sentences": [{"raw": "A dog. "}, {"raw": " "}]}
    [example] = load(dump(tmp_path / "dataset_flickr30k.json", {"images": [image], "dataset": "flickr30k"}))
    assert (example.question_id, example.image, example.answers) == (3, tmp_path / "7.jpg", ("A dog.",))


def test_captions_beside_other_data_are_left_alone(tmp_path: Path) -> None:
    dump(tmp_path / "train.json", [{"image": "a.png", "question": "?", "answer": "x"}])
    dump(tmp_path / "dataset_coco.json", karpathy())
    assert [e.question for e in load(tmp_path)] == ["?"]
    rows = [{"image_id": 1, "images": ["a.png"], "caption": "A dog.", "ask": "?", "answer": "x"}]
    assert [e.question for e in load(dump(tmp_path / "a.json", rows), columns="question=ask")] == ["?"]
    vqa = {"images": [{"id": 1, "file_name": "a.png"}], "questions": [{"question_id": 1, "question": "?"}]}
    captions = [{"question_id": 1, "image_id": 1, "caption": "A dog.", "answers": ["x"]}]
    assert [e.question for e in load(dump(tmp_path / "b.json", vqa | {"annotations": captions}))] == ["?"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"annotations": [{"image_id": 8, "caption": "?"}]},
            "image 8: it has captions, but is not in the list of images",
        ),
        ({"annotations": [{"image_id": 9, "caption": "?"}]}, "1 images have no captions (first 25)"),
        ({"annotations": [{"image_id": 9, "caption": [7]}]}, 'image 9 (question 9): its "answers" are [[7]]'),
        (
            {"annotations": [{"caption": "?"}, {"image_id": 9}]},
            'number 1 of "annotations": it has no "image_id" of a caption',
        ),
        ({"images": [{"file_name": "a"}]}, 'number 1 of "images": it has no "id" of an image'),
        ({"images": [7]}, 'number 1 of "images": it is 7, not an object'),
        ({"images": [{"id": 9, "file_name": None}]}, "image 25: it has captions"),
    ],
)
def test_damaged_captions_are_described(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    path = tmp_path / "captions.json"
    dump(path, official("train") | change)
    assert reader_of(path).name == "captions"  # type: ignore[union-attr]
    with pytest.raises(DataError) as error:
        load(path)
    assert str(path) in str(error.value)
    errors: list[str] = []
    read_dataset(settings_from({"data": {"dataset": str(path)}}).data, refuse=lambda e: errors.append(str(e)))
    assert any(part in message for message in errors)


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    dump(tmp_path / "captions_train2014.json", official("train"))
    dump(tmp_path / "captions_train2017.json", official("train"))
    with pytest.raises(DataError, match=r"captions_train2014\.json and captions_train2017\.json: name one file"):
        load(tmp_path)
    (tmp_path / "captions_train2017.json").rename(tmp_path / "dataset_coco.json")
    with pytest.raises(DataError, match="name one file"):
        load(tmp_path)
