"""The forms in which VQA data come as files: VQA's own JSON, Lever-Plus's preprocessed JSON, and JSON lines.

Every reader makes examples of records one after the other, so that of a file only its text and the examples are
held, and says of what it refuses in which file and where. Of human answers there may be any number from one on,
and not the same for every question: the VQA accuracy is defined for all of them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from icdsel.errors import DataError, Refuse, stop
from icdsel.records import Example
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
"""Other names of splits, where data name them themselves."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
MOST_ANSWERS = 1000
"""Of a question; ten are usual."""
LONGEST_TEXT = 4096
"""Characters of a question or an answer: VQA's have some hundred at most, and a prompt holds dozens."""
LONGEST_ANSWERS = 10 * LONGEST_TEXT
"""Characters of all answers of a question: they are scored at once, in memory that grows with the square."""
_ID_LIMIT = 2**63  # question_ids travel in tensors


class RepeatedError(DataError):
    """`ids` stand more than once as question_ids."""

    def __init__(self, where: object, ids: Sequence[int]) -> None:
        super().__init__(f"{where}: {len(ids)} question_ids stand more than once, first {list(ids[:3])}")
        self.ids = ids


class UnpairedError(DataError):
    """`ids` are the question_ids of questions without an annotation, and of annotations without a question."""

    def __init__(self, questions: Path, annotations: Path, unasked: Sequence[int], unanswered: Sequence[int]) -> None:
        super().__init__(
            f"{questions} and {annotations} do not belong together: {len(unasked)} annotations without a question "
            f"(first {list(unasked[:3])}), {len(unanswered)} questions without an annotation "
            f"(first {list(unanswered[:3])})"
        )
        self.ids = (*unasked, *unanswered)


# --- VQA's form and what Lever-Plus makes of it -----------------------------------------------------------


def read_official(
    questions: Path, annotations: Path, image_of: ImageOf, shown: ShownAnswer, refuse: Refuse = stop
) -> list[Example]:
    """Read VQA's two files: `{"questions": [...]}` and `{"annotations": [...]}`, joined by question_id.

    Args:
        questions: Records with `question_id` and `question`.
        annotations: Records with `question_id`, `image_id`, `answers` (of records with `answer` and perhaps
            `raw_answer`) and perhaps `multiple_choice_answer`.
        image_of: Says where the image of an image_id lies.
        shown: What a demonstration answers where nobody says which answer counts: the majority of what people
            wrote ("raw"), or of the field `answer` ("stemmed"; OK-VQA stems it).
        refuse: Gets the errors of single records; what it lets pass is left out, but for repeated question_ids.

    Raises:
        DataError: A file is damaged or not in this form, or the two do not belong together.
    """
    texts = _Texts()
    asked: dict[int, str] = {}
    image_of_question: dict[int, object] = {}
    annotated: set[int] = set()

    def ask(question_id: int, record: Record) -> int:
        image_of_question[question_id] = record.get("image_id")  # of questions too that are refused
        asked[question_id] = _text(record, "question", texts)
        return question_id

    repeated = refuse_repeated(questions, _made(questions, read_list(questions, "questions"), ask, refuse), refuse)
    unasked: list[int] = []

    def annotate(question_id: int, record: Record) -> Example | None:
        annotated.add(question_id)
        question = asked.get(question_id)
        if question is None:
            if question_id not in image_of_question:
                unasked.append(question_id)
            return None
        example = _vqa_example(question_id, question, record, image_of, shown, texts)
        image = image_of_question[question_id]
        if image is not None and image != example.image_id:
            raise ValueError(
                f"it is about image {example.image_id}, its question in {questions.name} about image {image}"
            )
        return example

    made = _made(annotations, read_list(annotations, "annotations"), annotate, refuse)
    examples = [example for example in made if example is not None]
    unanswered = asked.keys() - annotated
    if unasked or unanswered:
        refuse(UnpairedError(questions, annotations, sorted(unasked), sorted(unanswered)))
    told_once = (example.question_id for example in examples if example.question_id not in repeated)
    refuse_repeated(annotations, told_once, refuse)
    return examples


