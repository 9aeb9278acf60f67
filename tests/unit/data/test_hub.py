"""Datasets of the hub, through `load_split`, with the hub's part played by tables made here."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from icdsel.data.datasets import Split, load_split
from icdsel.data.images import open_image
from icdsel.errors import DataError
from icdsel.settings.tables import DataSettings

datasets = pytest.importorskip("datasets")

TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")


def png(colour: str) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(encoded, "PNG")
    return encoded.getvalue()


def table(kinds: dict[str, Any], **columns: list[Any]) -> Any:
    """A split with images red, red and blue, the questions a, b and c, and more."""
    pictures = [{"bytes": png(colour), "path": None} for colour in ("red", "red", "blue")]
    kinds = {"image": datasets.Image(), "question": TEXT} | kinds
    content = {"image": pictures, "question": ["a?", "b?", "c?"]} | columns
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What the hub holds: (name, configuration) → split → table."""
    held: dict[tuple[str, str | None], dict[str, Any]] = {}

    def load_dataset(name: str, configuration: str | None = None) -> Any:
        if (name, configuration) not in held:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return datasets.DatasetDict(held[name, configuration])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return held


def load(folder: Path, split: str = "train", name: str = "hub:owner/name") -> Split:
    return load_split(DataSettings(dataset=name, data_dir=folder), split)


def refusal(folder: Path, split: str = "train", name: str = "hub:owner/name") -> str:
    with pytest.raises(DataError) as error:
        load(folder, split, name)
    return str(error.value)


SIMPLE = {"answers": datasets.List(TEXT)}
ANSWERS = [["red"], ["red", "rot"], ["blue", "blau", "blau"]]


def test_a_dataset_is_written_as_json_lines_and_images(tmp_path: Path, hub: Any) -> None:
    hub["owner/name", None] = {
        "train": table(
            SIMPLE | {"question_id": NUMBER, "image_id": NUMBER},
            answers=ANSWERS,
            question_id=[30, 10, 20],
            image_id=[5, 5, 6],
        )
    }
    split = load(tmp_path)
    assert [(e.question_id, e.image_id, e.question, e.answer, e.answers) for e in split] == [
        (10, 5, "b?", "red", ("red", "rot")),
        (20, 6, "c?", "blau", ("blue", "blau", "blau")),
        (30, 5, "a?", "red", ("red",)),
    ]
    # Bytes are unchanged, and equal images share a file.
    assert [e.image.read_bytes() for e in split] == [png("red"), png("blue"), png("red")]
    assert split.rows_of_image(split[0].image) == [0, 2]
    images = tmp_path / "hub" / "owner--name" / "images" / "train"
    assert {e.image for e in split} == set(images.iterdir())
    assert open_image(split[1].image, 4).getpixel((0, 0)) == (0, 0, 255)


def test_a_downloaded_split_is_read_without_the_library(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE, answers=ANSWERS)}
    first = load(tmp_path)
    hub.clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert list(load(tmp_path)) == list(first)
    message = refusal(tmp_path, "validation")
    assert 'pip install "icdsel[hub]"' in message


