"""Readers of datasets, in all formats."""

import contextlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.datasets import load_split, read_dataset
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.records.values import is_id
from icdsel.settings.tables import DataSettings

from .common import alone, check_path, json_of, lines_of
from .harness import Reader
from .mutate import damaged_json, damaged_lines


def annotation(question_id: int, image_id: int, **more: Any) -> dict[str, Any]:
    answers = [{"answer_id": i, "raw_answer": "riding", "answer": "rid"} for i in range(3)]
    return {"question_id": question_id, "image_id": image_id, "answers": answers, "question_type": "one"} | more


ANNOTATIONS = [annotation(204, 10), annotation(305, 30), annotation(101, 10)]
QUESTIONS = [
    {"question_id": i, "image_id": j, "question": f"What is {i}?"} for i, j in ((204, 10), (305, 30), (101, 10))
]
OFFICIAL = {
    "questions": "OpenEnded_mscoco_train2014_questions.json",
    "annotations": "mscoco_train2014_annotations.json",
}


def official(folder: Path, mutated: str) -> Path:
    (folder / "okvqa").mkdir()
    for name, content in (("questions", QUESTIONS), ("annotations", ANNOTATIONS)):
        (folder / "okvqa" / OFFICIAL[name]).write_text(json.dumps({"info": {}, name: content}))
    return folder / "okvqa" / OFFICIAL[mutated]


def preprocessed(folder: Path) -> Path:
    (folder / "okvqa/okvqa_hf").mkdir(parents=True)
    return folder / "okvqa/okvqa_hf/vqav2_mscoco_train2014.json"


def use_dataset(path: Path) -> None:
    folder = next(parent for parent in path.parents if (parent / "okvqa").is_dir())
    _use_split(DataSettings(dataset="okvqa", data_dir=folder))


def use_file(path: Path) -> None:
    check_path(path)
    _use_split(DataSettings(dataset=str(path), data_dir=path.parent))


def _use_split(settings: DataSettings) -> None:
    errors: list[DataError] = []
    with contextlib.suppress(DataError):
        read_dataset(settings, refuse=errors.append)  # type: ignore[arg-type]
    split = load_split(settings, "train")
    assert all(is_id(i) for example in split for i in (example.question_id, example.image_id))
    for example in split:
        texts = [example.question, example.answer, *example.answers, *example.raw_answers, str(example.image_id)]
        " ".join(texts).encode()
        for image in example.images:
            image.exists()
        assert set(example.answers) <= set(example.options or example.answers)
        assert is_in_image_folder(example, settings)


def is_in_image_folder(example: Example, settings: DataSettings) -> bool:
    own = Path(settings.dataset).suffix in (".jsonl", ".json", ".csv", ".tsv")
    folder = Path(settings.dataset).parent if own else settings.data_dir
    return all(os.path.normpath(image).startswith(os.path.normpath(folder) + "/") for image in example.images)


JSON_LINES = [
    {"question_id": 1, "image": "a/b.png", "question": "Which?", "answers": ["x", "y"], "split": "train"},
    {"question_id": 2, "image": "c.png", "question": "What?", "answers": [{"answer": "x", "raw_answer": "xs"}]},
    {
        "question_id": 3,
        "image": "c.png",
        "question": "Who?",
        "answers": ["z"],
        "answer": "z",
        "image_id": 5,
        "split": "val",
    },
]

LLAVA = [
    {
        "id": "a",
        "image": "c.png",
        "conversations": [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "z"}],
    }
]
ROWS = [  # with several images, options, hints, pools and tasks
    {"id": 1, "image": ["a.png", "b.png"], "question": "Is <image 2> <image 1>?", "options": ["x", "y"], "answer": "B"},
    {"id": 2, "image": [{"bytes": None, "path": "a.png"}], "question": "?", "choices": "['x', 'y']", "answer": 1},
    {
        "id": 3,
        "image_1": "a.png",
        "image_2": "",
        "question": "<image>?",
        "A": "x",
        "B": 2,
        "answer": "A",
        "task": "vqa",
    },
    {"id": 4, "images": ["a.png"], "question": "?", "answer": "x", "hint": "Look.", "pool": [1, 2], "split": "train"},
]
CAPTIONS = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 1, "caption": "A dog."}, {"image_id": 2, "caption": "A cat."}],
}
KARPATHY = {
    "images": [{"filepath": "a", "filename": "b.png", "cocoid": 1, "split": "train", "sentences": [{"raw": "A."}]}]
}
OPTIONS = ["index\timage_1\timage_2\tquestion\tA\tB\tC\tanswer", "1\ta.png\tb.png\t<image 1><image 2>?\tx\t2\t\tB"]
SHARED = [  # the second row's image is that of the first
    f"index\timage\tquestion\tA\tB\tanswer\n1\tiVBORw0KGgo{'A' * 60}\t?\tx\ty\tA\n2\t1\t?\tx\ty\tB\n"
]
CSV = ["id,image,question,answers", '7,a/b.png,"Which, of these?","[""x"", ""y""]"', "007,c.png,What?,x|y"]

READERS = [
    Reader(
        "json",
        alone("x.json"),
        json_of(
            JSON_LINES,
            LLAVA,
            ROWS,
            CAPTIONS,
            KARPATHY,
            {"data": JSON_LINES},
            {"train": JSON_LINES[:1], "val2014": JSON_LINES[1:]},
            {"questions": QUESTIONS, "annotations": ANNOTATIONS, "images": [{"id": 10, "file_name": "c.png"}]},
            {"1": {"question": "Which?", "imageId": "7", "answer": "x"}},
        ),
        damaged_json,
        use_file,
        (DataError,),
    ),
    Reader(
        "tsv",
        alone("x.tsv"),
        lambda: ["\n".join(OPTIONS).encode(), *(text.encode() for text in SHARED)],
        damaged_lines,
        use_file,
        (DataError,),
    ),
    Reader("csv", alone("x.csv"), lambda: ["\n".join(CSV).encode()], damaged_lines, use_file, (DataError,)),
    Reader(
        "official-questions",
        partial(official, mutated="questions"),
        json_of({"questions": QUESTIONS}),
        damaged_json,
        use_dataset,
        (DataError,),
    ),
    Reader(
        "official-annotations",
        partial(official, mutated="annotations"),
        json_of({"annotations": ANNOTATIONS}),
        damaged_json,
        use_dataset,
        (DataError,),
    ),
    Reader(
        "preprocessed",
        preprocessed,
        json_of(
            {"annotations": [annotation(i, 5, question="?") for i in (1, 2)]},
            {"annotations": [annotation(1, 5, question="?", multiple_choice_answer="x")]},
        ),
        damaged_json,
        use_dataset,
        (DataError,),
    ),
    Reader("json-lines", alone("x.jsonl"), lines_of(*JSON_LINES), damaged_lines, use_file, (DataError,)),
]
