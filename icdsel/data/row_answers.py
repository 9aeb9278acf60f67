"""The answers of a row: those of people, or one of the options that its question gives."""

from typing import Any, NamedTuple

from icdsel.data.choices import Choices
from icdsel.data.parsing import (
    Record,
    ShownAnswer,
    Texts,
    answers_of,
    as_text,
    majority_of,
    text_of,
)


class Answers(NamedTuple):
    """What a row says of its answers.

    Attributes:
        shown: The answer that a demonstration shows; "" if the row has none.
        references: The reference answers.
        raw: The same as people wrote them, if they differ.
        options: The answers to choose from.
    """

    shown: str
    references: tuple[str, ...]
    raw: tuple[str, ...]
    options: tuple[str, ...]


def read_answers(mapped: Record, choices: Choices | None, shown: ShownAnswer, texts: Texts) -> Answers:
    """Reads the fields `answers` and `answer`. With options, `answer` counts before `answers`.

    Args:
        mapped: The row.
        choices: Its options; None if it has none.
        shown: The answer of demonstrations, as in `parsing.majority_of`.
        texts: Validates the texts.

    Raises:
        ValueError: An answer is invalid, or none of the options.
    """
    given, answer = listed(mapped.get("answers")), mapped.get("answer")
    one = listed(answer)
    if choices is not None and choices.texts:
        raw_one = answer if isinstance(answer, list) else [answer]
        meant = [choices.chosen(value) for value in (raw_one if one else _texts_of(given))]
        references, _ = answers_of({"answers": meant}, texts) if meant else ((), ())
        return Answers(majority_of(references, (), shown) if references else "", references, (), choices.texts)
    references, raw = answers_of({"answers": given or one}, texts) if given or one else ((), ())
    single = as_text(answer)
    if isinstance(single, list) and not given:  # then these are the answers
        single = None
    if single is not None:
        single = text_of({"answer": single}, "answer", texts)
    elif references:
        single = majority_of(references, raw, shown)
    return Answers(single or "", references, raw, ())


def listed(given: Any) -> list[Any]:
    """Answers as a list of texts or objects, from a single one, numbers, or objects that are stored by columns."""
    if as_text(given) is None or (isinstance(given, str) and not given.strip()):
        return []
    if isinstance(given, dict) and isinstance(texts := given.get("answer", given.get("text")), list):
        raw = given.get("raw_answer")
        if isinstance(raw, list) and len(raw) == len(texts):
            return [{"answer": one, "raw_answer": other} for one, other in zip(texts, raw, strict=True)]
        return texts
    return [as_text(answer) for answer in (given if isinstance(given, list) else [given])]


def _texts_of(answers: list[Any]) -> list[Any]:
    return [one.get("answer") if isinstance(one, dict) else one for one in answers]
