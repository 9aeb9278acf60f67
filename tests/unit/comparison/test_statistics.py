import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from icdsel.comparison.statistics import (
    Interval,
    Tally,
    bootstrap_aggregate,
    bootstrap_mean,
    holm,
    mcnemar,
    paired_difference,
    permutation_pvalue,
    smallest_detectable_difference,
    swap_pvalue,
    wins_losses_ties,
)

ACCURACIES = [0.0, 0.3, 0.6, 0.9, 1.0]
scores = st.lists(st.sampled_from(ACCURACIES) | st.floats(-10, 10), min_size=1, max_size=30)


def accuracies(n, seed=0, p=(0.4, 0.1, 0.1, 0.1, 0.3)):
    return np.random.default_rng(seed).choice(ACCURACIES, size=n, p=p)


# The bootstrap


def test_a_single_query_gives_a_degenerate_interval():
    assert bootstrap_mean([0.6], seed=0) == Interval(0.6, 0.6, 0.6)
    assert paired_difference([1.0], [0.25], seed=0) == (0.75, 0.75, 0.75)


def test_the_bootstrap_of_a_coin_has_binomial_quantiles():
    # Of n = 100 values, half of them 1, a bootstrap mean is Binomial(100, 1/2)/100.
    interval = bootstrap_mean([0, 1] * 50, seed=0, resamples=100_000, level=0.9)
    assert interval.mean == 0.5
    low, high = stats.binom.ppf([0.05, 0.95], 100, 0.5) / 100
    assert interval.low == pytest.approx(low)
    assert interval.high == pytest.approx(high)


def test_the_bootstrap_of_an_aggregate_agrees_with_that_of_the_mean():
    one, other = accuracies(200), accuracies(200, seed=1)
    for samples in ((one,), (one, other)):
        found = bootstrap_aggregate(lambda scores: scores.mean(axis=-1), *samples, seed=0, resamples=20_000)
        expected = bootstrap_mean(one - other if len(samples) > 1 else one, seed=0)
        assert found.mean == pytest.approx(expected.mean)
        width = expected.high - expected.low
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.04 * width)


def test_the_bootstrap_of_a_median_agrees_with_scipy():
    values = np.random.default_rng(2).normal(size=101)
    ours = bootstrap_aggregate(lambda scores: np.median(scores, axis=-1), values, seed=0)
    theirs = stats.bootstrap(
        (values,), np.median, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1), batch=1000
    ).confidence_interval
    assert ours.mean == np.median(values)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05)


@pytest.mark.parametrize("values", [accuracies(300), np.random.default_rng(1).normal(size=200)])
def test_the_bootstrap_agrees_with_scipy(values):
    ours = bootstrap_mean(values, seed=0)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1), batch=1000
    ).confidence_interval
    width = theirs.high - theirs.low
    # Each end is a quantile of 10,000 draws: its own error is about a hundredth of the width.
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    # 600 experiments of 200 paired queries whose true mean difference is 0.3·0.25 − 0.6·0.1 = 0.015. The
    # share of intervals that hold it has a standard error of √(0.95·0.05/600) = 0.009.
    rng = np.random.default_rng(0)
    experiments = rng.choice([0.3, -0.6, 0.0], size=(600, 200), p=[0.25, 0.1, 0.65])
    intervals = [bootstrap_mean(e, seed=i, resamples=1000) for i, e in enumerate(experiments)]
    covered = np.mean([interval.low <= 0.015 <= interval.high for interval in intervals])
    assert 0.92 < covered < 0.98


def test_pairing_cancels_what_queries_have_in_common():
    b = accuracies(500)
    a = b + 0.1
    paired = paired_difference(a, b, seed=0)
    assert paired == pytest.approx((0.1, 0.1, 0.1))
    alone = bootstrap_mean(a, seed=0)
    assert alone.high - alone.low > 0.05


