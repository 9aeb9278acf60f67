"""The scores of a row that belong to all queries together, with intervals and tests by resampling queries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icdsel.comparison.scores import Scores, seed_scores, values_of
from icdsel.comparison.statistics import (
    Clusters,
    Floats,
    Interval,
    SeedScores,
    aggregate_difference,
    aggregate_score,
    swap_pvalue,
)
from icdsel.tasks.base import TASKS
from icdsel.tasks.corpus import CorpusMetric


@dataclass(frozen=True)
class CorpusFigure:
    """A corpus score of a row; scores and differences as they are displayed, such as 53.1 for 0.531.

    Attributes:
        metric: Its name.
        score: The score of all queries.
        low: Lower bound of its 95 % interval; None if the data say nothing about it.
        high: Upper bound.
        difference: To the reference, paired by query; None for the reference itself, as everything below.
        difference_low: Lower bound of its 95 % interval.
        difference_high: Upper bound.
        p_value: Of no difference, two-sided, not corrected for other rows or metrics.
    """

    metric: str
    score: float
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class CorpusEstimator:
    """Computes the corpus scores of a table's rows.

    Attributes:
        clusters: Of the queries, by ascending question_id.
        seed: Seed of the resampling.
        resamples: Bootstrap samples for an interval.
        permutations: Swaps for a p-value.
    """

    clusters: Clusters
    seed: int
    resamples: int
    permutations: int

    def figures(self, row: Scores, reference: Scores | None) -> tuple[CorpusFigure, ...]:
        """The figures of all corpus metrics whose statistics are known for every query of the row.

        Args:
            row: The row.
            reference: The row that it is compared with, if its statistics are known too; None for none.
        """
        made = []
        for metric in TASKS.named(row.task).corpus_metrics.values():
            if not _is_known(metric, row):
                continue
            other = reference if reference is not None and _is_known(metric, reference) else None
            values = _Values(metric, [row] if other is None else [row, other])
            compared = None if other is None else seed_scores(other, values.of)
            made.append(self._figure(metric, values, seed_scores(row, values.of), compared))
        return tuple(made)

    def _figure(
        self, metric: CorpusMetric, values: "_Values", one: SeedScores, other: SeedScores | None
    ) -> CorpusFigure:
        drawn: dict[str, Any] = {"seed": self.seed, "clusters": self.clusters}
        bootstrap = drawn | {"bounds": metric.bounds, "resamples": self.resamples, "moved": True}
        figure = CorpusFigure(metric.name, *_shown(metric, aggregate_score(values.aggregate, one, **bootstrap)))
        if other is None:
            return figure
        difference, p_value = aggregate_difference(values.aggregate, one, other, **bootstrap)
        if p_value is None:
            pair = one.values[0], other.values[0]
            p_value = swap_pvalue(values.aggregate, *pair, permutations=self.permutations, **drawn)
        mean, low, high = _shown(metric, difference)
        return CorpusFigure(metric.name, figure.score, figure.low, figure.high, mean, low, high, p_value)


class _Values:
    """Statistics as numbers: that of each query is its position among all distinct ones, so that they can be resampled.

    Args:
        metric: The metric.
        rows: The rows whose statistics are resampled together.
    """

    def __init__(self, metric: CorpusMetric, rows: Sequence[Scores]) -> None:
        self._metric = metric
        statistics = (part.statistics[metric.name] for row in rows for part in row.parts)
        distinct = dict.fromkeys(statistic for own in statistics for statistic in own.values())
        self._statistics = list(distinct)
        self._place = {statistic: at for at, statistic in enumerate(self._statistics)}

    def of(self, part: Scores) -> Floats:
        """The numbers of a row, or of one of its seeds, [n] by ascending question_id."""
        own = part.statistics[self._metric.name]
        return values_of({query: float(self._place[own[query]]) for query in part.by_query})

    def aggregate(self, values: Floats) -> Floats:
        """The scores of samples (…) of numbers (…, n)."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.intp)  # (R, n)
        size = len(self._statistics)
        places = rows + size * np.arange(len(rows))[:, None]
        counts = np.bincount(places.ravel(), minlength=size * len(rows)).reshape(len(rows), size)
        found: Floats = self._metric.value(self._statistics, counts.astype(np.float64)).reshape(values.shape[:-1])
        return found


def _is_known(metric: CorpusMetric, row: Scores) -> bool:
    """Whether every query of the row has a statistic."""
    return all(part.statistics.get(metric.name, {}).keys() >= part.by_query.keys() for part in row.parts)


def _shown(metric: CorpusMetric, interval: Interval) -> tuple[float, float | None, float | None]:
    mean, low, high = (round(metric.factor * value, 4) if math.isfinite(value) else None for value in interval)
    assert mean is not None  # a score is finite
    return mean, low, high
