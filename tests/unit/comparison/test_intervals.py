"""Variances, intervals and the smallest detectable difference, against formulas, scipy and statsmodels.

How often they cover the truth is tested in `tests/integration/test_compare_calibration.py`.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from icdsel.comparison.statistics import (
    Clusters,
    PairedDifference,
    SeedScores,
    Variance,
    aggregate_difference,
    aggregate_score,
    score_interval,
    variance_of_means,
)
from icdsel.comparison.statistics.resampling import drawn_queries
from icdsel.comparison.statistics.variance import crossed

ACCURACIES = [0.0, 0.3, 0.6, 0.9, 1.0]
UNBOUNDED = (-math.inf, math.inf)


def accuracies(n, seed=0, p=(0.4, 0.1, 0.1, 0.1, 0.3)):
    return np.random.default_rng(seed).choice(ACCURACIES, size=n, p=p)


def seeded(seeds, n, rng, labels=()):
    """Scores with effects of queries and seeds, and luck."""
    values = rng.normal(size=n) + 0.5 * rng.normal(size=(seeds, 1)) + 0.7 * rng.normal(size=(seeds, n))
    return SeedScores(values, labels)


def difference(a, b, clusters=None, bounds=(0.0, 1.0)):
    one, other = (scores if isinstance(scores, SeedScores) else SeedScores(scores) for scores in (a, b))
    return PairedDifference.of(
        one, other, clusters=clusters or Clusters.independent(one.values.shape[1]), bounds=bounds
    )


# Samples


def test_clusters_by_hand():
    clusters = Clusters(["a", "b", "a", "c", "a"])
    assert (clusters.n, clusters.count, clusters.sizes.tolist()) == (5, 3, [3, 1, 1])
    assert clusters.effective == pytest.approx(25 / 11)  # n² / Σ size²
    assert clusters.sums(np.arange(5.0)).tolist() == [6.0, 1.0, 3.0]
    assert not clusters.singletons and Clusters.independent(5).singletons


def test_the_variance_over_clusters_is_that_of_their_sums():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    assert Clusters.independent(40).variance(values / 40) == pytest.approx(values.var(ddof=1) / 40)
    # Ten images of four questions: the mean is that of ten means.
    of_four = Clusters([i // 4 for i in range(40)])
    assert of_four.variance(values / 40) == pytest.approx(values.reshape(10, 4).mean(axis=1).var(ddof=1) / 10)
    assert Clusters(["a"] * 40).variance(values) == math.inf
    # Of one image with 10 questions and 30 with one each: the mean, with each image left out in turn (jackknife).
    uneven = Clusters([max(0, i - 9) for i in range(40)])
    without = np.array([values[uneven.of_query != g].mean() for g in range(uneven.count)])
    jackknife = ((without - values.mean()) ** 2).sum() * 30 / 31
    assert uneven.variance(values / 40) == pytest.approx(jackknife)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [[[0.5]]]])
def test_scores_are_numbers_by_seed_and_query(values):
    with pytest.raises(ValueError, match="scores must be"):
        SeedScores(values)


def test_seeds_need_distinct_labels_and_queries_in_pairs():
    with pytest.raises(ValueError, match="distinct labels"):
        SeedScores([[1.0], [0.0]], ["42", "42"])
    with pytest.raises(ValueError, match="2 queries against 1"):
        difference([0.0, 1.0], [0.0])


# The variance over queries and seeds


def test_the_variance_is_that_of_a_crossed_analysis_of_variance():
    rng = np.random.default_rng(1)
    row = seeded(5, 30, rng)
    values, s, n = row.values, 5, 30
    by_query, by_seed, mean = values.mean(axis=0), values.mean(axis=1), values.mean()
    of_queries = s * ((by_query - mean) ** 2).sum() / (n - 1)  # mean squares
    of_seeds = n * ((by_seed - mean) ** 2).sum() / (s - 1)
    of_luck = ((values - by_query - by_seed[:, None] + mean) ** 2).sum() / ((n - 1) * (s - 1))
    found = variance_of_means(row, clusters=Clusters.independent(n))
    assert found.queries == pytest.approx(of_queries / (s * n))
    assert found.seeds == pytest.approx((of_seeds - 4 / 7 * of_luck) / (s * n))
    assert (found.queries_df, found.seeds_df) == (29, 4)


def test_the_luck_of_two_seeds_is_hardly_subtracted():
    # V_S of two seeds is too rough: with ν/(ν + 3) = 1/4 of V_I, as few as 92 % of intervals cover the truth.
    kept = [1.0 - crossed(0.0, 9, between=1.0, luck=1.0, seeds_df=nu).seeds for nu in (1, 2, 3, 9)]
    assert kept == pytest.approx([1 / 13, 2 / 5, 3 / 6, 9 / 12])


def test_seeds_of_the_same_label_are_paired():
    rng = np.random.default_rng(2)
    clusters = Clusters.independent(50)
    a, b = seeded(3, 50, rng, "xyz"), seeded(3, 50, rng, "zxy")
    in_order = b.values[[1, 2, 0]]  # x, y, z
    paired = variance_of_means(a, b, clusters=clusters)
    alone = variance_of_means(SeedScores(a.values - in_order), clusters=clusters)
    assert (paired.queries, paired.seeds) == pytest.approx((alone.queries, alone.seeds))
    assert paired.seeds_df == alone.seeds_df == 2
    # With other labels, the variances over seeds add, with Welch's degrees of freedom.
    others = variance_of_means(a, SeedScores(b.values, "uvw"), clusters=clusters)
    assert others.queries == pytest.approx(paired.queries)
    first, second = (row.values.mean(axis=1).var(ddof=1) / 3 for row in (a, b))
    assert others.seeds_df == pytest.approx(min(4, (first + second) ** 2 / ((first**2 + second**2) / 4) - 2))
    # If only one row varies, its own degrees of freedom.
    assert variance_of_means(a, SeedScores(b.values[[0, 0, 0]], "uvw"), clusters=clusters).seeds_df == 2
    # Two of three shared: the degrees of freedom of the smaller row.
    assert variance_of_means(a, SeedScores(b.values, "xyw"), clusters=clusters).seeds_df == 2


def test_a_row_of_one_seed_has_no_variance_over_seeds():
    rng = np.random.default_rng(3)
    clusters, one, three = Clusters.independent(50), seeded(1, 50, rng), seeded(3, 50, rng)
    assert variance_of_means(one, clusters=clusters).seeds == 0
    assert variance_of_means(one, one, clusters=clusters) == Variance(0.0, 49)
    against = variance_of_means(three, one, clusters=clusters)
    assert against.seeds == pytest.approx(variance_of_means(three, clusters=clusters).seeds)
    assert against.share_of_seeds == pytest.approx(against.seeds / (against.seeds + against.queries))


@pytest.mark.parametrize("labels", ["xyz", "uvw"])
def test_where_queries_hardly_matter_the_p_value_is_that_of_a_t_test_over_seeds(labels):
    a, b = np.array([0.71, 0.74, 0.72]), np.array([0.76, 0.75, 0.79])
    tiny = np.random.default_rng(4).normal(scale=1e-6, size=200)
    found = difference(SeedScores(a[:, None] + tiny, "xyz"), SeedScores(b[:, None] - tiny, labels), bounds=UNBOUNDED)
    theirs = stats.ttest_rel(a, b) if labels == "xyz" else stats.ttest_ind(a, b)
    assert found.p_value() == pytest.approx(theirs.pvalue, rel=0.02)
    low, high = theirs.confidence_interval(0.95)
    assert found.interval()[1:] == pytest.approx((low, high), abs=2e-3)
    assert found.variance.share_of_seeds > 0.999


def test_a_difference_of_queries_alone_has_students_interval():
    a, b = accuracies(200), accuracies(200, seed=1)
    one = SeedScores(np.stack([a, a, a]), "xyz")  # three seeds that do the same
    found = difference(one, b)
    low, high = stats.ttest_1samp(a - b, 0).confidence_interval()
    assert found.interval()[1:] == pytest.approx((low, high), abs=2e-3)
    assert found.variance.seeds == 0
    assert found.p_value() == pytest.approx(stats.ttest_1samp(a - b, 0).pvalue, abs=0.01)


# The interval of a score


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 20), (19, 20), (20, 20), (450, 800), (1, 1)])
def test_right_and_wrong_answers_have_wilsons_interval(right, n):
    low, high = score_interval(SeedScores([1.0] * right + [0.0] * (n - right)), clusters=Clusters.independent(n))[1:]
    # With the unbiased variance, which is wider by 1/(2n).
    assert (low, high) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=0.25 / n)


@given(st.lists(st.sampled_from(ACCURACIES), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_the_interval_holds_the_mean_and_the_possible_and_never_lacks_width(values, per_image):
    clusters = Clusters([i // per_image for i in range(len(values))])
    mean, low, high = score_interval(SeedScores(values), clusters=clusters)
    assert 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1
    assert high - low > 1e-3
    wide = score_interval(SeedScores(values), clusters=clusters, level=0.99)
    assert wide.low <= low + 1e-12 and high <= wide.high + 1e-12


def test_an_interval_keeps_the_unit_and_widens_with_images_and_seeds():
    values = accuracies(200)
    alone = score_interval(SeedScores(values), clusters=Clusters.independent(200))
    scaled = score_interval(SeedScores(1 + 3 * values), clusters=Clusters.independent(200), bounds=(1.0, 4.0))
    assert scaled == pytest.approx(tuple(1 + 3 * bound for bound in alone))
    # Each answer five times, on one image: as much is known as from the first ones.
    repeated = score_interval(SeedScores(np.repeat(values, 5)), clusters=Clusters([i // 5 for i in range(1000)]))
    assert repeated[1:] == pytest.approx(alone[1:], abs=2e-3)
    seeds = SeedScores(np.clip(values + np.array([[-0.05], [0.0], [0.05]]), 0, 1))
    assert score_interval(seeds, clusters=Clusters.independent(200)).low < alone.low - 0.03


def test_scores_without_bounds_have_students_interval_or_none():
    values = np.random.default_rng(5).normal(size=50)
    found = score_interval(SeedScores(values), clusters=Clusters.independent(50), bounds=UNBOUNDED)
    assert found[1:] == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval())
    same = score_interval(SeedScores([2.0] * 50), clusters=Clusters.independent(50), bounds=UNBOUNDED)
    assert same.mean == 2.0 and math.isnan(same.low) and math.isnan(same.high)


def test_one_image_says_nothing_of_others():
    clusters = Clusters(["a"] * 20)
    assert score_interval(SeedScores([1.0] * 20), clusters=clusters) == (1.0, 0.0, 1.0)
    found = difference([1.0] * 20, [0.0] * 20, clusters)
    assert (found.interval(), found.p_value(), found.smallest_detectable()) == ((1.0, -1.0, 1.0), 1.0, math.inf)


# A difference


def test_a_difference_by_hand():
    # One of four queries is won by 0.6: mean 0.15, variance 0.09/4; a typical step is √((0.36 + 1)/2).
    found = difference([0.6, 0.3, 0.0, 1.0], [0.0, 0.3, 0.0, 1.0])
    width = stats.t.ppf(0.975, 3) * math.sqrt(16 * 0.0225 + 0.68) / 5
    assert found.step == pytest.approx(math.sqrt(0.68))
    assert found.interval() == pytest.approx((0.15, 0.15 * 4 / 5 - width, 0.15 * 4 / 5 + width))


@pytest.mark.parametrize("n", [1, 20, 800])
def test_rows_that_never_differ_may_differ_on_other_queries(n):
    found = difference(accuracies(n), accuracies(n))
    mean, low, high = found.interval()
    assert mean == 0.0 and low == -high and high >= 1 / n
    assert found.p_value() == 1.0
    unbounded = difference(accuracies(n), accuracies(n), bounds=UNBOUNDED)
    assert all(math.isnan(bound) for bound in unbounded.interval()[1:]) and math.isnan(unbounded.smallest_detectable())


def test_pairing_cancels_what_queries_have_in_common():
    b = accuracies(500)
    paired = difference(np.minimum(b + 0.1, 1.0), b).interval()
    alone = score_interval(SeedScores(b), clusters=Clusters.independent(500))
    assert paired.high - paired.low < (alone.high - alone.low) / 3


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_p_value_is_below_5_percent_where_the_interval_excludes_0(seed, seeds, n, paired):
    rng = np.random.default_rng(seed)
    a, b = (np.clip(rng.normal(mean, 0.2, size=(seeds, n)), 0, 1) for mean in (0.4, 0.6))
    first = 0 if paired else 10
    found = difference(SeedScores(a, range(seeds)), SeedScores(b, range(first, first + seeds)))
    low, high = found.interval()[1:]
    p = found.p_value()
    assert 0 < p <= 1
    if abs(p - 0.05) > 1e-6 and low > -1 and high < 1:
        assert (p < 0.05) == (not low <= 0 <= high)


def test_arguments_out_of_range_are_errors():
    with pytest.raises(ValueError, match="level"):
        score_interval(SeedScores([1.0]), clusters=Clusters.independent(1), level=95)
    with pytest.raises(ValueError, match="level"):
        difference([1.0], [0.0]).interval(level=0)
    with pytest.raises(ValueError, match="power"):
        difference([1.0, 0.0], [0.0, 0.0]).smallest_detectable(power=1)


# The smallest detectable difference


@pytest.mark.parametrize("n", [800, 20_000])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_the_detectable_difference_of_many_queries_agrees_with_statsmodels(n, power):
    values = np.random.default_rng(n).normal(size=n)
    theirs = TTestPower().solve_power(nobs=n, alpha=0.05, power=power) * values.std(ddof=1)
    found = difference(values, np.zeros(n), bounds=UNBOUNDED).smallest_detectable(power=power)
    # What the effect itself adds to the spread, and the gap between sums, vanish with 1/√n.
    assert theirs < found < theirs * (1 + 3.2 / math.sqrt(n))


def test_rows_that_hardly_differ_need_as_many_wins_as_the_test_asks_for():
    # At 95 % ties, 9 points of 50 queries would come out 4 or 5 queries ahead; the test asks for 6 without a loss.
    found = difference([1.0, 0.0] + [1.0] * 48, [0.0, 1.0] + [1.0] * 48).smallest_detectable()
    assert 0.15 < found < 0.25
    assert difference(np.zeros(50), np.zeros(50)).smallest_detectable() > 6 / 50
    assert difference(np.zeros(5), np.zeros(5)).smallest_detectable() == math.inf


def test_questions_on_one_image_detect_less():
    a, b = np.repeat(accuracies(100), 5), np.repeat(accuracies(100, seed=1), 5)
    together = difference(a, b, Clusters([i // 5 for i in range(500)])).smallest_detectable()
    once = difference(a[::5], b[::5]).smallest_detectable()
    assert together == pytest.approx(once, rel=0.02)
    assert difference(a, b).smallest_detectable() < together / 2


# Aggregates that are no means


def mean_of(scores):
    return scores.mean(axis=-1)


def median_of(scores):
    return np.median(scores, axis=-1)


def test_the_bootstrap_of_a_median_agrees_with_scipy():
    values = np.random.default_rng(2).normal(size=101)
    ours = aggregate_score(median_of, SeedScores(values), clusters=Clusters.independent(101), bounds=UNBOUNDED, seed=0)
    wide = stats.norm.cdf(stats.t.ppf(0.975, 100) * math.sqrt(101 / 100))  # Hesterberg's percentile
    theirs = stats.bootstrap(
        (values,),
        np.median,
        n_resamples=10_000,
        method="percentile",
        confidence_level=2 * wide - 1,
        rng=np.random.default_rng(1),
        batch=1000,
    ).confidence_interval
    assert ours.mean == np.median(values)
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=0.05)


@pytest.mark.parametrize("per_image", [1, 5])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_bootstrap_of_a_mean_agrees_with_its_formula(per_image, seeds):
    rng = np.random.default_rng(6)
    a, b = seeded(seeds, 200, rng, range(seeds)), seeded(seeds, 200, rng, range(seeds))
    clusters = Clusters([i // per_image for i in range(200)])
    how = {"clusters": clusters, "bounds": UNBOUNDED}
    ours, p = aggregate_difference(mean_of, a, b, seed=0, resamples=4000, **how)
    found = PairedDifference.of(a, b, **how)
    expected = found.interval()
    width = expected.high - expected.low
    assert ours.mean == pytest.approx(expected.mean)
    assert ours[1:] == pytest.approx(expected[1:], abs=0.06 * width)
    assert (p is None) == (seeds == 1)
    if p is not None:
        assert p == pytest.approx(found.p_value(), abs=0.03)
    score = aggregate_score(mean_of, a, seed=0, resamples=4000, **how)
    expected = score_interval(a, **how)
    assert score[1:] == pytest.approx(expected[1:], abs=0.06 * (expected.high - expected.low))


def test_the_same_arguments_give_the_same_interval():
    row, how = SeedScores(accuracies(50)), {"clusters": Clusters.independent(50), "bounds": (0.0, 1.0)}
    first = aggregate_score(median_of, row, seed=3, **how)
    assert aggregate_score(median_of, row, seed=3, **how) == first
    with pytest.raises(ValueError, match="positive"):
        aggregate_score(median_of, row, seed=3, resamples=0, **how)


def test_scores_that_do_not_vary_leave_everything_possible():
    row, clusters = SeedScores([2.0] * 40), Clusters.independent(40)
    assert aggregate_score(median_of, row, clusters=clusters, bounds=(0.0, 3.0), seed=0) == (2.0, 0.0, 3.0)
    unknown = aggregate_score(median_of, row, clusters=clusters, bounds=UNBOUNDED, seed=0)
    assert math.isnan(unknown.low) and math.isnan(unknown.high)
    other = SeedScores([1.0] * 40)
    found, p = aggregate_difference(median_of, row, other, clusters=clusters, bounds=(0.0, 3.0), seed=0)
    assert (found, p) == ((1.0, -3.0, 3.0), None)


def test_bootstrap_samples_are_drawn_by_whole_images():
    clusters = Clusters(["a", "b", "a", "c", "c", "c", "b", "a"])
    drawn = drawn_queries(np.random.default_rng(0), clusters, 500)
    assert drawn.shape == (500, 8)
    together = [set(np.flatnonzero(clusters.of_query == cluster)) for cluster in range(3)]
    for row in drawn:
        while len(row):
            own = together[clusters.of_query[row[0]]]
            assert set(row[: len(own)]) <= own
            row = row[len(own) :]  # the last image may be cut
    assert np.bincount(drawn.ravel()).min() > 0.8 * 500
