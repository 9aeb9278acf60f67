"""A paired difference of two rows: its interval, its p-value with seeds, and the smallest effect that it detects."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy import optimize

from icdsel.comparison.statistics.samples import Clusters, Floats, Interval, SeedScores, interval, require_fraction
from icdsel.comparison.statistics.variance import Variance, p_value, quantile, variance_of_means

_ROUNDING = 1e-12  # differences below this come from rounding
_FEWEST_CLUSTERS = 6  # of fewer, no flip of signs is as rare as 5 %


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two rows over the same queries.

    Attributes:
        by_query: [n], the differences of the means over seeds.
        variance: Of their mean.
        clusters: Of the queries.
        span: The largest possible score less the smallest; infinite if unbounded.
    """

    by_query: Floats
    variance: Variance
    clusters: Clusters
    span: float

    @classmethod
    def of(cls, a: SeedScores, b: SeedScores, *, clusters: Clusters, bounds: tuple[float, float] = (0.0, 1.0)) -> Self:
        """A − b.

        Args:
            a: (S, n), the scores of one row.
            b: (S', n), the scores of the other for the same queries. Seeds of the same label are paired.
            clusters: Of the n queries.
            bounds: The lowest and the highest possible score.

        Raises:
            ValueError: The numbers of queries differ.
        """
        if not a.values.shape[1] == b.values.shape[1] == clusters.n:
            raise ValueError(f"the scores are not paired: {a.values.shape[1]} queries against {b.values.shape[1]}")
        variance = variance_of_means(a, b, clusters=clusters)
        return cls(a.by_query - b.by_query, variance, clusters, bounds[1] - bounds[0])

    @property
    def mean(self) -> float:
        """The mean difference."""
        return float(self.by_query.mean())

    @cached_property
    def step(self) -> float:
        """How much a query typically changes if it changes: the root mean square, mixed with one change of `span`.

        NaN if no query changes and scores are unbounded.
        """
        changes = self.by_query[np.abs(self.by_query) > _ROUNDING]
        if math.isfinite(self.span):
            changes = np.append(changes, self.span)
        return math.sqrt(float((changes**2).mean())) if len(changes) else math.nan

    def interval(self, level: float = 0.95) -> Interval:
        """The interval, over other queries and, if a row has several, other seeds.

        Student's, as if half a query more were won and half a query lost (after Agresti and Min 2005, who add them for
        right and wrong answers). Without them, rows that agree on nearly all queries have too small a spread: at 95 %
        ties, Student's interval covers 85 % at n = 50 and the bootstrap less.

        With VQA scores it covers the truth in 93 to 97 % wherever ten or more queries are expected to differ. With
        fewer it covers more, up to 100 %: so few cannot be told from none.

        Args:
            level: Intended coverage.

        Returns:
            The interval, within −span and span; all that is possible for a single cluster. Its bounds are NaN if no
            query changes and scores are unbounded.

        Raises:
            ValueError: `level` is out of range.
        """
        require_fraction(level, "level")
        if self.clusters.count == 1:
            unknown = self.span if math.isfinite(self.span) else math.nan
            return Interval(self.mean, -unknown, unknown)
        n = self.clusters.n
        centre, width = self.mean * n / (n + 1), math.sqrt(self._square_width(level)) / (n + 1)
        return interval(self.mean, centre, width, (-self.span, self.span))

    def p_value(self) -> float:
        """The two-sided p-value of no difference, by the interval: the level at which it begins to contain 0.

        For differences without seeds, use the exact `permutation_pvalue`.
        """
        if self.clusters.count == 1 or not self.by_query.any():
            return 1.0
        return p_value(self._square_width, (self.clusters.n * self.mean) ** 2)

    def _square_width(self, level: float) -> float:
        """n² times the square of the half-width around n/(n + 1) of the mean."""
        t = quantile(level, self.variance.queries_df)
        added = t**2 * self.step**2 * self.clusters.mean_size  # of half a query won and half a query lost
        return self.clusters.n**2 * self.variance.square_width(level) + added

    def smallest_detectable(self, level: float = 0.95, power: float = 0.8) -> float:
        """The smallest true difference that a comparison like this one finds with the given power.

        An effect arises because queries change: rows that agree on 95 % of 50 queries cannot differ by 9 points
        without changing more of them, which adds to the spread. So the effect δ is assumed to replace the difference
        of a share δ/step of the queries by one `step`. That adds g = step δ − (δ/step) n V to their variance, and
        δ = z₁₋α/₂ √(V + g/n) + z_power √(V + (g − δ²)/n) + step/n is solved. The last term is there because sums of few
        changes have gaps.

        Measured with VQA scores and ties of 10 to 99 %, over 1,000 tables each: an effect of this size is found in 79
        to 93 % at n = 200 and 800, and in 83 to 97 % at n = 50 (`tests/simulated_tables.py`, `power_of`). Without these
        terms it was 22, 63 and 77 % at 95 % ties and n = 50, 200 and 800.

        The two rows' seeds, if there are several, count with their own t quantile, which makes it a rough figure for
        fewer than 10 seeds.

        Args:
            level: 1 less the significance level of the two-sided test.
            power: The probability of finding it.

        Returns:
            The difference, positive; infinite if none that scores allow is found so often, NaN if nothing is known
            about the size of changes.

        Raises:
            ValueError: An argument is out of range.
        """
        require_fraction(level, "level")
        require_fraction(power, "power")
        n, step, found = self.clusters.n, self.step, self.variance
        if math.isnan(step):
            return math.nan
        if self.clusters.count < _FEWEST_CLUSTERS:
            return math.inf
        spread = float(self.by_query.var(ddof=1)) / n
        # Changes of queries on one image come together, as far as the observed ones do.
        together = max(1.0, found.queries / spread) if spread else self.clusters.mean_size
        added = max(0.0, step - n * spread / step)  # to the variance of a query, by one unit of the effect

        def shortfall(effect: float) -> float:
            more = together * added * effect / n
            null = Variance(found.queries + more, found.queries_df, found.seeds, found.seeds_df)
            less = min(together * effect**2 / n, null.queries)
            true = Variance(null.queries - less, found.queries_df, found.seeds, found.seeds_df)
            wanted = math.sqrt(null.square_width(level)) + math.sqrt(true.square_width(2 * power - 1))
            return wanted + together * step / n - effect

        most = self.span if math.isfinite(self.span) else 1e6 * (step + math.sqrt(found.queries + found.seeds))
        if shortfall(most) >= 0:
            return math.inf
        return float(optimize.brentq(shortfall, 0.0, most, rtol=1e-9))