def test_results_repeat_with_the_seed_and_draws_come_in_pieces(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) == first
    assert bootstrap_mean(values, seed=4) != first
    assert permutation_pvalue(values, seed=3) == permutation_pvalue(values, seed=3)
    # Draws in small pieces come to as many: with 7 rows of 50 a piece, 1000 do not divide evenly.
    monkeypatch.setattr("icdsel.comparison.statistics._CHUNK", 350)
    in_pieces = bootstrap_mean(values, seed=3, resamples=1000)
    assert in_pieces == pytest.approx(first, abs=0.1)
    assert permutation_pvalue([1.0], seed=0, permutations=1000) == 1.0


@given(scores, st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_the_interval_contains_the_mean_of_symmetric_data_and_is_within_its_range(values, seed):
    symmetric = values + [-value for value in values]
    interval = bootstrap_mean(symmetric, seed=seed, resamples=500)
    largest = max(map(abs, values))
    assert interval.mean == pytest.approx(0.0, abs=1e-9)
    assert -largest - 1e-9 <= interval.low <= 1e-9
    assert -1e-9 <= interval.high <= largest + 1e-9


@given(scores, st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_a_wider_level_gives_a_wider_interval_and_a_shift_moves_the_mean(values, shift):
    narrow, wide = (bootstrap_mean(values, seed=0, resamples=300, level=level) for level in (0.5, 0.99))
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    moved = bootstrap_mean(np.array(values) + shift, seed=0, resamples=300)
    assert moved.mean == pytest.approx(narrow.mean + shift, abs=1e-9)


# The permutation test


def test_the_permutation_pvalue_agrees_with_all_flips():
    # Six differences have 64 flips; the sum is 1.5, and |sum| ≥ 1.5 is counted over all of them.
    differences = np.array([0.6, 0.3, -0.3, 0.9, 0.3, -0.3])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ differences) >= 1.5 - 1e-9).mean()
    assert permutation_pvalue(differences, seed=0, permutations=100_000) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("mean", [0.0, 0.2, 0.4])
def test_the_permutation_pvalue_agrees_with_scipy(mean):
    differences = np.random.default_rng(5).normal(mean, size=60)
    theirs = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(6),
        batch=1000,
    )
    assert permutation_pvalue(differences, seed=0) == pytest.approx(theirs.pvalue, abs=0.02)


def test_the_permutation_pvalue_of_vqa_scores_agrees_with_scipy():
    a, b = accuracies(300), accuracies(300, seed=1, p=(0.33, 0.1, 0.1, 0.1, 0.37))
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(6),
        batch=1000,
    )
    assert permutation_pvalue(a - b, seed=0) == pytest.approx(theirs.pvalue, abs=0.015)


def test_swapping_scores_agrees_with_flipping_signs_for_means():
    one, other = accuracies(60), accuracies(60, seed=3, p=(0.5, 0.1, 0.1, 0.1, 0.2))
    found = swap_pvalue(lambda scores: scores.mean(axis=-1), one, other, seed=0)
    assert found == pytest.approx(permutation_pvalue(one - other, seed=0), abs=0.02)
    assert 0.001 < found < 0.9


def test_swapping_scores_finds_a_difference_of_medians_and_none_of_equal_rows():
    def median(scores):
        return np.median(scores, axis=-1)

    one = np.random.default_rng(5).normal(size=100)
    assert swap_pvalue(median, one + 1, one, seed=0) == pytest.approx(1 / 10_001)
    assert swap_pvalue(median, one, one, seed=0) == 1.0


def test_permutation_pvalues_at_the_extremes():
    assert permutation_pvalue([0.0, 0.0, 0.0], seed=0) == 1.0
    assert permutation_pvalue([0.3, -0.3], seed=0) == 1.0  # a sum of 0 is reached by every flip
    # Of 2^60 flips two are as extreme as all positive: none is drawn, and the observed one is left.
    assert permutation_pvalue(np.ones(60), seed=0, permutations=999) == 1 / 1000


