import colorsys
import io
import itertools
import json
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icdsel.data import named, world
from icdsel.data.datasets import Split, load_split
from icdsel.data.world import files
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.settings.tables import DataSettings

FILES = {
    "okvqa": ("OpenEnded_mscoco_{}2014_questions.json", "mscoco_{}2014_annotations.json"),
    "vqav2": ("v2_OpenEnded_mscoco_{}2014_questions.json", "v2_mscoco_{}2014_annotations.json"),
}

Record = dict[str, Any]


def question(question_id: int, image_id: int) -> Record:
    return {"question_id": question_id, "image_id": image_id, "question": f"What is {question_id}?"}


def okvqa_annotation(question_id: int, image_id: int, raw: list[str]) -> Record:
    """As in OK-VQA: `answer` is stemmed, `raw_answer` is what people wrote, nobody says which answer counts."""
    answers = [
        {"answer_id": i, "raw_answer": answer, "answer_confidence": "yes", "answer": answer.removesuffix("ing")}
        for i, answer in enumerate(raw, 1)
    ]
    ids = {"question_id": question_id, "image_id": image_id}
    return ids | {"question_type": "one", "answer_type": "other", "confidence": 3, "answers": answers}


def vqav2_annotation(question_id: int, image_id: int, answers: list[str], choice: str) -> Record:
    records = [{"answer_id": i, "answer": answer, "answer_confidence": "yes"} for i, answer in enumerate(answers, 1)]
    ids = {"question_id": question_id, "image_id": image_id}
    return ids | {"multiple_choice_answer": choice, "answers": records}


OKVQA_QUESTIONS = [question(305, 30), question(101, 10), question(204, 10)]
OKVQA_ANNOTATIONS = [
    okvqa_annotation(204, 10, ["riding"] * 6 + ["sitting"] * 4),
    okvqa_annotation(305, 30, ["cat", "dog", "dog", "cat", "cow"]),
    okvqa_annotation(101, 10, ["red, white and blue"] * 10),
]


def write(
    folder: Path,
    dataset: str = "okvqa",
    split: str = "train",
    questions: list[Record] = OKVQA_QUESTIONS,
    annotations: list[Record] = OKVQA_ANNOTATIONS,
) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / name.format(split) for name in FILES[dataset])
    paths[0].write_text(json.dumps({"info": {}, "license": {}, "questions": questions}))
    paths[1].write_text(json.dumps({"info": {}, "license": {}, "annotations": annotations}))
    return paths


def load(folder: Path, dataset: str = "okvqa", split: str = "train", **more: Any) -> Split:
    return load_split(DataSettings(dataset=dataset, data_dir=folder, **more), split)


# --- the official format ----------------------------------------------------------------------------------


def test_okvqa_examples_by_hand(tmp_path: Path) -> None:
    write(tmp_path)
    split = load(tmp_path)
    flag = ("red, white and blue",) * 10
    animals = ("cat", "dog", "dog", "cat", "cow")
    stems, words = ("rid",) * 6 + ("sitt",) * 4, ("riding",) * 6 + ("sitting",) * 4
    images = [tmp_path / f"COCO_train2014_0000000000{n}.jpg" for n in (10, 30)]
    types = {"question_type": "Vehicles and Transportation", "answer_type": "other"}  # "one" in OK-VQA's list
    # Predictions are compared with the stems; a demonstration shows what most people wrote.
    assert list(split) == [
        Example(101, 10, images[0], "What is 101?", "red, white and blue", flag, flag, **types),
        Example(204, 10, images[0], "What is 204?", "riding", stems, words, **types),
        # Of equally common answers the first one.
        Example(305, 30, images[1], "What is 305?", "cat", animals, animals, **types),
    ]
    assert split[1].written_answers == words
    stemmed = load(tmp_path, shown_answer="stemmed")
    assert [example.answer for example in stemmed] == ["red, white and blue", "rid", "cat"]
    assert [example.answers for example in stemmed] == [example.answers for example in split]


def test_the_majority_is_taken_of_the_form_that_is_shown(tmp_path: Path) -> None:
    # Three stems are equal, but the words that they come from are not.
    annotation = okvqa_annotation(101, 10, ["surf", "run", "surfing", "surfs", "run"])
    for record in annotation["answers"]:
        record["answer"] = record["raw_answer"][:4]
    write(tmp_path, questions=[question(101, 10)], annotations=[annotation])
    assert load(tmp_path)[0].answer == "run"
    assert load(tmp_path, shown_answer="stemmed")[0].answer == "surf"


