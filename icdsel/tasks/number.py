"""The task of numbers: the answer is a number, alone or in a text (`icdsel.tasks.numerals` says what is read)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Correctness, Metric, Task
from icdsel.tasks.corpus import CorpusMetric, Judged, Statistic
from icdsel.tasks.exact import plain_form
from icdsel.tasks.numerals import number_in

if TYPE_CHECKING:
    from icdsel.tasks.corpus import Floats

TOLERANCE = 0.05
"""How far from the truth a number still counts as right, as a share of it: the rule of ChartQA (arXiv 2203.10244)."""
_ROUNDING = 1e-9  # of the bound: 1.05 is within 5 % of 1, although the difference of the doubles is a little more


def absolute_error(prediction: str, answer: str) -> float | None:
    """The distance |p - t| between the numbers in a prediction and in an answer; None if either has no number.

    Its mean over queries is the mean absolute error, in the unit of the data.
    """
    predicted, truth = number_in(prediction), number_in(answer)
    return None if predicted is None or truth is None else abs(predicted - truth)


def _equal(predicted: float, truth: float) -> float:
    return float(predicted == truth)


def _within_tolerance(predicted: float, truth: float) -> float:
    return float(abs(predicted - truth) <= TOLERANCE * abs(truth) * (1 + _ROUNDING))


def _closeness(predicted: float, truth: float) -> float:
    """1 / (1 + |p - t| / max(1, |t|)): 1 if p is t, 1/2 if it is off by the truth itself."""
    return 1 / (1 + abs(predicted - truth) / max(1.0, abs(truth)))


def _score(prediction: str, query: Example, compare: Callable[[float, float], float]) -> float:
    """The best comparison with any answer. An answer that is no number must be equal as a text."""
    predicted, scores = number_in(prediction), [0.0]
    for answer in query.answers:
        truth = number_in(answer)
        if truth is None:
            scores.append(float(plain_form(prediction) == plain_form(answer)))
        elif predicted is not None:
            scores.append(compare(predicted, truth))
    return max(scores)


def _error_statistic(judged: Judged, query: Example) -> Statistic | None:
    """The smallest absolute error, and 1; or zeros for a prediction without a number. None without a true number."""
    errors = [absolute_error(judged.prediction, answer) for answer in query.written_answers]
    if all(number_in(answer) is None for answer in query.written_answers):
        return None
    known = [error for error in errors if error is not None]
    return (float(f"{min(known):.6g}"), 1.0) if known else (0.0, 0.0)


def _mean_error(statistics: "Sequence[Statistic]", counts: "Floats") -> "Floats":
    """The mean absolute error of the predictions that have a number; of a sample without any, that of all others."""
    import numpy as np

    error, known = (np.array([float(pair[at]) for pair in statistics]) for at in (0, 1))
    total, count = counts @ (error * known), counts @ known  # (R,)
    others = (error * known).sum() / max(known.sum(), 1)
    means: Floats = np.divide(total, count, out=np.full(len(counts), others), where=count > 0)
    return means


MAE = CorpusMetric(
    "MAE",
    _error_statistic,
    (float, float),
    _mean_error,
    bounds=(0.0, math.inf),
    factor=1.0,
    digits=2,
    ranges=((0.0, math.inf), (0.0, 1.0)),
)
"""The mean absolute error, in the unit of the data. Lower is better. Predictions without a number are left out."""


class NumberTask(Task):
    """Answers that are numbers, and are right or wrong, or more or less close.

    With p the number in the prediction and t that in the answer, the metrics are `exact` (1 if p = t), `tolerance` (1
    if |p - t| is at most 5 % of |t|) and `error`, 1 / (1 + |p - t| / max(1, |t|)). A prediction without a number
    scores 0. Of several answers, the one that fits best counts.
    """

    name = "number"
    metrics = Registry(
        "metric of the task number",
        (
            Metric(name, partial(_score, compare=compare))
            for name, compare in {"exact": _equal, "tolerance": _within_tolerance, "error": _closeness}.items()
        ),
    )
    corpus_metrics = Registry("corpus metric of the task number", [MAE])
    score_name = "Number score"
    unit = "points"
    factor = 100.0
    digits = 1
    correctness = Correctness(lambda score: score >= 1, "a right number")

    def references(self, query: Example) -> Mapping[str, float]:
        """The distinct answers, each with weight 1."""
        return dict.fromkeys(query.written_answers, 1.0)

    def normalize(self, text: str) -> str:
        """The number in a text, however it is written; a text without one as in the task `exact`."""
        value = number_in(text)
        return plain_form(text) if value is None else repr(value)


TASKS.add(NumberTask())
