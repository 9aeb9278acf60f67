"""Tests of differences, and counts: permutations, Holm, McNemar. `test_intervals.py` tests what is estimated."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from icdsel.comparison.statistics import (
    Clusters,
    Tally,
    holm,
    mcnemar,
    permutation_pvalue,
    swap_pvalue,
    wins_losses_ties,
)

ACCURACIES = [0.0, 0.3, 0.6, 0.9, 1.0]
scores = st.lists(st.sampled_from(ACCURACIES) | st.floats(-10, 10), min_size=1, max_size=30)


def accuracies(n, seed=0, p=(0.4, 0.1, 0.1, 0.1, 0.3)):
    return np.random.default_rng(seed).choice(ACCURACIES, size=n, p=p)


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
        lambda x: permutation_pvalue(x, seed=0),
        lambda x: wins_losses_ties(x, x),
        lambda x: mcnemar(x, x),
    ],
)
@pytest.mark.parametrize("values", [[], [0.5, math.nan], [[0.5]], 0.5])
def test_no_queries_or_no_numbers_are_errors(function, values):
    with pytest.raises(ValueError, match="must be"):
        function(values)


@pytest.mark.parametrize("function", [wins_losses_ties, mcnemar])
def test_unpaired_scores_are_errors(function):
    with pytest.raises(ValueError, match="2 queries against 1"):
        function([0, 1], [0])


def test_the_number_of_draws_is_positive():
    with pytest.raises(ValueError, match="positive"):
        permutation_pvalue([1.0], seed=0, permutations=0)


# Clusters


def test_signs_of_one_image_are_flipped_together():
    # Three images with the sums 1.2, 0.9 and −0.3: of the 8 flips, those with |sum| ≥ 1.8 are 4.
    differences = [0.6, 0.6, 0.9, 0.3, -0.6]
    clusters = Clusters(["a", "a", "b", "c", "c"])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    exact = (np.abs(signs @ [1.2, 0.9, -0.3]) >= 1.8 - 1e-9).mean()
    assert permutation_pvalue(differences, seed=0, permutations=50_000, clusters=clusters) == pytest.approx(
        exact, abs=0.01
    )
    a, b = np.array([1.0, 1.0, 1.0, 0.3, 0.0]), np.array([0.4, 0.4, 0.1, 0.0, 0.6])
    swapped = swap_pvalue(lambda rows: rows.mean(axis=-1), a, b, seed=0, permutations=20_000, clusters=clusters)
    assert swapped == pytest.approx(exact, abs=0.01)


def test_an_image_whose_differences_cancel_is_a_tie():
    clusters = Clusters([0, 0, 0, 1])
    assert permutation_pvalue([0.1, 0.2, -0.3, 0.5], seed=0, clusters=clusters) == 1.0  # only one image is left
