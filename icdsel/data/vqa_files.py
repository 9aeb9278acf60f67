"""Readers for the file formats of VQA data: VQA's official JSON, Lever-Plus's preprocessed JSON, and JSON Lines.

Every reader converts one record at a time, so that memory holds only the file's text and the examples. Errors name the
file and the position in it. A question has at least one human answer, and the number of answers may differ between
questions: the VQA accuracy is defined for any number.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from icdsel.data.question_types import types_of
from icdsel.errors import DataError, Refuse, stop
from icdsel.records import Example, QuestionId, id_order
from icdsel.records.values import LONGEST_ID, is_id
from icdsel.store.json_reading import read_lines, read_list
from icdsel.store.reading import is_path
from icdsel.tasks.base import majority_answer

__all__ = [
    "SPLIT_NAMES",
    "RepeatedError",
    "UnpairedError",
    "read_every_split",
    "read_json_lines",
    "read_official",
    "read_preprocessed",
    "refuse_repeated",
]

ShownAnswer = Literal["raw", "stemmed"]
ImageOf = Callable[[int], Path]
Record = dict[str, Any]

SPLIT_NAMES = {"val": "validation"}
"""Alternative names of splits in datasets, and the names used here."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
MOST_ANSWERS = 1000
"""The maximum number of answers per question; ten are usual."""
LONGEST_TEXT = 4096
"""The maximum length of a question or an answer, in characters. VQA's have at most about a hundred."""
LONGEST_ANSWERS = 10 * LONGEST_TEXT
"""The maximum total length of a question's answers, in characters. They are scored together, in memory that grows with
the square of the length."""
_ID_LIMIT = 2**63


class RepeatedError(DataError):
    """The question_ids `ids` occur more than once."""

    def __init__(self, where: object, ids: Sequence[QuestionId]) -> None:
        mixed = len(set(map(type, ids[:3]))) > 1
        note = " (an integer and the same digits as text count as one id)" if mixed else ""
        super().__init__(f"{where}: {len(ids)} question_ids occur more than once, first {list(ids[:3])}{note}")
        self.ids = ids


class UnpairedError(DataError):
    """Questions and annotations do not match; `ids` are the question_ids that only one of the files has."""

    def __init__(
        self,
        questions: Path,
        annotations: Path,
        without_question: Sequence[QuestionId],
        without_annotation: Sequence[QuestionId],
    ) -> None:
        super().__init__(
            f"{questions} and {annotations} do not match: {len(without_question)} annotations without a question "
            f"(first {list(without_question[:3])}), {len(without_annotation)} questions without an annotation "
            f"(first {list(without_annotation[:3])})"
        )
        self.ids = (*without_question, *without_annotation)


# --- VQA's official format, and Lever-Plus's --------------------------------------------------------------