def test_rows_are_ranks_by_question_id(tmp_path: Path) -> None:
    write(tmp_path)
    split = load(tmp_path)
    assert split.name == "train"
    assert split.row == {101: 0, 204: 1, 305: 2}
    assert split.by_id(305) == split[2]
    assert split[0:2] == [split[0], split[1]]
    assert split.rows_of_image(split[1].image) == [0, 1]
    assert split.rows_of_image(tmp_path / "other.jpg") == []
    with pytest.raises(KeyError):
        split.by_id(102)


def test_vqav2_shows_the_official_answer_if_there_is_one(tmp_path: Path) -> None:
    annotations = [
        # The official answer is not the most common string.
        vqav2_annotation(1, 5, ["2"] * 4 + ["two"] * 3 + ["Two"] * 3, "two"),
        vqav2_annotation(2, 5, ["no"] * 4 + ["yes"] * 6, ""),
    ]
    write(tmp_path, "vqav2", "val", [question(2, 5), question(1, 5)], annotations)
    split = load(tmp_path, "vqav2", "validation")
    assert [example.answer for example in split] == ["two", "yes"]
    assert split[0].answers == ("2",) * 4 + ("two",) * 3 + ("Two",) * 3
    assert split[0].raw_answers == () and split[0].written_answers == split[0].answers
    assert load(tmp_path, "vqav2", "validation", shown_answer="stemmed")[0].answer == "two"
    assert split[0].image == tmp_path / "COCO_val2014_000000000005.jpg"


def test_each_split_has_its_own_files(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "okvqa", "val", [question(7, 1)], [okvqa_annotation(7, 1, ["boat"] * 10)])
    assert [example.question_id for example in load(tmp_path, split="validation")] == [7]
    assert len(load(tmp_path)) == 3


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    # The dataset's own folder inside the data folder comes before the data folder itself.
    write(tmp_path)
    write(tmp_path / "okvqa", questions=[question(7, 1)], annotations=[okvqa_annotation(7, 1, ["boat"] * 10)])
    assert [example.question_id for example in load(tmp_path)] == [7]
    name = "COCO_train2014_000000000001.jpg"
    assert load(tmp_path)[0].image == tmp_path / "okvqa" / name
    # Images are beside the questions, in COCO's folder there, or in the image folder of the settings.
    (tmp_path / "okvqa" / "train2014").mkdir()
    assert load(tmp_path)[0].image == tmp_path / "okvqa" / "train2014" / name
    elsewhere = tmp_path / "coco"
    elsewhere.mkdir()
    assert load(tmp_path, image_dir=elsewhere)[0].image == elsewhere / name
    for below in ("mscoco/mscoco2014", "mscoco2014", "."):  # each is preferred to the one before
        (elsewhere / below / "train2014").mkdir(parents=True)
        assert load(tmp_path, image_dir=elsewhere)[0].image == elsewhere / below / "train2014" / name
    # Questions in the dataset's folder, images beside it.
    (tmp_path / "okvqa" / "train2014").rmdir()
    (tmp_path / "mscoco" / "mscoco2014" / "train2014").mkdir(parents=True)
    assert load(tmp_path)[0].image == tmp_path / "mscoco" / "mscoco2014" / "train2014" / name


def test_examples_of_one_image_share_its_path(tmp_path: Path) -> None:
    write(tmp_path)
    split = load(tmp_path)
    assert split[0].image is split[1].image


# --- Lever-Plus's preprocessed format ---------------------------------------------------------------------