def test_rounding_makes_no_flip_less_extreme():
    # With ±0.1 n times, the flip of all signs has the same |sum|; p must be that of ±1.
    tenths = permutation_pvalue([0.1, 0.1, 0.1], seed=0)
    assert tenths == permutation_pvalue([1.0, 1.0, 1.0], seed=0)
    assert tenths == pytest.approx(0.25, abs=0.02)


def test_the_permutation_test_rejects_a_true_null_as_often_as_it_says():
    # 600 experiments without a difference: p ≤ 0.05 in 5 % of them, give or take 3·0.009; discreteness and
    # the added one can only lower that.
    rng = np.random.default_rng(0)
    experiments = rng.choice([-0.3, 0.3, 0.0], size=(600, 80), p=[0.2, 0.2, 0.6])
    rejected = np.mean([permutation_pvalue(e, seed=i, permutations=999) <= 0.05 for i, e in enumerate(experiments)])
    assert 0.015 < rejected < 0.08


@given(scores)
@settings(max_examples=50, deadline=None)
def test_the_pvalue_does_not_depend_on_sign_or_order(values):
    p = permutation_pvalue(values, seed=0, permutations=200)
    assert 1 / 201 <= p <= 1
    assert permutation_pvalue([-value for value in values], seed=0, permutations=200) == p
    assert permutation_pvalue(values[::-1], seed=0, permutations=200) == p


# Many comparisons


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4, 3, 2, 1 = .04 .06 .06 .04, and the running maximum lifts the last.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.03]), [0.03])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("pvalues", [[0.1, 1.2], [-0.1], [math.nan], [[0.1]]])
def test_holm_takes_probabilities_only(pvalues):
    with pytest.raises(ValueError, match="pvalues"):
        holm(pvalues)


@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_holm_agrees_with_statsmodels(count):
    pvalues = np.random.default_rng(count).random(count).round(2) ** 3  # small ones and ties among them
    np.testing.assert_allclose(holm(pvalues), multipletests(pvalues, method="holm")[1], atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_holm_is_between_the_raw_and_the_bonferroni_values_and_keeps_their_order(pvalues):
    raw, adjusted = np.array(pvalues), holm(pvalues)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, raw * len(raw))).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()


# Power


def test_the_smallest_detectable_difference_by_hand():
    # Four differences ±1 have the unbiased variance 4/3; (1.959964 + 0.841621)·√(4/3)/√4 = 1.617498.
    assert smallest_detectable_difference([1, -1, 1, -1]) == pytest.approx(1.617498, abs=1e-5)
    assert smallest_detectable_difference([0.2, 0.2]) == 0.0
    assert smallest_detectable_difference([0.2]) == math.inf


def test_one_point_needs_thousands_of_queries():
    # Where 15 % of the answers change, half for better, the std is √0.15 = 0.3873: 1 point at 80 % power
    # takes (2.8016·0.3873/0.01)² = 11,773 queries, of which these are 11,760.
    differences = np.tile([1] * 3 + [-1] * 3 + [0] * 34, 294)
    assert smallest_detectable_difference(differences) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("n", [100, 800, 5000])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_the_detectable_difference_agrees_with_statsmodels(n, power):
    # Its t-test knows the spread no better than the sample does, which at n = 100 costs 1.3 % more.
    differences = np.random.default_rng(n).normal(size=n)
    effect = TTestPower().solve_power(nobs=n, alpha=0.05, power=power)  # in standard deviations
    theirs = effect * differences.std(ddof=1)
    assert smallest_detectable_difference(differences, power=power) == pytest.approx(theirs, rel=1.5 / n)