def read_official(
    questions: Path, annotations: Path, image_of: ImageOf, shown: ShownAnswer, refuse: Refuse = stop
) -> list[Example]:
    """Reads VQA's two files, `{"questions": [...]}` and `{"annotations": [...]}`, joined by question_id.

    Args:
        questions: The file of records with `question_id` and `question`.
        annotations: The file of records with `question_id`, `image_id`, `answers` (records with `answer` and optionally
            `raw_answer`) and optionally `multiple_choice_answer`, `question_type` and `answer_type`.
        image_of: Returns the path of the image with an image_id.
        shown: The answer of a demonstration if there is no `multiple_choice_answer`: the most common answer as people
            wrote it ("raw"), or in the fields `answer` ("stemmed"; OK-VQA stems them).
        refuse: Called with the error of each invalid record. If it returns, the record is skipped; examples with
            repeated question_ids are kept.

    Raises:
        DataError: A file is damaged or not in this format, or the two do not match.
    """
    texts = _Texts()
    text_of: dict[QuestionId, str] = {}
    image_of_question: dict[QuestionId, object] = {}
    annotated: set[QuestionId] = set()

    def parse_question(question_id: QuestionId, record: Record) -> QuestionId:
        image_of_question[question_id] = record.get("image_id")  # before the record can be rejected
        text_of[question_id] = _text(record, "question", texts)
        return question_id

    question_ids = _parsed(questions, read_list(questions, "questions"), parse_question, refuse)
    repeated = refuse_repeated(questions, question_ids, refuse)
    without_question: list[QuestionId] = []

    def parse_annotation(question_id: QuestionId, record: Record) -> Example | None:
        annotated.add(question_id)
        question = text_of.get(question_id)
        if question is None:
            if question_id not in image_of_question:
                without_question.append(question_id)
            return None
        example = _vqa_example(question_id, question, record, image_of, shown, texts)
        image = image_of_question[question_id]
        if image is not None and image != example.image_id:
            raise ValueError(f"its image_id is {example.image_id}, but its question in {questions.name} has {image}")
        return example

    parsed = _parsed(annotations, read_list(annotations, "annotations"), parse_annotation, refuse)
    examples = [example for example in parsed if example is not None]
    without_annotation = text_of.keys() - annotated
    if without_question or without_annotation:
        unpaired = (sorted(ids, key=id_order) for ids in (without_question, without_annotation))
        refuse(UnpairedError(questions, annotations, *unpaired))
    not_reported = (example.question_id for example in examples if example.question_id not in repeated)
    refuse_repeated(annotations, not_reported, refuse)
    return examples


def read_preprocessed(
    path: Path, dataset: str, image_of: ImageOf, shown: ShownAnswer, refuse: Refuse = stop
) -> list[Example]:
    """Reads the file that Lever-Plus creates for each split: VQA's annotations, each with its `question`.

    Args:
        path: The file. It has the same name for OK-VQA and VQAv2.
        dataset: "okvqa" or "vqav2". Their records differ, and a file of the other dataset is rejected.
        image_of: As for `read_official`.
        shown: As for `read_official`.
        refuse: As for `read_official`.

    Raises:
        DataError: The file is damaged, not in this format, or belongs to the other dataset.
    """
    texts = _Texts()

    def parse(question_id: QuestionId, record: Record) -> Example:
        example = _vqa_example(question_id, _text(record, "question", texts), record, image_of, shown, texts)
        found = "vqav2" if "multiple_choice_answer" in record else "okvqa" if example.raw_answers else dataset
        if found != dataset:
            raise ValueError(
                f"it has the format of {found}, not of {dataset}: use another --data-dir, or --dataset {found}"
            )
        return example

    examples = list(_parsed(path, read_list(path, "annotations"), parse, refuse))
    refuse_repeated(path, (example.question_id for example in examples), refuse)
    return examples


def _vqa_example(
    question_id: QuestionId, question: str, record: Record, image_of: ImageOf, shown: ShownAnswer, texts: "_Texts"
) -> Example:
    image_id = _integer(record, "image_id")
    answers, raw_answers = _answers(record, texts)
    choice = record.get("multiple_choice_answer")
    answer = _text(record, "multiple_choice_answer", texts) if choice else _majority(answers, raw_answers, shown)
    return Example(
        question_id, image_id, image_of(image_id), question, answer, answers, raw_answers, **types_of(record)
    )


# --- JSON Lines -------------------------------------------------------------------------------------------


def read_json_lines(path: Path, split: str, images: Path, shown: ShownAnswer) -> list[Example]:
    """Reads one split of a JSON Lines file.

    Each line is an object with

    * `question_id`: an integer or a text, unique within the split
    * `image`: the image's path, relative to the folder `images`
    * `question`: a string
    * `answers`: strings, or objects with `answer` and optionally `raw_answer` as in VQA
    * optionally `answer`: what a demonstration shows (by default as for `read_official`)
    * optionally `image_id`: an integer or a text (by default derived from the image's path)
    * optionally `question_type` and `answer_type`: texts, by which the page of a comparison splits its scores
    * optionally `split`: "train" (the default), "validation" or "val", "tuning", "test"

    Empty lines are skipped.

    Raises:
        DataError: A line is damaged, lacks a field or names an image outside of `images`; or the split is empty.
    """
    sizes: Counter[str] = Counter()
    examples = [example for _, example in _lines(path, split, images, shown, sizes, stop)]
    if not sizes:
        raise DataError(f"{path} is empty: it should contain one JSON object per line")
    if not examples:
        held = ", ".join(f"{name} ({count})" for name, count in sizes.items())
        raise DataError(
            f"{path} has no examples of the split {split!r}, only of {held}. "
            f'Add "split": "{split}" to the lines that belong to it.'
        )
    refuse_repeated(path, (example.question_id for example in examples))
    return examples