def preprocess(folder: Path, annotations: list[Record], split: str = "train") -> Path:
    """Lever-Plus's file: the annotations, each with its question; both datasets use the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vqav2_mscoco_{split}2014.json"
    joined = [record | {"question": f"What is {record['question_id']}?"} for record in annotations]
    path.write_text(json.dumps({"info": {}, "annotations": joined, "data_type": "mscoco"}))
    return path


def test_the_preprocessed_format_gives_the_same_examples_as_the_official(tmp_path: Path) -> None:
    write(tmp_path / "official")
    official = load(tmp_path / "official", image_dir=tmp_path)
    for below in (".", "okvqa", "okvqa_hf", "okvqa/okvqa_hf"):
        folder = tmp_path / "data"
        path = preprocess(folder / below, OKVQA_ANNOTATIONS)
        assert list(load(folder, image_dir=tmp_path)) == list(official)
        assert load(folder)[0].image == path.parent / "COCO_train2014_000000000010.jpg"
        path.unlink()


def test_vqav2_preprocessed(tmp_path: Path) -> None:
    preprocess(tmp_path / "vqav2" / "vqav2_hf", [vqav2_annotation(1, 5, ["2"] * 4 + ["two"] * 6, "2")], "val")
    (example,) = load(tmp_path, "vqav2", "validation")
    assert (example.question, example.answer, example.raw_answers) == ("What is 1?", "2", ())
    assert example.image.name == "COCO_val2014_000000000005.jpg"


def test_official_files_are_preferred_to_preprocessed_ones(tmp_path: Path) -> None:
    preprocess(tmp_path / "okvqa", [okvqa_annotation(7, 1, ["boat"] * 10)])
    questions, _ = write(tmp_path)
    assert len(load(tmp_path)) == 3
    questions.unlink()  # incomplete files are ignored
    assert [example.question_id for example in load(tmp_path)] == [7]


def test_the_other_dataset_s_file_is_rejected(tmp_path: Path) -> None:
    # Its name is the same, so a wrong folder would silently give wrong results.
    preprocess(tmp_path, [vqav2_annotation(1, 5, ["two"] * 10, "two")])
    assert "it has the format of vqav2, not of okvqa" in refusal(tmp_path)
    preprocess(tmp_path, OKVQA_ANNOTATIONS)
    assert "--dataset okvqa" in refusal(tmp_path, dataset="vqav2")


def test_errors_in_preprocessed_files_name_the_record(tmp_path: Path) -> None:
    path = preprocess(tmp_path, [*OKVQA_ANNOTATIONS, OKVQA_ANNOTATIONS[0]])
    assert f"{path}: 1 question_ids occur more than once, first [204]" in refusal(tmp_path)
    content = json.loads(path.read_text())
    del content["annotations"][1]["question"]
    path.write_text(json.dumps(content))
    assert f'{path}: number 2 of "annotations" (question 305): it has no "question"' in refusal(tmp_path)


# --- what is rejected -------------------------------------------------------------------------------------


def refusal(folder: Path, **more: Any) -> str:
    with pytest.raises(DataError) as error:
        load(folder, **more)
    return str(error.value)


def test_the_error_of_missing_files_names_what_was_found_and_what_to_do(tmp_path: Path) -> None:
    questions, annotations = write(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    annotations.unlink()
    message = refusal(tmp_path)
    assert f"Missing: {annotations}." in message
    assert f"holds {questions.name}, notes.txt" in message
    for part in ("okvqa (train)", "--data-dir", "--image-dir", "--dataset world"):
        assert part in message
    questions.unlink()
    message = refusal(tmp_path)
    assert f"Missing: {questions}, {annotations}." in message
    for below in ("", "okvqa", "okvqa_hf", "okvqa/okvqa_hf"):
        assert str(tmp_path / below) in message
    assert "vqav2_mscoco_train2014.json" in message
    assert f"{tmp_path / 'nowhere'} is empty or not a folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("which", [0, 1])
def test_the_error_of_a_truncated_file_names_the_place(tmp_path: Path, which: int) -> None:
    path = write(tmp_path)[which]
    whole = json.dumps(json.loads(path.read_text()), indent=1)
    path.write_text(whole[: len(whole) // 2])
    lines = whole[: len(whole) // 2].splitlines()
    message = refusal(tmp_path)
    assert str(path) in message
    # It ends in the last line, or in a string that begins there.
    assert f"line {len(lines)}, byte " in message
    position = int(message.split("byte ")[1].split(":")[0])
    assert len(whole) // 2 - len(lines[-1]) <= position <= len(whole) // 2


def test_errors_of_files_without_records_name_the_file(tmp_path: Path) -> None:
    questions, annotations = write(tmp_path)
    whole = questions.read_bytes()
    for content, part in (
        (b"", "is empty (0 bytes)"),
        (b'{"annotations": []}', '"questions"'),
        (b"[]", '"questions"'),
        (b'{"questions": []}', "is empty"),
        (b'{"questions": {}}', "is empty"),
        (b'{"info": 1, "annotations": [1]}', "at its top level there are: info, annotations"),
        (b'{"questions": ["a"]}', "number 1"),
        (b'{"questions": [{"question_id": 1, "question": "?"}, {"id": 2}]}', "number 2"),
        (whole[:-2] + b"\xff", f"is not UTF-8: byte {len(whole) - 2}"),
    ):
        questions.write_bytes(content)
        message = refusal(tmp_path)
        assert str(questions) in message and part in message
    questions.write_bytes(whole)
    annotations.write_text(json.dumps({"annotations": [{"question_id": i} for i in (101, 204, 305)]}))
    assert "question 101" in refusal(tmp_path)  # it has no answers


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"answers": []}, '(question 101): its "answers" are []: at least one is needed'),
        ({"answers": None}, 'it has no "answers"'),
        ({"answers": "red"}, "its \"answers\" are 'red'"),
        ({"answers": [{"answer": 3}]}, 'each an object with a string "answer"'),
        ({"answers": [{"answer": ["red"]}]}, 'each an object with a string "answer"'),
        ({"answers": [{"raw_answer": "red"}]}, 'each an object with a string "answer"'),
        ({"answers": [{"answer": "red"}, "blue"]}, 'each an object with a string "answer"'),
        ({"answers": [{"answer": "\ud800"}]}, 'each an object with a string "answer"'),
        ({"answers": [[]]}, 'each an object with a string "answer"'),
        ({"image_id": "10"}, "its \"image_id\" is '10', not an integer"),
        ({"image_id": 10.0}, 'its "image_id" is 10.0, not an integer'),
        ({"image_id": math.nan}, 'its "image_id" is NaN, not an integer'),
        ({"image_id": True}, 'its "image_id" is true, not an integer'),
        ({"image_id": 2**63}, 'its "image_id" is beyond 64 bits'),
        ({"image_id": 10**3000}, 'its "image_id" is beyond 64 bits'),
        ({"question_id": math.nan}, 'its "question_id" is NaN'),
        ({"question_id": 10**30}, 'its "question_id" is beyond 64 bits'),
        ({"multiple_choice_answer": 3}, 'its "multiple_choice_answer" is 3, not a string'),
    ],
)
def test_errors_of_invalid_annotations_name_the_record(tmp_path: Path, change: Record, part: str) -> None:
    annotation = okvqa_annotation(101, 10, ["red"]) | change
    _, annotations = write(tmp_path, annotations=[*OKVQA_ANNOTATIONS[:2], annotation])
    message = refusal(tmp_path)
    assert f'{annotations}: number 3 of "annotations"' in message and part in message


@pytest.mark.parametrize("asked", [None, 3, math.inf, ["What?"], "\udfff"])
def test_errors_of_invalid_questions_name_the_record(tmp_path: Path, asked: Any) -> None:
    questions, _ = write(tmp_path, questions=[*OKVQA_QUESTIONS[:2], question(204, 10) | {"question": asked}])
    assert f'{questions}: number 3 of "questions" (question 204): ' in refusal(tmp_path)


# --- what is accepted -------------------------------------------------------------------------------------


def test_a_question_or_an_answer_of_excessive_length_is_rejected(tmp_path: Path) -> None:
    """One of 20,000 characters made prompts that took 10 GB."""
    at_most = okvqa_annotation(101, 10, ["x" * 4096, "ä" * 4096])
    write(tmp_path, questions=[question(101, 10) | {"question": "?" * 4096}], annotations=[at_most])
    assert load(tmp_path).by_id(101).raw_answers == ("x" * 4096, "ä" * 4096)
    expected = "(question 101): the text '{}... has 4,097 characters; a question or an answer may have at most 4,096"
    write(tmp_path, questions=[question(101, 10) | {"question": "?" * 4097}], annotations=[at_most])
    assert expected.format("?" * 76) in refusal(tmp_path)
    write(tmp_path, questions=[question(101, 10)], annotations=[okvqa_annotation(101, 10, ["x" * 4097])])
    assert expected.format("x" * 76) in refusal(tmp_path)
    preprocess(tmp_path / "other", [okvqa_annotation(101, 10, ["y" * 4097])])
    assert expected.format("y" * 76) in refusal(tmp_path / "other")


@pytest.mark.parametrize("number", [1, 3, 9, 11])
def test_a_question_may_have_any_number_of_answers(tmp_path: Path, number: int) -> None:
    write(tmp_path, annotations=[*OKVQA_ANNOTATIONS[:2], okvqa_annotation(101, 10, ["red"] * number)])
    assert load(tmp_path)[0].answers == ("red",) * number


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_any_script_is_read(tmp_path: Path, escaped: bool, mark: bytes) -> None:
    text, answers = "¿Qué es esto — 猫 or 🐈?", ["猫", "🐈", "naïve", "猫"]
    for path, key, record in zip(
        write(tmp_path),
        ("questions", "annotations"),
        (question(1, 2) | {"question": text}, okvqa_annotation(1, 2, answers)),
        strict=True,
    ):
        path.write_bytes(mark + json.dumps({key: [record]}, ensure_ascii=escaped).encode())
    (example,) = load(tmp_path)
    assert (example.question, example.answer, example.answers) == (text, "猫", tuple(answers))


def test_memory_does_not_hold_the_parsed_records(tmp_path: Path) -> None:
    # Parsed as a whole, annotations take five times the memory of their text; here its bytes, its characters and
    # the examples.
    answers = [f"answer {i}" for i in range(10)]
    ids = range(2000)
    annotations = [vqav2_annotation(i, i // 5, answers, answers[0]) for i in ids]
    paths = write(tmp_path, "vqav2", questions=[question(i, i // 5) for i in ids], annotations=annotations)
    tracemalloc.start()
    try:
        split = load(tmp_path, "vqav2")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(split) == 2000
    assert peak < 3 * sum(path.stat().st_size for path in paths)


# --- mismatches -------------------------------------------------------------------------------------------


def test_unmatched_questions_and_annotations_are_counted(tmp_path: Path) -> None:
    questions, annotations = write(tmp_path, questions=[*OKVQA_QUESTIONS, question(900, 1), question(800, 1)])
    message = refusal(tmp_path)
    assert questions.name in message and annotations.name in message
    assert "0 annotations without a question" in message
    assert "2 questions without an annotation (first [800, 900])" in message
    write(tmp_path, annotations=[*OKVQA_ANNOTATIONS, okvqa_annotation(700, 1, ["a"])])
    assert "1 annotations without a question (first [700]), 0 questions" in refusal(tmp_path)


def test_repeated_question_ids_are_rejected(tmp_path: Path) -> None:
    questions, annotations = write(tmp_path, questions=[*OKVQA_QUESTIONS, question(204, 99)])
    assert f"{questions}: 1 question_ids occur more than once, first [204]" in refusal(tmp_path)
    write(tmp_path, annotations=[*OKVQA_ANNOTATIONS, okvqa_annotation(101, 10, ["blue"])])
    assert f"{annotations}: 1 question_ids occur more than once, first [101]" in refusal(tmp_path)
    same = [Example(3, 1, Path("a.jpg"), "?", "yes", ("yes",))] * 2
    with pytest.raises(DataError, match=r"1 question_ids .*\[3\]"):
        Split("train", same)


def test_errors_of_unknown_datasets_and_splits_name_those_that_exist(tmp_path: Path) -> None:
    message = refusal(tmp_path, dataset="okvaq")
    for part in (
        "okvaq",
        "Did you mean 'okvqa'?",
        "world, world-misleading, world-hard, world-choice, world-classes, okvqa, vqav2",
        "--dataset PATH",
        "hub:owner/name",
    ):
        assert part in message
    write(tmp_path)
    message = refusal(tmp_path, split="tuning")
    assert "'tuning'" in message and "train, validation" in message
    assert "train, tuning, validation, test" in refusal(tmp_path, dataset="world", split="holdout")
    assert not (tmp_path / "world").exists()
    assert "Did you mean 'world-hard'?" in refusal(tmp_path, dataset="world-hrad")


# --- the bundled world ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder, with the world written into it by the first that asks for it."""
    folder = tmp_path_factory.mktemp("data")
    load(folder, "world")
    return folder


