"""The interval of a row's mean score."""

import math
from dataclasses import replace

from icdsel.comparison.statistics.samples import Clusters, Interval, SeedScores, interval, require_fraction
from icdsel.comparison.statistics.variance import quantile, variance_of_means

_PRIOR = 0.5  # queries of the largest possible spread that the sample's spread is mixed with


def score_interval(
    row: SeedScores, *, clusters: Clusters, bounds: tuple[float, float] = (0.0, 1.0), level: float = 0.95
) -> Interval:
    """The mean score of a row and its interval, over other queries and, if the row has several, other seeds.

    Wilson's score interval (1927) with an effective number of queries (Dean and Pagano 2015). Near a bound of the
    scores, a sample may not contain the rare other values, and its own spread is then too small. Wilson's interval
    ties the spread to the mean instead: scores with a mean μ within 0 and 1 have a variance of at most μ(1 − μ), that
    of right or wrong answers, of which the sample has a share r. So n scores are worth n/r right or wrong answers.
    A sample without spread gives the widest interval, r = 1, and all others are mixed with half a query of it.

    For VQA scores it covers the truth in 93 to 97 % of samples of 20 to 800 queries at accuracies of 45, 90 and 97.8 %,
    where the bootstrap covers 44 to 95 %. Pure right or wrong answers are a lattice: at 97.8 % and n = 20, it covers
    92.6 %.

    Args:
        row: (S, n), by seed and query.
        clusters: Of the n queries.
        bounds: The lowest and the highest possible score. If one is infinite, the interval is Student's.
        level: Intended coverage.

    Returns:
        The interval within the bounds. All that is possible for a single cluster. Its bounds are NaN if the scores
        have neither spread nor bounds.

    Raises:
        ValueError: `level` is out of range.
    """
    require_fraction(level, "level")
    mean, (low, high) = float(row.values.mean()), bounds
    span, n = high - low, clusters.n
    variance = variance_of_means(row, clusters=clusters)
    if not math.isfinite(span):
        width = math.sqrt(variance.square_width(level)) if 0 < variance.queries < math.inf else math.nan
        return interval(mean, mean, width, bounds)
    if clusters.count == 1 < n:
        return Interval(mean, low, high)
    # The variance is tied to the mean, so independent queries have the normal quantile, as Wilson's interval has.
    df = math.inf if clusters.singletons else variance.queries_df
    share = (mean - low) / span  # 0 to 1
    spread = max(0.0, share * (1 - share))  # the largest possible variance at this mean
    found = 0.0 if n == 1 else replace(variance, queries_df=df).square_width(level) / span**2
    # z² r / n, of the sample's spread mixed with half a query (or image) of the largest.
    unit = (n**2 * found + _PRIOR * quantile(level, df) ** 2 * clusters.mean_size) / (n * (n * spread + _PRIOR))
    centre, width = (share + unit / 2) / (1 + unit), math.sqrt(unit * spread + unit**2 / 4) / (1 + unit)
    return interval(mean, low + span * centre, span * width, bounds)
