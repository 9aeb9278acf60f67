"""The fields of a record: ids, texts and answers, with their limits. Errors name the file and the place in it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from icdsel.errors import DataError, Refuse, stop
from icdsel.records import QuestionId, id_order
from icdsel.records.values import LONGEST_ID, is_id
from icdsel.tasks.base import majority_answer

ShownAnswer = Literal["raw", "stemmed"]
Record = dict[str, Any]

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


Parsed = TypeVar("Parsed")


def parse_records(
    path: Path, records: Iterable[tuple[str, Any]], parse: Callable[[QuestionId, Record], Parsed], refuse: Refuse
) -> Iterator[Parsed]:
    """Calls `parse` with each question_id and record; adds the position in the file to its ValueErrors."""
    for place, record in records:
        question_id = None
        try:
            if not isinstance(record, dict):
                raise ValueError(f"it is {quoted(record)}, not an object")
            question_id = id_of(record, "question_id")
            value = parse(question_id, record)
        except ValueError as error:
            named = "" if question_id is None else f" (question {question_id})"
            refuse(DataError(f"{path}: {place}{named}: {error}"))
        else:
            yield value


class Texts(dict[Any, str]):
    """Deduplicates strings that many records share: `texts[value]` is `value`, validated and stored once."""

    def __missing__(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{quoted(value)} is not a string")
        if len(value) > LONGEST_TEXT:
            raise ValueError(
                f"the text {quoted(value)} has {len(value):,} characters; a question or an answer may have at most "
                f"{LONGEST_TEXT:,}"
            )
        if not value.isascii():
            value.encode()  # UnicodeEncodeError: an unpaired surrogate, which cannot be written to a file
        self[value] = value
        return value


def integer_of(record: Record, name: str) -> int:
    """A field that must be a 64-bit integer.

    Raises:
        ValueError: It is missing or something else.
    """
    value = record.get(name)
    if type(value) is not int:  # True is an int too
        raise ValueError(f'it has no "{name}"' if value is None else f'its "{name}" is {quoted(value)}, not an integer')
    if not -_ID_LIMIT <= value < _ID_LIMIT:
        raise ValueError(f'its "{name}" is beyond 64 bits')
    return value


def id_of(record: Record, name: str) -> QuestionId:
    """A field that must be an id.

    Raises:
        ValueError: It is missing or something else.
    """
    value = record.get(name)
    if not is_id(value):
        if isinstance(value, int):
            return integer_of(record, name)
        raise ValueError(
            f'it has no "{name}"'
            if value is None
            else f'its "{name}" is {quoted(value)}: an id is an integer, or a text of one line with 1 to {LONGEST_ID} '
            "characters"
        )
    return value


def text_of(record: Record, name: str, texts: Texts) -> str:
    """A field that must be a text.

    Raises:
        ValueError: It is missing, too long or something else.
    """
    value = record.get(name)
    if value is None:
        raise ValueError(f'it has no "{name}"')
    try:
        return texts[value]
    except (TypeError, UnicodeEncodeError):
        raise ValueError(f'its "{name}" is {quoted(value)}, not a string') from None


def as_text(value: Any) -> Any:
    """A number as text, as an answer may be one; None for NaN, as tables have where nothing is; the rest as it is."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def has_value(value: Any) -> bool:
    """Whether a field has a value: not null, NaN, or an empty text, list or object."""
    return as_text(value) is not None and value not in ("", [], {})


def answers_of(record: Record, texts: Texts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the reference answers, and the answers as people wrote them if the record contains these."""
    given = record.get("answers")
    if not isinstance(given, list) or not given:
        wrong = 'it has no "answers"' if given is None else f'its "answers" are {quoted(given)}'
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
            f'its "answers" are {quoted(given)}: each must be a string, or each an object with a string "answer"'
        ) from None
    if (length := max(sum(map(len, answers)), sum(map(len, raw_answers)))) > LONGEST_ANSWERS:
        raise ValueError(f'its "answers" have {length:,} characters in total; at most {LONGEST_ANSWERS:,} are allowed')
    return answers, raw_answers


def majority_of(answers: tuple[str, ...], raw_answers: tuple[str, ...], shown: ShownAnswer) -> str:
    """The most common answer, as people wrote it ("raw") or as the field `answer` has it ("stemmed")."""
    return majority_answer(raw_answers if raw_answers and shown == "raw" else answers)


def quoted(value: Any) -> str:
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