def read_every_split(path: Path, images: Path, shown: ShownAnswer, refuse: Refuse) -> dict[str, list[Example]]:
    """Reads all splits of a JSON Lines file, each as `read_json_lines` does.

    Args:
        path: The file.
        images: As for `read_json_lines`.
        shown: As for `read_json_lines`.
        refuse: As for `read_official`.

    Raises:
        DataError: The file cannot be read.
    """
    splits: dict[str, list[Example]] = {}
    for split, example in _lines(path, None, images, shown, Counter(), refuse):
        splits.setdefault(split, []).append(example)
    for split, examples in splits.items():
        refuse_repeated(f"{path} ({split})", (example.question_id for example in examples), refuse)
    return splits


def _lines(
    path: Path, wanted: str | None, images: Path, shown: ShownAnswer, sizes: Counter[str], refuse: Refuse
) -> Iterator[tuple[str, Example]]:
    """Yields the examples of the split `wanted`, or of all splits; counts the lines of each split in `sizes`."""
    texts = _Texts()
    paths: dict[str, tuple[Path, QuestionId]] = {}

    def parse(question_id: QuestionId, record: Record) -> tuple[str, Example] | None:
        split = "train" if record.get("split") is None else _text(record, "split", texts)
        split = SPLIT_NAMES.get(split, split)
        sizes[split] += 1
        if wanted not in (None, split):
            return None
        name = _text(record, "image", texts)
        if name not in paths:
            paths[name] = _image(name, images)
        image, image_id = paths[name]
        if record.get("image_id") is not None:
            image_id = _id(record, "image_id")
        answers, raw_answers = _answers(record, texts)
        given = record.get("answer") is not None
        return split, Example(
            question_id=question_id,
            image_id=image_id,
            image=image,
            question=_text(record, "question", texts),
            answer=_text(record, "answer", texts) if given else _majority(answers, raw_answers, shown),
            answers=answers,
            raw_answers=raw_answers,
            **types_of(record),
        )

    parsed = _parsed(path, read_lines(path, refuse), parse, refuse)
    return (found for found in parsed if found is not None)


def _image(name: str, folder: Path) -> tuple[Path, int]:
    """The path of an image, and an image_id derived from its name.

    Raises:
        ValueError: It is not in the folder.
    """
    if _URL.match(name):
        raise ValueError(f"its image is {_shown(name)}: nothing is fetched; save the images and give their paths")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"its image {_shown(name)} is outside of the image folder: give the path relative to that folder, and name "
            "the folder with --image-dir"
        )
    if not path.parts or not is_path(name):
        raise ValueError(f"its image is {_shown(name)}, which is not a path")
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return folder / path, int(digest[:13], 16)  # 52 bits: exact in JSON's numbers too


# --- records ----------------------------------------------------------------------------------------------

Parsed = TypeVar("Parsed")


def _parsed(
    path: Path, records: Iterable[tuple[str, Any]], parse: Callable[[QuestionId, Record], Parsed], refuse: Refuse
) -> Iterator[Parsed]:
    """Calls `parse` with each question_id and record; adds the position in the file to its ValueErrors."""
    for place, record in records:
        question_id = None
        try:
            if not isinstance(record, dict):
                raise ValueError(f"it is {_shown(record)}, not an object")
            question_id = _id(record, "question_id")
            value = parse(question_id, record)
        except ValueError as error:
            named = "" if question_id is None else f" (question {question_id})"
            refuse(DataError(f"{path}: {place}{named}: {error}"))
        else:
            yield value