def test_images_are_not_decoded(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub["owner/name", None] = {
        "train": table(
            SIMPLE,
            answers=ANSWERS,
            image=[
                {"bytes": b"no image", "path": "photo.JPG"},
                None,
                {"bytes": None, "path": "https://example.org/a.png"},
            ],
        )
    }
    monkeypatch.setattr(datasets.Image, "decode_example", None)
    damaged, none, elsewhere = load(tmp_path)
    assert damaged.image.read_bytes() == b"no image" and damaged.image.suffix == ".jpg"
    # A missing image is an error when it is read, as in any other dataset; nothing is downloaded.
    assert none.image.name == "row-1-has-no-image" and not none.image.exists()
    assert elsewhere.image.name == "row-2-has-no-image" and not elsewhere.image.exists()


def test_images_in_the_library_s_own_files_are_read(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    (cache / "a.png").write_bytes(png("green"))
    (tmp_path / "secret").write_bytes(b"password")
    (cache / "link.png").symlink_to(tmp_path / "secret")
    paths = [cache / "a.png", tmp_path / "secret", cache / "link.png"]
    pictures = [{"bytes": None, "path": str(path)} for path in paths]
    hub["owner/name", None] = {"train": table(SIMPLE, answers=ANSWERS, image=pictures)}
    own, elsewhere, linked = load(tmp_path)
    assert own.image.read_bytes() == png("green") and own.image.suffix == ".png"
    # A table may name any path: other files of this machine are not read.
    assert not elsewhere.image.exists() and not linked.image.exists()


def test_values_other_than_text_are_rejected(tmp_path: Path, hub: Any) -> None:
    hub["owner/name", None] = {
        "train": table(SIMPLE | {"question": datasets.Value("binary")}, answers=ANSWERS, question=[b"a", b"b", b"c"])
    }
    assert "row 0: a value is not text" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["list", "columns"])
def test_answers_may_be_records(tmp_path: Path, hub: Any, kind: str) -> None:
    record = {"answer": TEXT, "raw_answer": TEXT, "answer_id": NUMBER}
    rows: list[Any] = [
        [
            {"answer": "ride", "raw_answer": "riding", "answer_id": 1},
            {"answer": "sit", "raw_answer": "sits", "answer_id": 2},
        ]
    ] * 3
    feature = datasets.List(record)
    if kind == "columns":  # how older versions of the library stored them
        rows = [{name: [one[name] for one in row] for name in record} for row in rows]
        feature = datasets.Sequence(record)
    hub["owner/name", None] = {"train": table({"answers": feature}, answers=rows)}
    assert {(e.answers, e.raw_answers, e.answer) for e in load(tmp_path)} == {
        (("ride", "sit"), ("riding", "sits"), "riding")
    }


@pytest.mark.parametrize(
    ("kinds", "columns", "shown"),
    [
        ({"answer": TEXT}, {"answer": ["x", "y", "z"]}, ["x", "y", "z"]),
        ({"multiple_choice_answer": TEXT}, {"multiple_choice_answer": ["x", "y", "z"]}, ["x", "y", "z"]),
        ({"label": datasets.ClassLabel(names=["no", "yes"])}, {"label": [0, 1, 1]}, ["no", "yes", "yes"]),
        ({"label": TEXT, "answer": TEXT}, {"label": ["l"] * 3, "answer": ["a"] * 3}, ["a"] * 3),
        ({"answer": TEXT}, {"answer": ["x", None, ""]}, ["x", "red", "blau"]),  # else the majority
    ],
)
def test_the_answer_that_counts(
    tmp_path: Path, hub: Any, kinds: dict[str, Any], columns: dict[str, list[Any]], shown: list[str]
) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE | kinds, answers=ANSWERS, **columns)}
    split = load(tmp_path)
    assert [e.answer for e in split] == shown
    assert [list(e.answers) for e in split] == ANSWERS


def test_an_answer_without_answers_is_the_only_one(tmp_path: Path, hub: Any) -> None:
    hub["owner/name", None] = {"train": table({"answer": TEXT}, answer=["x", "y", "z"])}
    assert [(e.answer, e.answers) for e in load(tmp_path)] == [("x", ("x",)), ("y", ("y",)), ("z", ("z",))]


@pytest.mark.parametrize(
    ("kinds", "columns", "ids"),
    [
        ({"question_id": TEXT}, {"question_id": ["7", "5", "6"]}, ["7", "5", "6"]),
        ({"questionId": NUMBER}, {"questionId": [7, 5, 6]}, [7, 5, 6]),
        ({"question_id": TEXT, "id": NUMBER}, {"question_id": ["a", "b", "c"], "id": [7, 5, 6]}, ["a", "b", "c"]),
        ({"id": NUMBER}, {"id": [7, 7, 6]}, [0, 1, 2]),  # not unique, so it is ignored
        ({"question_id": TEXT, "id": NUMBER}, {"question_id": ["a", "b", "a"], "id": [7, 5, 6]}, [7, 5, 6]),
        ({"id": NUMBER}, {"id": [7, None, 6]}, [0, 1, 2]),
        ({}, {}, [0, 1, 2]),
    ],
)
def test_question_ids_come_from_the_first_unique_column(
    tmp_path: Path, hub: Any, kinds: dict[str, Any], columns: dict[str, Any], ids: list[int]
) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE | kinds, answers=ANSWERS, **columns)}
    assert {e.question: e.question_id for e in load(tmp_path)} == dict(zip(("a?", "b?", "c?"), ids, strict=True))