def test_the_detectable_difference_is_detected_with_the_power_given():
    # A shift by it turns a z-test significant in 80 % of 2000 experiments (standard error 0.009).
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2000, 400))
    shift = smallest_detectable_difference(noise[0])
    experiments = noise + shift
    z = experiments.mean(axis=1) / (experiments.std(axis=1, ddof=1) / 20)
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.06)


# Counts


def test_wins_losses_and_ties():
    assert wins_losses_ties([1, 0, 0.3, 0.6], [0, 1, 0.3, 0.3]) == Tally(wins=2, losses=1, ties=1)
    # The last bit of VQA accuracy depends on the order of the answers: no win.
    assert wins_losses_ties([0.9], [0.8999999999999998]) == Tally(0, 0, 1)


@pytest.mark.parametrize(
    ("only_a", "only_b", "pvalue"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (3, 0, 0.25),  # 2 · (1/2)³
        (5, 1, 14 / 64),  # 2 · (1 + 6)/2⁶
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
    ],
)
def test_mcnemar_by_hand(only_a, only_b, pvalue):
    # What both get right (4) or neither does (7) plays no part.
    a = [1] * only_a + [0] * only_b + [1] * 4 + [0] * 7
    b = [0] * only_a + [1] * only_b + [1] * 4 + [0] * 7
    assert mcnemar(a, b) == pytest.approx(pvalue)
    assert mcnemar(np.array(b, dtype=bool), np.array(a, dtype=bool)) == pytest.approx(pvalue)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 3), (7, 7), (30, 12), (120, 90)])
def test_mcnemar_agrees_with_statsmodels_and_is_a_permutation_test(only_a, only_b):
    a = np.array([1] * only_a + [0] * only_b + [1] * 20 + [0] * 9)
    b = np.array([0] * only_a + [1] * only_b + [1] * 20 + [0] * 9)
    theirs = statsmodels_mcnemar([[20, only_a], [only_b, 9]], exact=True).pvalue
    assert mcnemar(a, b) == pytest.approx(theirs, abs=1e-12)
    # Flipping the signs of the differences is the same test, and has a meaning for shares of seeds too.
    assert permutation_pvalue(a - b, seed=0, permutations=100_000) == pytest.approx(theirs, abs=0.01)


def test_mcnemar_takes_right_or_wrong_only():
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.6, 1], [0, 1])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_mcnemar_and_the_tally_are_symmetric(pairs):
    a, b = zip(*pairs, strict=True)
    assert mcnemar(a, b) == mcnemar(b, a)
    wins, losses, ties = wins_losses_ties(a, b)
    assert wins_losses_ties(b, a) == (losses, wins, ties)
    assert wins + losses + ties == len(pairs)


# Errors


@pytest.mark.parametrize(
    "function",
    [
        lambda x: bootstrap_mean(x, seed=0),
        lambda x: paired_difference(x, x, seed=0),
        lambda x: permutation_pvalue(x, seed=0),
        smallest_detectable_difference,
        lambda x: wins_losses_ties(x, x),
        lambda x: mcnemar(x, x),
    ],
)
@pytest.mark.parametrize("values", [[], [0.5, math.nan], [[0.5]], 0.5])
def test_no_queries_or_no_numbers_are_errors(function, values):
    with pytest.raises(ValueError, match="must be"):
        function(values)


@pytest.mark.parametrize("function", [lambda a, b: paired_difference(a, b, seed=0), wins_losses_ties, mcnemar])
def test_unpaired_scores_are_errors(function):
    with pytest.raises(ValueError, match="2 queries against 1"):
        function([0, 1], [0])


def test_arguments_out_of_range_are_errors():
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([1.0], seed=0, level=95)
    with pytest.raises(ValueError, match="power"):
        smallest_detectable_difference([1.0, 2.0], power=1)
    with pytest.raises(ValueError, match="positive"):
        bootstrap_mean([1.0], seed=0, resamples=0)
    with pytest.raises(ValueError, match="positive"):
        permutation_pvalue([1.0], seed=0, permutations=0)