@pytest.fixture(scope="module")
def splits(world_dir: Path) -> dict[str, Split]:
    return {name: load(world_dir, "world", name) for name in world.SPLIT_SIZES}


def annotations_of(world_dir: Path, split: str) -> dict[int, Record]:
    content = json.loads((world_dir / "world" / f"annotations_{split}.json").read_text())
    return {record["question_id"]: record for record in content["annotations"]}


def test_the_world_is_written_once(world_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(named, "write_world", lambda folder, difficulty: written.append(folder))
    load(world_dir, "world")
    load(world_dir, "world", "validation")
    assert written == []
    # An incomplete folder is written again: the annotations of the last split are written last.
    last = world_dir / "world" / "annotations_validation.json"
    hidden = last.rename(last.with_suffix(".hidden"))
    load(world_dir, "world")
    hidden.rename(last)
    assert written == [world_dir / "world"]


def test_the_sizes_of_the_world(splits: dict[str, Split]) -> None:
    assert {name: len(split) for name, split in splits.items()} == {"train": 2400, "tuning": 1000, "validation": 1000}
    ids = [example.question_id for split in splits.values() for example in split]
    images = [example.image_id for split in splits.values() for example in split]
    assert len(set(ids)) == len(set(images)) == 4400  # no example is in two splits
    assert all(example.image.is_file() for split in splits.values() for example in split)


def test_ten_people_answer_with_the_code_in_question(world_dir: Path, splits: dict[str, Split]) -> None:
    codes, words = world.world_codes(), set(world.code_words())
    assert len(words) == 64
    assert len(codes) == len(set(codes.values())) == 16 and set(codes.values()) <= words
    for name, split in splits.items():
        records = annotations_of(world_dir, name)
        for example in split:
            scene = records[example.question_id]["scene"]
            (attribute,) = (a for a in ("colour", "shape") if a in example.question)
            code = codes[attribute, scene[attribute]]
            assert len(example.answers) == 10
            assert example.answer == code  # the majority
            assert 6 <= example.answers.count(code) <= 10
            others = set(example.answers) - {code}
            assert others <= words | {"not sure", "no code", code[:-1]}
    # People disagree: all ten agree on about 2 of 8 questions, and different slips may be equal.
    agreed = sum(len(set(example.answers)) == 1 for example in splits["train"]) / 2400
    assert 0.2 < agreed < 0.3


def test_codes_are_uniformly_distributed(splits: dict[str, Split]) -> None:
    # 2400 questions for 16 codes: 150 each, with a standard deviation of sqrt(2400 · 1/16 · 15/16) = 11.9.
    counts = Counter(example.answer for example in splits["train"])
    assert len(counts) == 16
    assert all(150 - 4 * 11.9 < count < 150 + 4 * 11.9 for count in counts.values())
    questions = Counter(example.question for example in splits["train"])
    assert set(questions) == {
        text.format(attribute=a) for text, a in itertools.product(world.CODE_QUESTIONS, ("colour", "shape"))
    }


def test_images_show_their_colour(world_dir: Path, splits: dict[str, Split]) -> None:
    records = annotations_of(world_dir, "train")
    palette = {
        name: np.array(colorsys.hsv_to_rgb(colour[0] / 360, *colour[1:])) * 255
        for name, colour in world.COLOURS.items()
    }
    for example in splits["train"][:200]:
        with Image.open(example.image) as image:
            assert (image.size, image.mode, image.format) == ((56, 56), "RGB", "PNG")
            pixels = np.asarray(image, dtype=float)
            saturation = np.asarray(image.convert("HSV"))[..., 1]
        # The background is grey: the most saturated tenth of an image belongs to what it shows.
        shown = np.median(pixels[saturation > np.quantile(saturation, 0.9)], axis=0)
        nearest = min(palette, key=lambda name: float(np.abs(palette[name] - shown).sum()))
        assert nearest == records[example.question_id]["scene"]["colour"]


def test_shapes_have_their_area(world_dir: Path) -> None:
    # Of the disc of radius r a circle covers (0.92)² of its area, a square of half side 0.8 covers 2.56 / π.
    rng_radius = (14, 21)
    for shape, share in (("circle", 0.92**2), ("square", 2.56 / math.pi)):
        for seed in range(20):
            rng = random.Random(seed)
            image = world.draw(world.Scene(shape, "red"), rng)
            pixels = np.asarray(image, dtype=float)
            red = (pixels[..., 0] - pixels[..., 1:].max(axis=-1)) > 80
            covered = red.sum() / (share * math.pi)
            assert (rng_radius[0] - 1) ** 2 < covered < (rng_radius[1] + 1) ** 2


@pytest.mark.parametrize(("split", "first_id"), [("train", 1), ("tuning", 2401), ("validation", 3401)])
def test_the_world_is_deterministic(world_dir: Path, split: str, first_id: int) -> None:
    questions = json.loads((world_dir / "world" / f"questions_{split}.json").read_text())["questions"]
    annotations = annotations_of(world_dir, split)
    for i, (asked, annotation, image) in enumerate(world.records(world.Difficulty(), split, 5, first_id)):
        assert asked == questions[i]
        assert annotation == annotations[asked["question_id"]]
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        path = world_dir / "world" / "images" / split / f"{asked['image_id']:012d}.png"
        assert encoded.getvalue() == path.read_bytes()


def test_the_test_split_of_a_world_is_drawn_when_it_is_first_asked_for(
    tmp_path: Path, world_into: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world_into(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "world").glob("*.json")}
    monkeypatch.setattr(files, "TEST_SIZE", 5)
    test = load(tmp_path, "world", "test")
    assert [query.question_id for query in test] == [44015, 44025, 44035, 44045, 44055]  # after those of the others
    assert all(query.answers == () and query.image.is_file() for query in test)
    drawn = [asked["question"] for asked, _, _ in world.records(world.Difficulty(), "test", 5, 4401)]
    assert [query.question for query in test] == drawn
    assert not (tmp_path / "world/annotations_test.json").exists()
    monkeypatch.setattr(named, "write_test_split", None)  # a second call would fail
    assert [*load(tmp_path, "world", "test")] == [*test]
    assert before.items() <= {path: path.read_bytes() for path in (tmp_path / "world").glob("*.json")}.items()


def test_splits_are_disjoint() -> None:
    firsts = [
        [record[1]["scene"] for record in world.records(world.Difficulty(), name, 20, 1)] for name in world.SPLIT_SIZES
    ]
    assert firsts[0] != firsts[1] != firsts[2] != firsts[0]


# --- other layouts of COCO --------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["train2017", "images/val2017", "a/b/c"])
def test_images_in_cocos_layout_of_2017_are_found_by_their_number(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "vqa")
    images = tmp_path / "coco" / folder
    images.mkdir(parents=True)
    for image_id in (10, 30):
        (images / f"{image_id:012d}.jpg").write_bytes(b"x")
    split = load(tmp_path / "vqa", image_dir=tmp_path / "coco")
    assert {example.image for example in split} == {images / "000000000010.jpg", images / "000000000030.jpg"}


def test_the_usual_layout_of_coco_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "vqa")
    for folder, name in (("train2014", "COCO_train2014_000000000010.jpg"), ("train2017", "000000000010.jpg")):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        (tmp_path / "coco" / folder / name).write_bytes(b"x")
    assert load(tmp_path / "vqa", image_dir=tmp_path / "coco")[0].image.parent.name == "train2014"