def read_preprocessed(
    path: Path, dataset: str, image_of: ImageOf, shown: ShownAnswer, refuse: Refuse = stop
) -> list[Example]:
    """Read Lever-Plus's one file a split: VQA's annotations with each one's `question` (specification §1.1).

    Args:
        path: The file; OK-VQA's is called as VQAv2's.
        dataset: What it should hold, "okvqa" or "vqav2". Their records differ, and a file of the other is refused.
        image_of: As for `read_official`.
        shown: As for `read_official`.
        refuse: As for `read_official`.

    Raises:
        DataError: The file is damaged, not in this form, or the other dataset's.
    """
    texts = _Texts()

    def make(question_id: int, record: Record) -> Example:
        example = _vqa_example(question_id, _text(record, "question", texts), record, image_of, shown, texts)
        form = "vqav2" if "multiple_choice_answer" in record else "okvqa" if example.raw_answers else dataset
        if form != dataset:
            raise ValueError(
                f"it has the form of {form}, not of {dataset}: give another --data-dir, or --dataset {form}"
            )
        return example

    examples = list(_made(path, read_list(path, "annotations"), make, refuse))
    refuse_repeated(path, (example.question_id for example in examples), refuse)
    return examples


def _vqa_example(
    question_id: int, question: str, record: Record, image_of: ImageOf, shown: ShownAnswer, texts: "_Texts"
) -> Example:
    image_id = _integer(record, "image_id")
    answers, raw_answers = _answers(record, texts)
    choice = record.get("multiple_choice_answer")
    answer = _text(record, "multiple_choice_answer", texts) if choice else _majority(answers, raw_answers, shown)
    return Example(question_id, image_id, image_of(image_id), question, answer, answers, raw_answers)


# --- JSON lines -------------------------------------------------------------------------------------------


def read_json_lines(path: Path, split: str, images: Path, shown: ShownAnswer) -> list[Example]:
    """Read one split of a file of JSON lines.

    Each line is an object with

    * `question_id`, an integer, once in a split
    * `image`, the image's path from the folder `images` on
    * `question`, a text
    * `answers`, texts, or records with `answer` and perhaps `raw_answer` as in VQA
    * perhaps `answer`, what a demonstration shows (else as for `read_official`)
    * perhaps `image_id`, an integer (else made from the image's path, always the same)
    * perhaps `split`: "train" (as without it), "validation" or "val", "tuning", "test"

    Empty lines are passed over.

    Raises:
        DataError: A line is damaged, lacks something or names an image outside of `images`; or none belongs to
            the split.
    """
    sizes: Counter[str] = Counter()
    examples = [example for _, example in _lines(path, split, images, shown, sizes, stop)]
    if not sizes:
        raise DataError(f"{path} is empty: it should hold one JSON object a line")
    if not examples:
        held = ", ".join(f"{name} ({count})" for name, count in sizes.items())
        raise DataError(
            f"{path} has no examples of the split {split!r}: there are {held}. "
            f'Write "split": "{split}" into the lines that belong to it.'
        )
    refuse_repeated(path, (example.question_id for example in examples))
    return examples


def read_every_split(path: Path, images: Path, shown: ShownAnswer, refuse: Refuse) -> dict[str, list[Example]]:
    """Read all splits of a file of JSON lines at once, as `read_json_lines` reads each.

    Args:
        path: The file.
        images: As for `read_json_lines`.
        shown: As for `read_json_lines`.
        refuse: Gets the errors of single lines; what it lets pass is left out, but for repeated question_ids.

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
    """Examples with their splits, of the split that is wanted or of all; counts the lines of each in `sizes`."""
    texts = _Texts()
    paths: dict[str, tuple[Path, int]] = {}

    def make(question_id: int, record: Record) -> tuple[str, Example] | None:
        own = "train" if record.get("split") is None else _text(record, "split", texts)
        own = SPLIT_NAMES.get(own, own)
        sizes[own] += 1
        if wanted not in (None, own):
            return None
        name = _text(record, "image", texts)
        if name not in paths:
            paths[name] = _image(name, images)
        image, image_id = paths[name]
        if record.get("image_id") is not None:
            image_id = _integer(record, "image_id")
        answers, raw_answers = _answers(record, texts)
        given = record.get("answer") is not None
        return own, Example(
            question_id=question_id,
            image_id=image_id,
            image=image,
            question=_text(record, "question", texts),
            answer=_text(record, "answer", texts) if given else _majority(answers, raw_answers, shown),
            answers=answers,
            raw_answers=raw_answers,
        )

    made = _made(path, read_lines(path, refuse), make, refuse)
    return (found for found in made if found is not None)


def _image(name: str, folder: Path) -> tuple[Path, int]:
    """Where an image lies, and an image_id made of its name.

    Raises:
        ValueError: It does not lie in the folder.
    """
    if _URL.match(name):
        raise ValueError(f"its image is {_shown(name)}: nothing is fetched; save the images and give their paths")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"its image {_shown(name)} leaves the folder of the images: write the path from that folder on, and say "
            "which it is with --image-dir"
        )
    if not path.parts or not is_path(name):
        raise ValueError(f"its image is {_shown(name)}, which is no path")
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return folder / path, int(digest[:13], 16)  # 52 bits: exact in JSON's numbers too


# --- records ----------------------------------------------------------------------------------------------

Made = TypeVar("Made")


def _made(
    path: Path, records: Iterable[tuple[str, Any]], make: Callable[[int, Record], Made], refuse: Refuse
) -> Iterator[Made]:
    """What `make` makes of each question_id and its record; a ValueError of it is told with the record's place."""
    for place, record in records:
        question_id = None
        try:
            if not isinstance(record, dict):
                raise ValueError(f"it is {_shown(record)}, not an object")
            question_id = _integer(record, "question_id")
            made = make(question_id, record)
        except ValueError as error:
            named = "" if question_id is None else f" (question {question_id})"
            refuse(DataError(f"{path}: {place}{named}: {error}"))
        else:
            yield made


