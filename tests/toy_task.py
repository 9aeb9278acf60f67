"""A task that is not VQA: letters in common with a reference, 0 to 3. Nothing is right or wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Metric, Task


def leading_letters(prediction: str, query: Example) -> float:
    """How many of the first three letters are those of the reference, up to the first that is not."""
    same = [a == b for a, b in zip(prediction[:3], query.answers[0], strict=False)]
    return float([*same, False].index(False))


def letters_in_place(prediction: str, query: Example) -> float:
    """How many of the first three letters are those of the reference."""
    return float(sum(a == b for a, b in zip(prediction[:3], query.answers[0], strict=False)))


class Letters(Task):
    """The letters that an answer has in common with its reference; a demonstration shows it in lower case."""

    name = "letters"
    metrics = Registry(
        "metric of the task letters", [Metric("leading", leading_letters), Metric("in-place", letters_in_place)]
    )
    bounds = (0.0, 3.0)
    score_name = "Letters in common"
    short_name = "letters"

    def references(self, query: Example) -> Mapping[str, float]:
        return {}

    def demonstration(self, example: Example) -> str:
        return example.answer.lower()


LETTERS = Letters()


@contextmanager
def letters_task() -> Iterator[None]:
    """Makes the task known to icdsel, as a program of one's own would."""
    TASKS.add(LETTERS)
    try:
        yield
    finally:
        del TASKS[LETTERS.name]
