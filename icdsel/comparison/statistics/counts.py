"""Wins and losses, McNemar's test, and the correction for many comparisons."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from icdsel.comparison.statistics.samples import Floats, pair

_ROUNDING = 1e-12  # differences below this, relative to the scores, come from rounding


class Tally(NamedTuple):
    """Queries on which the first of two selectors does better, worse and equally well."""

    wins: int
    losses: int
    ties: int


def holm(pvalues: ArrayLike) -> Floats:
    """Adjust p-values for the number of comparisons (Holm 1979).

    To call those at most α significant bounds the chance of any false one by α. The i-th smallest of m
    p-values, from i = 0, is multiplied by m − i; then none may be smaller than the one before it.

    Args:
        pvalues: [m], in any order; may be empty.

    Returns:
        [m], in the order given, at most 1.

    Raises:
        ValueError: A p-value is not in [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("pvalues must be a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def wins_losses_ties(a: ArrayLike, b: ArrayLike) -> Tally:
    """Count the queries on which a scores higher than b, lower, and the same up to rounding.

    Args:
        a: [n], the scores of one selector.
        b: [n], the scores of the other on the same queries.

    Raises:
        ValueError: There is no score, one is not finite, or the lengths differ.
    """
    first, second = pair(a, b)
    tied = np.isclose(first, second, rtol=_ROUNDING, atol=_ROUNDING)
    wins = int(((first > second) & ~tied).sum())
    ties = int(tied.sum())
    return Tally(wins, len(first) - wins - ties, ties)


def mcnemar(a_correct: ArrayLike, b_correct: ArrayLike) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947, in its binomial form).

    Only the queries that exactly one selector gets right count: if the selectors were equally good, it would be
    either of them with the same probability. The queries must be independent.

    Args:
        a_correct: [n], whether one selector is right: booleans, or 0 and 1.
        b_correct: [n], whether the other is, on the same queries.

    Returns:
        The p-value; 1 if the two are right on the same queries.

    Raises:
        ValueError: There is no query, the lengths differ, or a value is neither 0 nor 1.
    """
    first, second = pair(a_correct, b_correct)
    if not np.isin([first, second], [0, 1]).all():
        raise ValueError("McNemar's test takes right or wrong: every value must be 0 or 1")
    wins, losses, _ = wins_losses_ties(first, second)
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)
