"""Scores that belong to all queries together, such as macro-F1: a query has a statistic, not a score of its own.

To add one, write a function that makes a query's statistic and one that makes the score of many, and put a
`CorpusMetric` into a task's `corpus_metrics`. Comparisons then have a table for it, with intervals and tests by
resampling queries.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from icdsel.records import Example
from icdsel.records.values import Bounds
from icdsel.tasks.normalisation import option_form

if TYPE_CHECKING:  # importing numpy would slow down `--help`
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Statistic = tuple[float | str, ...]
"""What a query contributes, as numbers and texts that JSON can hold."""


class Judged(NamedTuple):
    """An answer to a query.

    Attributes:
        prediction: The prediction.
        log_probs: The log-probs (nats) of the query's options, in their order, or those per token if these decided the
            prediction; () if they were not scored.
    """

    prediction: str
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class CorpusMetric:
    """A score of all queries together.

    Attributes:
        name: Its name in tables.
        statistic: Makes the statistic of a query; None if the answer does not tell it.
        form: The types of a statistic's parts.
        ranges: The lowest and the highest value of each part that is a number, in order.
        value: From U statistics, and how often each occurs in R samples, float [R, U], to the score of each sample [R].
        bounds: The lowest and the highest score.
        factor: By which a score is multiplied to be displayed.
        digits: Number of decimals displayed.
    """

    name: str
    statistic: Callable[[Judged, Example], Statistic | None]
    form: tuple[type[str] | type[float], ...]
    value: "Callable[[Sequence[Statistic], Floats], Floats]"
    bounds: Bounds = (0.0, 1.0)
    factor: float = 100.0
    digits: int = 1
    ranges: tuple[Bounds, ...] = ()

    def fits(self, statistic: Statistic) -> bool:
        """Whether a statistic, such as one from a file, has the form of this metric's."""
        kinds = tuple(str if isinstance(part, str) else float for part in statistic)
        numbers = (part for part in statistic if not isinstance(part, str))
        ranged = zip(numbers, self.ranges, strict=False)
        return kinds == self.form and all(low <= number <= high for number, (low, high) in ranged)


def prediction_and_class(judged: Judged, query: Example) -> Statistic | None:
    """The predicted class and the right one, as they are compared; None without a right one.

    Of several right ones, it is the predicted one, if that is among them.
    """
    right = [option_form(answer) for answer in query.answers]
    predicted = option_form(judged.prediction)
    return (predicted, predicted if predicted in right else right[0]) if right else None


def macro_f1(statistics: Sequence[Statistic], counts: "Floats") -> "Floats":
    """The mean over classes of their F1, as scikit-learn's `f1_score(average="macro")` computes it.

    Classes are those that a sample contains, as the right or the predicted one. A prediction that is no class, such as
    an answer in other words, counts as a class with an F1 of 0.

    Args:
        statistics: Pairs of predicted and right class.
        counts: How often each occurs in R samples [R, U].
    """
    import numpy as np

    names = sorted({name for pair in statistics for name in pair})
    place = {name: at for at, name in enumerate(names)}
    predicted, right, both = (np.zeros((len(statistics), len(names))) for _ in range(3))  # (U, C)
    for u, (guess, truth) in enumerate(statistics):
        predicted[u, place[guess]] = right[u, place[truth]] = 1
        both[u, place[truth]] = guess == truth
    found, total = counts @ both, counts @ predicted + counts @ right  # (R, C)
    f1 = np.divide(2 * found, total, out=np.zeros_like(total), where=total > 0)
    means: Floats = f1.sum(1) / np.maximum((total > 0).sum(1), 1)
    return means


def positive_score(judged: Judged, query: Example) -> Statistic | None:
    """By how much the log-prob of the second of two options is above the first's, and whether it is right."""
    if len(judged.log_probs) != 2 or len(query.options) != 2 or not query.answers:
        return None
    negative, positive = judged.log_probs
    return round(positive - negative, 6), float(option_form(query.options[1]) in map(option_form, query.answers))


def auroc(statistics: Sequence[Statistic], counts: "Floats") -> "Floats":
    """The area under the receiver operating characteristic of two classes; 0.5 for a sample with only one of them.

    It is the probability that a positive query has a higher score than a negative one, ties counted half (Hanley and
    McNeil 1982).

    Args:
        statistics: Pairs of a score, and 1 for a positive query, 0 for a negative one.
        counts: How often each occurs in R samples [R, U].
    """
    import numpy as np

    scores, positive = (np.array([float(pair[at]) for pair in statistics]) for at in (0, 1))
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where each of L levels begins
    ordered, positive = counts[:, order], positive[order]
    hits, misses = (np.add.reduceat(ordered * own, starts, axis=1) for own in (positive, 1 - positive))  # (R, L)
    below = misses.cumsum(1) - misses
    pairs = hits.sum(1) * misses.sum(1)
    won = (hits * (below + misses / 2)).sum(1)
    areas: Floats = np.divide(won, pairs, out=np.full(len(counts), 0.5), where=pairs > 0)
    return areas


MACRO_F1 = CorpusMetric("macro-F1", prediction_and_class, (str, str), macro_f1)
AUROC = CorpusMetric("AUROC", positive_score, (float, float), auroc, ranges=((-math.inf, math.inf), (0.0, 1.0)))