def test_splits_and_configurations_are_separate(tmp_path: Path, hub: Any) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE, answers=ANSWERS), "val": table(SIMPLE, answers=ANSWERS[::-1])}
    hub["owner/name", "small"] = {"validation": table(SIMPLE, answers=[["x"]] * 3)}
    assert load(tmp_path, "validation")[2].answers == ("red",)
    assert load(tmp_path, "validation").name == "validation"
    assert load(tmp_path, "validation", "hub:owner/name:small")[2].answers == ("x",)
    assert load(tmp_path, "train")[2].answers == ("blue", "blau", "blau")
    message = refusal(tmp_path, "tuning")
    assert "no split 'tuning'" in message and "only train, val" in message
    assert "only validation" in refusal(tmp_path, "train", "hub:owner/name:small")


def test_errors_of_unavailable_datasets_say_why(tmp_path: Path, hub: Any) -> None:
    message = refusal(tmp_path, name="hub:owner/nothing")
    assert "owner/nothing cannot be loaded from the hub: Dataset 'owner/nothing' doesn't exist" in message
    assert "hub:owner/nothing:CONFIGURATION" in message
    for name in ("hub:", "hub:../name", "hub:owner/..", "hub:/etc/passwd", "hub:a/b/c", "hub:https://example.org/a"):
        assert "write hub:owner/name" in refusal(tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kinds", "columns"),
    [
        ({"answers": datasets.List(TEXT), "image": TEXT}, {"answers": ANSWERS, "image": ["a.png"] * 3}),
        ({"text": TEXT}, {"text": ["a", "b", "c"]}),
    ],
)
def test_errors_of_missing_columns_name_those_that_exist(
    tmp_path: Path, hub: Any, kinds: dict[str, Any], columns: dict[str, list[Any]]
) -> None:
    hub["owner/name", None] = {"train": table(kinds, **columns)}
    message = refusal(tmp_path)
    assert "needs the columns image (Image), question, and answers or one of answer" in message
    for name, kind in kinds.items():
        assert f"{name} ({type(kind).__name__})" in message


def test_errors_of_questions_without_an_answer_name_them(tmp_path: Path, hub: Any) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE, answers=[["red"], [], ["blue"]])}
    assert 'train.jsonl: line 2 (question 1): its "answers" are []' in refusal(tmp_path)


def test_an_interrupted_download_starts_again(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE, answers=ANSWERS)}
    replace, written = Path.replace, []

    def fail(path: Path, target: Path) -> Path:
        written.append(target)
        if len(written) == 2:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert not (tmp_path / "hub" / "owner--name" / "train.jsonl").exists()
    assert [e.image.read_bytes() for e in load(tmp_path)] == [png("red"), png("red"), png("blue")]


def test_a_local_dataset_is_loaded_by_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library takes a folder of that name for the dataset, so the hub is not contacted.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table(SIMPLE, answers=ANSWERS).to_parquet(tmp_path / "owner" / "name" / "validation.parquet")
    split = load(tmp_path / "data", "validation")
    assert [e.question for e in split] == ["a?", "b?", "c?"]
    assert split[2].image.read_bytes() == png("blue")
    lines = (tmp_path / "data/hub/owner--name/validation.jsonl").read_text().splitlines()
    assert {json.loads(text)["split"] for text in lines} == {"validation"}
    assert "only validation" in refusal(tmp_path / "data")


def test_columns_of_the_hub_can_be_named(tmp_path: Path, hub: Any) -> None:
    renamed = table(SIMPLE, answers=ANSWERS).rename_columns(
        {"question": "ask", "image": "picture_of", "answers": "said"}
    )
    hub["owner/name", None] = {"train": renamed}
    assert "--columns question=COLUMN" in refusal(tmp_path)
    columns = ("question=ask", "image=picture_of", "answers=said")
    split = load_split(DataSettings(dataset="hub:owner/name", data_dir=tmp_path, columns=columns), "train")
    assert [(e.question, list(e.answers)) for e in split] == list(zip(("a?", "b?", "c?"), ANSWERS, strict=True))
    assert all(example.image.is_file() for example in split)


def test_a_validation_part_of_a_dataset_of_the_hub(tmp_path: Path, hub: Any) -> None:
    hub["owner/name", None] = {"train": table(SIMPLE, answers=ANSWERS)}  # about two images
    assert "--validation-fraction" in refusal(tmp_path, "validation")
    settings = DataSettings(dataset="hub:owner/name", data_dir=tmp_path, validation_fraction=0.3)
    train, validation = load_split(settings, "train"), load_split(settings, "validation")
    assert len(train) + len(validation) == 3 and {e.image for e in train}.isdisjoint(e.image for e in validation)
