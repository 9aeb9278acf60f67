"""The task of exact match: short answers that are right or wrong."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Correctness, Metric, Relevance, Task
from icdsel.tasks.similarity import relevance

_ARTICLES = frozenset({"a", "an", "the"})
# A sign that is part of a number is no punctuation: 3.5 is not 35, and -5 is not 5.
_DECIMAL = re.compile(r"(?<=\d)[.,](?=\d)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SIGN = re.compile(r"(?<!\S)[-\u2212](?=[.]?\d)")
_REMOVED = frozenset(".'\u2019\u2018")  # within words, as in "U.S." and "don't"; other marks separate words


@lru_cache(maxsize=1 << 16)  # the same answers are compared with every prediction for their question
def cased_form(text: str) -> str:
    """Returns a text without articles, punctuation and superfluous white space; its case is kept.

    Unicode's spellings of the same characters are made equal (NFKC). Full stops and apostrophes are removed, other
    punctuation separates words like a space. Signs of numbers stay: "3.5", "-5"; commas between thousands go. If
    nothing else is left, articles stay ("A" is an answer), and then punctuation.
    """
    text = unicodedata.normalize("NFKC", text)
    kept = {found.start() for pattern in (_DECIMAL, _SIGN) for found in pattern.finditer(text)}
    commas = {found.start() + k for found in _THOUSANDS.finditer(text) for k, c in enumerate(found[0]) if c == ","}
    signs = (
        "" if place in commas else _sign(sign) if place in kept else _without_punctuation(sign)
        for place, sign in enumerate(text)
    )
    words = "".join(signs).split()
    return " ".join(word for word in words if word.lower() not in _ARTICLES) or " ".join(words) or stripped(text)


@lru_cache(maxsize=1 << 16)
def plain_form(text: str) -> str:
    """The `cased_form` without regard to case."""
    return cased_form(text).casefold()


def stripped(text: str) -> str:
    """Returns a text without white space around it."""
    return text.strip()


def _sign(sign: str) -> str:
    return "-" if sign == "\u2212" else sign


def _without_punctuation(sign: str) -> str:
    if sign in _REMOVED:
        return ""
    return " " if unicodedata.category(sign).startswith("P") else sign


def equal_to_an_answer(prediction: str, query: Example, form: Callable[[str], str]) -> float:
    """Returns 1 if the prediction has the form of one of the answers, as stored or as people wrote it, else 0."""
    return float(form(prediction) in {form(answer) for answer in (*query.answers, *query.raw_answers)})


_FORMS: dict[str, Callable[[str], str]] = {"exact": plain_form, "cased": cased_form, "verbatim": stripped}


class ExactTask(Task):
    """Short answers, each of which is right if it is one of the reference answers, and wrong otherwise."""

    name = "exact"
    metrics = Registry(
        "metric of the task exact",
        (Metric(name, partial(equal_to_an_answer, form=form)) for name, form in _FORMS.items()),
    )
    score_name = "Exact match"
    short_name = "exact match"
    unit = "points"
    factor = 100.0
    digits = 1
    correctness = Correctness(lambda score: score > 0, "an exact match")

    def references(self, query: Example) -> Mapping[str, float]:
        """The distinct answers as people wrote them, each with weight 1."""
        return dict.fromkeys(query.written_answers, 1.0)

    def relevance(self, prediction: str, query: Example) -> Relevance:
        """Similarity to the most similar answer, as stored or as written."""
        return relevance(prediction, tuple(dict.fromkeys((*query.answers, *query.raw_answers))))

    def normalize(self, text: str) -> str:
        """Normalises as the metric `exact` does."""
        return plain_form(text)


TASKS.add(ExactTask())