class _Texts(dict[Any, str]):
    """Deduplicates strings that many records share: `texts[value]` is `value`, validated and stored once."""

    def __missing__(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{_shown(value)} is not a string")
        if len(value) > LONGEST_TEXT:
            raise ValueError(
                f"the text {_shown(value)} has {len(value):,} characters; a question or an answer may have at most "
                f"{LONGEST_TEXT:,}"
            )
        if not value.isascii():
            value.encode()  # UnicodeEncodeError: an unpaired surrogate, which cannot be written to a file
        self[value] = value
        return value


def _integer(record: Record, name: str) -> int:
    value = record.get(name)
    if type(value) is not int:  # True is an int too
        raise ValueError(f'it has no "{name}"' if value is None else f'its "{name}" is {_shown(value)}, not an integer')
    if not -_ID_LIMIT <= value < _ID_LIMIT:
        raise ValueError(f'its "{name}" is beyond 64 bits')
    return value


def _id(record: Record, name: str) -> QuestionId:
    value = record.get(name)
    if not is_id(value):
        if isinstance(value, int):
            return _integer(record, name)
        raise ValueError(
            f'it has no "{name}"'
            if value is None
            else f'its "{name}" is {_shown(value)}: an id is an integer, or a text of one line with 1 to {LONGEST_ID} '
            "characters"
        )
    return value


def _text(record: Record, name: str, texts: _Texts) -> str:
    value = record.get(name)
    if value is None:
        raise ValueError(f'it has no "{name}"')
    try:
        return texts[value]
    except (TypeError, UnicodeEncodeError):
        raise ValueError(f'its "{name}" is {_shown(value)}, not a string') from None


def _answers(record: Record, texts: _Texts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the reference answers, and the answers as people wrote them if the record contains these."""
    given = record.get("answers")
    if not isinstance(given, list) or not given:
        wrong = 'it has no "answers"' if given is None else f'its "answers" are {_shown(given)}'
        raise ValueError(f"{wrong}: at least one is needed, in a list")
    if len(given) > MOST_ANSWERS:
        raise ValueError(f'it has {len(given):,} "answers"; at most {MOST_ANSWERS:,} are allowed')
    raw_answers: tuple[str, ...] = ()
    try:
        if isinstance(given[0], str):
            answers = tuple([texts[answer] for answer in given])
        else:
            answers = tuple([texts[answer["answer"]] for answer in given])
            if "raw_answer" in given[0]:  # all have it or none
                raw_answers = tuple([texts[answer.get("raw_answer", answer["answer"])] for answer in given])
    except (KeyError, TypeError, AttributeError, IndexError, UnicodeEncodeError):
        raise ValueError(
            f'its "answers" are {_shown(given)}: each must be a string, or each an object with a string "answer"'
        ) from None
    if (length := max(sum(map(len, answers)), sum(map(len, raw_answers)))) > LONGEST_ANSWERS:
        raise ValueError(f'its "answers" have {length:,} characters in total; at most {LONGEST_ANSWERS:,} are allowed')
    return answers, raw_answers


def _majority(answers: tuple[str, ...], raw_answers: tuple[str, ...], shown: ShownAnswer) -> str:
    return majority_answer(raw_answers if raw_answers and shown == "raw" else answers)


def _shown(value: Any) -> str:
    """Formats a value for a message."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse_repeated(where: object, question_ids: Iterable[QuestionId], refuse: Refuse = stop) -> set[QuestionId]:
    """Returns the question_ids that occur more than once; calls `refuse` with a RepeatedError if there are any.

    7 and "7" count as one id: messages and other programs cannot tell them apart.
    """
    counts = Counter(question_ids)
    as_text = Counter(map(str, counts))
    ids = (question_id for question_id, count in counts.items() if count > 1 or as_text[str(question_id)] > 1)
    repeated = sorted(ids, key=id_order)
    if repeated:
        refuse(RepeatedError(where, repeated))
    return set(repeated)
