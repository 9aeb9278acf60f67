"""Files become examples: the bundled world, OK-VQA and VQAv2 in their official form."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.demo.world import write_world
from icdsel.errors import DataError
from icdsel.metrics import majority_answer
from icdsel.records import Example
from icdsel.settings import WORLD, DataSettings


@dataclass(frozen=True)
class SplitFiles:
    """Where the official form keeps a split; `image` is formatted with `image_id`."""

    questions: str
    annotations: str
    image_folder: str
    image: str


def _coco(prefix: str) -> dict[str, SplitFiles]:
    return {
        split: SplitFiles(
            f"{prefix}OpenEnded_mscoco_{name}2014_questions.json",
            f"{prefix}mscoco_{name}2014_annotations.json",
            f"{name}2014",
            f"COCO_{name}2014_{{image_id:012d}}.jpg",
        )
        for split, name in (("train", "train"), ("validation", "val"))
    }


DATASETS: dict[str, dict[str, SplitFiles]] = {
    WORLD: {
        split: SplitFiles(
            f"questions_{split}.json", f"annotations_{split}.json", f"images/{split}", "{image_id:012d}.png"
        )
        for split in ("train", "tuning", "validation")
    },
    "okvqa": _coco(""),
    "vqav2": _coco("v2_"),
}


class Split(Sequence[Example]):
    """The examples of one split, sorted by question_id; a row number is the rank by question_id."""

    def __init__(self, name: str, examples: Iterable[Example]) -> None:
        self.name = name
        self._examples = sorted(examples, key=lambda example: example.question_id)
        self.row = {example.question_id: row for row, example in enumerate(self._examples)}
        self._rows_of_image: dict[Path, list[int]] = {}
        for row, example in enumerate(self._examples):
            self._rows_of_image.setdefault(example.image, []).append(row)
        if len(self.row) < len(self._examples):
            seen: set[int] = set()
            twice = {e.question_id for e in self._examples if e.question_id in seen or seen.add(e.question_id)}  # type: ignore[func-returns-value]
            raise DataError(f"{name}: {len(twice)} question_ids stand more than once, first {sorted(twice)[:3]}")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, row: Any) -> Any:
        return self._examples[row]

    def rows_of_image(self, image: Path) -> list[int]:
        """Rows of the examples that show `image`."""
        return self._rows_of_image.get(image, [])

    def by_id(self, question_id: int) -> Example:
        """The example with this question_id (KeyError where there is none)."""
        return self._examples[self.row[question_id]]


def _folder(settings: DataSettings) -> Path:
    """The folder with the questions: `data_dir`, or the dataset's own folder in it."""
    own = settings.data_dir / settings.dataset
    return own if settings.dataset == WORLD or own.is_dir() else settings.data_dir


def _read_records(path: Path, key: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
        records = content[key]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: line {error.lineno}, character {error.pos}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start}") from None
    except (KeyError, TypeError):
        raise DataError(f'{path} has no list "{key}" at its top level') from None
    if not isinstance(records, list) or not records:
        raise DataError(f'{path}: "{key}" is empty')
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not isinstance(record.get("question_id"), int):
            raise DataError(f'{path}: number {number} of "{key}" has no question_id: this is not the official form')
    counts = Counter(record["question_id"] for record in records)
    twice = sorted(question_id for question_id, count in counts.items() if count > 1)
    if twice:
        raise DataError(f"{path}: {len(twice)} question_ids stand more than once, first {twice[:3]}")
    return records


def load_split(settings: DataSettings, split: str) -> Split:
    """Reads one split ("train", "validation"; the world has "tuning" too). The world is made where it is missing.

    Raises:
        DataError: an unknown dataset or split, missing or damaged files, questions without annotations.
    """
    if settings.dataset not in DATASETS:
        raise DataError(f"unknown dataset {settings.dataset!r}: there are {', '.join(DATASETS)}")
    splits = DATASETS[settings.dataset]
    if split not in splits:
        raise DataError(f"{settings.dataset} has no split {split!r}: there are {', '.join(splits)}")
    files, folder = splits[split], _folder(settings)
    last = DATASETS[WORLD]["validation"]
    if settings.dataset == WORLD and not (folder / last.annotations).exists():
        write_world(folder)
    paths = folder / files.questions, folder / files.annotations
    missing = [path for path in paths if not path.is_file()]
    if missing:
        found = sorted(path.name for path in folder.glob("*"))[:8] if folder.is_dir() else []
        raise DataError(
            f"{settings.dataset} ({split}) is not complete. Missing: {', '.join(map(str, missing))}. "
            f"{folder}: {'holds ' + ', '.join(found) if found else 'is empty or no folder'}. "
            f"Put the official files there or say where they are: --data-dir FOLDER --image-dir FOLDER. "
            f"Without real data, `--dataset {WORLD}` (the default) works on any machine."
        )
    questions = {record["question_id"]: record for record in _read_records(paths[0], "questions")}
    annotations = _read_records(paths[1], "annotations")
    unasked = [record["question_id"] for record in annotations if record["question_id"] not in questions]
    unanswered = set(questions) - {record["question_id"] for record in annotations}
    if unasked or unanswered:
        raise DataError(
            f"{paths[0].name} and {paths[1].name} do not belong together: {len(unasked)} annotations without a "
            f"question (first {unasked[:3]}), {len(unanswered)} questions without an annotation "
            f"(first {sorted(unanswered)[:3]})"
        )
    images = _image_folder(settings, folder, files)
    examples = []
    for record in annotations:
        try:
            examples.append(_example(record, questions[record["question_id"]], images, files.image))
        except (KeyError, TypeError, ValueError) as error:
            told = f"{type(error).__name__} {error}"
            raise DataError(
                f"question {record['question_id']} of {folder} is not in the official form: {told}"
            ) from None
    return Split(split, examples)


def _image_folder(settings: DataSettings, folder: Path, files: SplitFiles) -> Path:
    base = settings.image_dir or folder
    return base / files.image_folder if (base / files.image_folder).is_dir() else base


def _example(annotation: dict[str, Any], question: dict[str, Any], images: Path, pattern: str) -> Example:
    # OK-VQA's `answer` is stemmed, its `raw_answer` is what people wrote.
    answers = tuple(str(record.get("raw_answer", record["answer"])) for record in annotation["answers"])
    image_id = int(annotation["image_id"])
    return Example(
        question_id=int(annotation["question_id"]),
        image_id=image_id,
        image=images / pattern.format(image_id=image_id),
        question=str(question["question"]),
        answer=str(annotation.get("multiple_choice_answer") or majority_answer(answers)),
        answers=answers,
    )
