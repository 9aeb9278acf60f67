"""Tasks with options: multiple choice, and classes. An answer is one of the options that the query names.

The VLM's answer is read as an option, or the option with the highest log-prob counts as its answer (`--choice-by`).
"""

import copy
import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Self

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Correctness, Metric, Task
from icdsel.tasks.corpus import AUROC, MACRO_F1
from icdsel.tasks.normalisation import comparable

MOST_LISTED = len(ascii_uppercase)
"""Options that a question can list."""
_LETTER = re.compile(r"\W*([A-Z])(?:\W|$)")


def _is_right(prediction: str, query: Example) -> float:
    return float(comparable(prediction) in set(map(comparable, query.answers)))


class OptionsTask(Task):
    """A task whose queries name the answers to choose from.

    Attributes:
        listed: Whether prompts list the options after the question, each with a letter that is its answer. If not, an
            answer is the option's text.
    """

    score_name = "Accuracy"
    short_name = "accuracy"
    unit = "points"
    factor = 100.0
    digits = 1
    correctness = Correctness(lambda score: score > 0, "the right option")
    has_options = True
    listed: bool

    def with_options(self, listed: bool) -> Self:
        """The task with options listed in prompts, or not."""
        other = copy.copy(self)
        other.listed = listed
        return other

    def candidates(self, query: Example) -> tuple[str, ...]:
        """What the VLM may answer for each option."""
        return tuple(ascii_uppercase[: len(query.options)]) if self.listed else query.options

    def references(self, query: Example) -> Mapping[str, float]:
        """What it may answer; the right one weighs 1, the others 0."""
        right = set(map(comparable, query.answers))
        pairs = zip(self.candidates(query), query.options, strict=True)
        return {candidate: float(comparable(option) in right) for candidate, option in pairs}

    def question(self, example: Example) -> str:
        """The question; its options below it if they are listed."""
        if not self.listed:
            return example.question
        lines = (f"{letter}. {option}" for letter, option in zip(ascii_uppercase, example.options, strict=False))
        return "\n".join([example.question, *lines])

    def demonstration(self, example: Example) -> str:
        """The letter of the answer if options are listed, else the answer."""
        if not self.listed:
            return example.answer
        places = [at for at, option in enumerate(example.options) if comparable(option) == comparable(example.answer)]
        return ascii_uppercase[places[0]] if places else example.answer

    def read(self, text: str, query: Example) -> str:
        """The option that an answer names, by its letter (`B`, `(B) red`) or its text; other texts stay as they are."""
        same = [option for option in query.options if comparable(option) == comparable(text)]
        if same:
            return same[0]
        letter = _LETTER.match(text) if self.listed else None
        place = ascii_uppercase.index(letter[1]) if letter else len(query.options)
        return query.options[place] if place < len(query.options) else text

    def fault(self, example: Example) -> str | None:
        """What is wrong with the options of an example; None if nothing is."""
        forms = [comparable(option) for option in example.options]
        if len(forms) < 2:
            return (
                f'it has {len(forms)} options, and the task {self.name} needs two or more: add "options" to the record'
            )
        if len(set(forms)) < len(forms):
            twice = next(option for at, option in enumerate(example.options) if forms[at] in forms[:at])
            return f"its options hold {twice!r} twice: remove one of them"
        if unknown := [answer for answer in example.answers if comparable(answer) not in forms]:
            return f"its answer {unknown[0]!r} is none of its options: correct one of them"
        if self.listed and len(forms) > MOST_LISTED:
            return f"it has {len(forms)} options, and prompts can list {MOST_LISTED}: use --no-show-options"
        return None

    def normalize(self, text: str) -> str:
        """Normalises as options are compared."""
        return comparable(text)


class ChoiceTask(OptionsTask):
    """Multiple choice: each query has its own options."""

    name = "choice"
    listed = True
    metrics = Registry("metric of the task choice", [Metric("accuracy", _is_right)])


class ClassifyTask(OptionsTask):
    """Classification: the options are the classes of the dataset, which prompts do not list."""

    name = "classify"
    listed = False
    metrics = Registry("metric of the task classify", [Metric("accuracy", _is_right)])
    corpus_metrics = Registry("corpus metric of the task classify", [MACRO_F1, AUROC])


TASKS.add(ChoiceTask())
TASKS.add(ClassifyTask())