class _Texts(dict[Any, str]):
    """Every text once: `texts[value]` is the text itself, checked when it is first seen, then shared."""

    def __missing__(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{_shown(value)} is not a text")
        if len(value) > LONGEST_TEXT:
            raise ValueError(
                f"the text {_shown(value)} has {len(value):,} characters, {LONGEST_TEXT:,} at most are read of a "
                "question or an answer"
            )
        if not value.isascii():
            value.encode()  # UnicodeEncodeError: half of a pair of code units, which no file could hold
        self[value] = value
        return value


def _integer(record: Record, name: str) -> int:
    value = record.get(name)
    if type(value) is not int:  # True is an int too
        raise ValueError(f'it has no "{name}"' if value is None else f'its "{name}" is {_shown(value)}, not an integer')
    if not -_ID_LIMIT <= value < _ID_LIMIT:
        raise ValueError(f'its "{name}" is beyond 64 bits')
    return value


def _text(record: Record, name: str, texts: _Texts) -> str:
    value = record.get(name)
    if value is None:
        raise ValueError(f'it has no "{name}"')
    try:
        return texts[value]
    except (TypeError, UnicodeEncodeError):
        raise ValueError(f'its "{name}" is {_shown(value)}, not a text') from None


def _answers(record: Record, texts: _Texts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What predictions are compared with, and, where that is something else, what people wrote."""
    told = record.get("answers")
    if not isinstance(told, list) or not told:
        wrong = 'it has no "answers"' if told is None else f'its "answers" are {_shown(told)}'
        raise ValueError(f"{wrong}: at least one is needed, in a list")
    if len(told) > MOST_ANSWERS:
        raise ValueError(f'it has {len(told):,} "answers", {MOST_ANSWERS:,} at most are compared with a prediction')
    raw_answers: tuple[str, ...] = ()
    try:
        if isinstance(told[0], str):
            answers = tuple([texts[answer] for answer in told])
        else:
            answers = tuple([texts[answer["answer"]] for answer in told])
            if "raw_answer" in told[0]:  # all have it or none
                raw_answers = tuple([texts[answer.get("raw_answer", answer["answer"])] for answer in told])
    except (KeyError, TypeError, AttributeError, IndexError, UnicodeEncodeError):
        raise ValueError(
            f'its "answers" are {_shown(told)}: each must be a text, or each a record with a text "answer"'
        ) from None
    if (length := max(sum(map(len, answers)), sum(map(len, raw_answers)))) > LONGEST_ANSWERS:
        raise ValueError(f'its "answers" have {length:,} characters together, {LONGEST_ANSWERS:,} at most are scored')
    return answers, raw_answers


def _majority(answers: tuple[str, ...], raw_answers: tuple[str, ...], shown: ShownAnswer) -> str:
    return majority_answer(raw_answers if raw_answers and shown == "raw" else answers)


def _shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse_repeated(where: object, question_ids: Iterable[int], refuse: Refuse = stop) -> set[int]:
    """Refuse that a question_id stands more than once (RepeatedError); those that do, where that is let pass."""
    repeated = sorted(question_id for question_id, count in Counter(question_ids).items() if count > 1)
    if repeated:
        refuse(RepeatedError(where, repeated))
    return set(repeated)
