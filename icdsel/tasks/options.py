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
from icdsel.tasks.normalisation import comparable, option_form

MOST_LISTED = len(ascii_uppercase)
"""Options that a question can list."""
_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\(?([A-Z])[.):]\s")
_NAMED = re.compile(r"(?:answer|option|choice)\W+(?:is\W+)?\(?([A-Z])\)?\W*", re.IGNORECASE)


def _is_right(prediction: str, query: Example) -> float:
    return float(option_form(prediction) in set(map(option_form, query.answers)))


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
        right = set(map(option_form, query.answers))
        pairs = zip(self.candidates(query), query.options, strict=True)
        return {candidate: float(option_form(option) in right) for candidate, option in pairs}

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
        places = [at for at, option in enumerate(example.options) if option_form(option) == option_form(example.answer)]
        return ascii_uppercase[places[0]] if places else example.answer

    def read(self, text: str, query: Example) -> str:
        """The option that an answer names, as its letter or its text; other texts stay as they are.

        Where prompts list options, a letter counts that stands alone (`B`, `(b)`), before the text (`B. red`) or after
        words that say so ("The answer is B").
        """
        if self.listed and (letter := _letter_in(text)) and (at := ascii_uppercase.index(letter)) < len(query.options):
            return query.options[at]
        for form in (option_form, comparable):  # exactly, or else without articles and punctuation
            if len(same := [option for option in query.options if form(option) == form(text)]) == 1:
                return same[0]
        return text

    def fault(self, example: Example) -> str | None:
        """What is wrong with the options of an example; None if nothing is."""
        forms = [option_form(option) for option in example.options]
        if len(forms) < 2:
            return (
                f'it has {len(forms)} options, and the task {self.name} needs two or more: add "options" to the record'
            )
        if len(set(forms)) < len(forms):
            twice = next(option for at, option in enumerate(example.options) if forms[at] in forms[:at])
            return f"its options hold {twice!r} twice: remove one of them"
        if unknown := [answer for answer in example.answers if option_form(answer) not in forms]:
            return f"its answer {unknown[0]!r} is none of its options: correct one of them"
        if self.listed and len(forms) > MOST_LISTED:
            return f"it has {len(forms)} options, and prompts can list {MOST_LISTED}: use --no-show-options"
        return None

    def normalize(self, text: str) -> str:
        """Normalises as options are compared."""
        return option_form(text)


def _letter_in(text: str) -> str | None:
    """The letter that an answer consists of, begins with, or names."""
    found = _ALONE.fullmatch(text) or _LEADING.match(text) or _NAMED.search(text)
    return found[1].upper() if found else None


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