def test_questions_of_vqav2_without_annotations_are_its_test_split(tmp_path: Path) -> None:
    path = tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json"
    path.write_text(json.dumps({"questions": [question(5, 7)]}))
    [query] = load(tmp_path, "vqav2", "test")
    assert (query.question_id, query.answers, query.answer) == (5, (), "")
    assert query.image.name == "COCO_test2015_000000000007.jpg"
    assert "no split 'test'" in refusal(tmp_path, split="test")


def test_where_only_questions_of_test_dev_exist_they_are_read_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    part.write_text(json.dumps({"questions": [question(5, 7)]}))
    [query] = load(tmp_path, "vqav2", "test")
    assert query.image.name == "COCO_test2015_000000000007.jpg"
    said = " ".join(capsys.readouterr().err.split())
    assert "v2_OpenEnded_mscoco_test2015_questions.json is missing" in said and part.name in said
    whole = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_test2015_questions.json"
    whole.parent.mkdir()
    whole.write_text(json.dumps({"questions": [question(5, 7), question(6, 7)]}))
    assert [query.question_id for query in load(tmp_path, "vqav2", "test")] == [5, 6]
    assert capsys.readouterr().err == ""


def test_a_folder_of_vqas_files_may_hold_test_dev_beside_the_whole_test_split(tmp_path: Path) -> None:
    write(
        tmp_path,
        "vqav2",
        annotations=[vqav2_annotation(i, j, ["a"], "a") for i, j in ((305, 30), (101, 10), (204, 10))],
    )
    for name, ids in (("test", (5, 6)), ("test-dev", (5,))):
        path = tmp_path / f"v2_OpenEnded_mscoco_{name}2015_questions.json"
        path.write_text(json.dumps({"questions": [question(i, 7) for i in ids]}))
    assert [query.question_id for query in load(tmp_path, str(tmp_path), "test")] == [5, 6]
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    assert [query.question_id for query in load(tmp_path, str(tmp_path), "test")] == [5]
