"""Tests and intervals by resampling: exact p-values of means, and everything for scores that are no means.

For means, a random sign flip of c equal differences leaves a binomial number of them positive: exact, and cheap for any
n if there are few distinct values, as of the VQA accuracy.

A corpus score, such as CIDEr or a median, has no score per query whose mean it is. It is computed again for each
bootstrap sample, and the variances of `variance` come from these samples.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from icdsel.comparison.statistics.samples import (
    Clusters,
    Floats,
    Interval,
    SeedScores,
    interval,
    pair,
    require_fraction,
    sample,
)
from icdsel.comparison.statistics.variance import (
    Variance,
    crossed,
    degrees_of_seeds,
    deviations,
    p_value,
    quantile,
    signed_parts,
)

Aggregate = Callable[[Floats], Floats]
"""From scores (…, n) to one number each (…)."""

_CHUNK = 1 << 20  # random numbers held at once
_ROUNDING = 1e-12  # differences below this, relative to the scores, come from rounding


def permutation_pvalue(
    differences: ArrayLike, *, seed: int, permutations: int = 10_000, clusters: Clusters | None = None
) -> float:
    """The two-sided p-value of a mean difference of 0, by random sign flips.

    If the selectors were interchangeable, each query's difference could as well have had the other sign; queries of
    one cluster together. The p-value is (1 + flips at least as extreme as observed) / (1 + permutations): the observed
    signs are one of the flips, so it is never 0 (Phipson and Smyth 2010).

    Args:
        differences: [n], the paired differences.
        seed: Seed of the flips.
        permutations: Number of random flips.
        clusters: Of the queries; by default all are independent.

    Raises:
        ValueError: There is no difference, one is not finite, or ``permutations`` is not positive.
    """
    own = sample(differences, "differences")
    if clusters is not None and not clusters.singletons:
        scale = float(np.abs(own).max())
        own = clusters.sums(own)
        own[np.abs(own) < _ROUNDING * scale * clusters.sizes] = 0.0
    if not own.any():
        return 1.0
    magnitudes, counts = _distinct(np.abs(own[own != 0]))  # a tie has no sign to flip

    def draw(rng: np.random.Generator, rows: int) -> Floats:
        positive = rng.binomial(counts, 0.5, size=(rows, len(counts))).astype(np.float64)
        sums: Floats = (2 * positive - counts) @ magnitudes
        return sums

    # A flip whose sum is below the observed one only by rounding is as extreme.
    extreme = abs(own.sum()) - _ROUNDING * np.abs(own).sum()
    return _share_as_extreme(draw, extreme, permutations, len(counts), seed)


def swap_pvalue(
    aggregate: Aggregate,
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int,
    permutations: int = 10_000,
    clusters: Clusters | None = None,
) -> float:
    """The two-sided p-value of no difference in an aggregate, by swapping the two selectors' scores at random.

    For means this is the test of ``permutation_pvalue``, which is faster.

    Args:
        aggregate: From scores (…, n) to one number each (…).
        a: [n], the scores of one selector.
        b: [n], the scores of the other on the same queries.
        seed: Seed of the swaps.
        permutations: Number of random swaps.
        clusters: Of the queries, which are swapped together; by default all are independent.

    Raises:
        ValueError: As for ``permutation_pvalue``, or the lengths differ.
    """
    first, second = pair(a, b)
    together = clusters or Clusters.independent(len(first))

    def draw(rng: np.random.Generator, rows: int) -> Floats:
        swapped = rng.integers(2, size=(rows, together.count)).astype(bool)[:, together.of_query]
        return aggregate(np.where(swapped, second, first)) - aggregate(np.where(swapped, first, second))

    observed = abs(float(aggregate(first) - aggregate(second)))
    extreme = observed - _ROUNDING * max(float(np.abs(first).max()), float(np.abs(second).max()))
    return _share_as_extreme(draw, extreme, permutations, len(first), seed)


def aggregate_score(
    aggregate: Aggregate,
    row: SeedScores,
    *,
    clusters: Clusters,
    bounds: tuple[float, float],
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
    moved: bool = False,
) -> Interval:
    """The aggregate of a row's scores, as the mean of its seeds, and its bootstrap interval.

    For one seed it is the percentile interval, with the percentiles widened for small samples as Student's t is wider
    than the normal distribution (Hesterberg 2015, section 5.3). For several seeds, the variances over queries and seeds
    are added as in `variance`, those over queries taken from the bootstrap.

    Args:
        aggregate: From scores (…, n) to one number each (…).
        row: (S, n), by seed and query.
        clusters: Of the queries.
        bounds: The lowest and the highest possible score.
        seed: Seed of the resampling; the same arguments always give the same interval.
        resamples: Number of bootstrap samples.
        level: Intended coverage.
        moved: Whether the interval is moved by the bias that samples show, for scores of statistics that are no
            numbers. Lower samples than the score tell that the score lies below the truth too, as of macro-F1, where
            samples lack rare classes.

    Returns:
        The interval. Scores that do not vary (with `moved`, samples) say nothing about the spread: it is then all that
        is possible, and its bounds are NaN if that is infinite.

    Raises:
        ValueError: An argument is out of range.
    """
    found, drawn, variance = _bootstrap(aggregate, row, None, clusters, seed, resamples)
    if np.ptp(drawn if moved else row.values) == 0 or clusters.count == 1:
        return _unknown(found, bounds)
    return _interval(found, drawn, variance, clusters, bounds, level, moved)


def aggregate_difference(
    aggregate: Aggregate,
    a: SeedScores,
    b: SeedScores,
    *,
    clusters: Clusters,
    bounds: tuple[float, float],
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
    moved: bool = False,
) -> tuple[Interval, float | None]:
    """The difference of two rows' aggregates with its interval, as `aggregate_score`, paired by query and seed.

    Returns:
        The interval; and the two-sided p-value by Student's t, which is None if neither row has several seeds:
        `swap_pvalue` is exact then.

    Raises:
        ValueError: An argument is out of range.
    """
    found, drawn, variance = _bootstrap(aggregate, a, b, clusters, seed, resamples)
    span = bounds[1] - bounds[0]
    p = None if math.isinf(variance.seeds_df) else p_value(variance.square_width, found**2)
    if np.ptp(drawn if moved else a.by_query - b.by_query) == 0 or clusters.count == 1:
        return _unknown(found, (-span, span)), p
    return _interval(found, drawn, variance, clusters, (-span, span), level, moved), p


def _bootstrap(
    aggregate: Aggregate, plus: SeedScores, minus: SeedScores | None, clusters: Clusters, seed: int, resamples: int
) -> tuple[float, Floats, Variance]:
    """The mean over seeds (or the difference of two) as found and as drawn [resamples], and its variance."""
    parts = signed_parts(plus, minus)
    rows = [part.values for _, part in parts]

    def statistics(queries: NDArray[np.intp]) -> Floats:  # (rows, n) to (rows, seeds of all parts)
        return np.concatenate([np.stack([aggregate(scores[queries]) for scores in row], axis=-1) for row in rows], -1)

    def draw(rng: np.random.Generator, count: int) -> Floats:
        return statistics(drawn_queries(rng, clusters, count))

    drawn = np.concatenate(list(_draws(draw, resamples, clusters.n * sum(map(len, rows)), seed)))  # (R, seeds)
    found = statistics(np.arange(clusters.n)[None])[0]
    ends = np.cumsum([len(row) for row in rows])[:-1]

    def combined(values: Floats) -> Floats:  # (…, seeds) to (…)
        means = (own.mean(axis=-1) for own in np.split(values, ends, axis=-1))
        total: Floats = np.sum([sign * mean for (sign, _), mean in zip(parts, means, strict=True)], axis=0)
        return total

    seeds: dict[object, Floats] = {}  # deviation of each seed [1 + R]: as found, as drawn
    both = np.concatenate([found[None], drawn])
    for (sign, part), own in zip(parts, np.split(both, ends, axis=-1), strict=True):
        for label, deviation in zip(part.labels, deviations(own.T), strict=True):
            seeds[label] = seeds.get(label, np.zeros(len(both))) + sign * deviation
    variance = crossed(
        float(combined(drawn).var()),
        max(clusters.effective - 1, 1e-3),
        between=sum(float(deviation[0] ** 2) for deviation in seeds.values()),
        luck=sum(float(deviation[1:].var()) for deviation in seeds.values()),
        seeds_df=degrees_of_seeds([part for _, part in parts]),
    )
    return float(combined(found)), combined(drawn), variance


def drawn_queries(rng: np.random.Generator, clusters: Clusters, count: int) -> NDArray[np.intp]:
    """`count` bootstrap samples of clusters, as their queries (count, n).

    Clusters of unequal sizes are drawn until n queries are reached; the last one may be cut.
    """
    n = clusters.n
    if clusters.singletons:
        return rng.integers(n, size=(count, n))
    order = np.argsort(clusters.of_query, kind="stable")  # queries, cluster by cluster
    starts = np.cumsum(clusters.sizes) - clusters.sizes
    chosen = np.empty((count, n), dtype=np.intp)
    for row in chosen:
        picked = rng.integers(clusters.count, size=n)  # enough, whatever their sizes
        sizes = clusters.sizes[picked]
        picked = picked[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
        sizes = clusters.sizes[picked]
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        row[:] = order[np.repeat(starts[picked], sizes) + offsets][:n]
    return chosen


def _interval(
    found: float,
    drawn: Floats,
    variance: Variance,
    clusters: Clusters,
    bounds: tuple[float, float],
    level: float,
    moved: bool,
) -> Interval:
    require_fraction(level, "level")
    bias = found - float(drawn.mean()) if moved else 0.0
    if not math.isinf(variance.seeds_df):
        width = math.sqrt(variance.square_width(level))
        return interval(found, found + bias, width, bounds)
    # Student's quantile with √(G/(G − 1)) as a share of the normal distribution (Hesterberg 2015).
    effective = clusters.effective
    wide = quantile(level, effective - 1) * math.sqrt(effective / (effective - 1))
    low, high = np.quantile(drawn, [special.ndtr(-wide), special.ndtr(wide)])
    low, high = np.clip([low + 2 * bias, high + 2 * bias], *bounds)  # by the samples' bias, and by the score's own
    return Interval(found, float(low), float(high))


def _unknown(found: float, bounds: tuple[float, float]) -> Interval:
    """All that is possible; NaN where that is infinite."""
    low, high = (bound if math.isfinite(bound) else math.nan for bound in bounds)
    return Interval(found, low, high)


def _share_as_extreme(
    draw: Callable[[np.random.Generator, int], Floats], extreme: float, total: int, width: int, seed: int
) -> float:
    """The share of ``total`` random statistics that are at least as far from 0, the observed one counted with them."""
    hits = sum(int((np.abs(drawn) >= extreme).sum()) for drawn in _draws(draw, total, width, seed))
    return (1 + hits) / (1 + total)


def _draws(draw: Callable[[np.random.Generator, int], Floats], total: int, width: int, seed: int) -> Iterator[Floats]:
    """Yield ``total`` random statistics in pieces, so that ``width`` numbers for each fit in memory."""
    if total < 1:
        raise ValueError(f"the number of random draws must be positive, not {total}")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // width)
    for start in range(0, total, rows):
        yield draw(rng, min(rows, total - start))


def _distinct(own: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """The distinct values and their counts; values that differ only by rounding (0.9 − 0.6, 0.3) count as one."""
    scale = float(np.abs(own).max()) or 1.0
    _, first, counts = np.unique(np.round(own / scale, 12), return_index=True, return_counts=True)
    return own[first], counts
