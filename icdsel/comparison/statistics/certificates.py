"""Certifies, on held-out queries, that a policy is not worse than a baseline by more than a tolerance.

Learn then test (Angelopoulos, Bates, Candès, Jordan and Lei 2021, arXiv 2110.01052): a family of policies is ordered
before the data are seen, from the one that changes least, and "its risk is above the tolerance" is tested for one after
the other. The first that is not rejected ends the sequence (fixed-sequence testing). With probability of at least the
level, the risk of no certified policy is above the tolerance, whatever the distribution of the queries is.

The p-values come from a betting game (Waudby-Smith and Ramdas 2023, arXiv 2010.09686): a gambler bets on each query
that the risk is at most the tolerance. If it is not, no strategy gains on average, so the capital exceeds 1/p with a
probability of at most p (Ville's inequality). It is valid for every number of queries and adapts to the variance of
the losses, which is small where two policies agree on most queries.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from icdsel.comparison.statistics.samples import Clusters, Floats, require_fraction

_MOST_STAKED = 0.75  # of the capital that a query can lose; Waudby-Smith and Ramdas recommend 1/2 or 3/4


class Certified(NamedTuple):
    """The result of a sequence of tests.

    Attributes:
        p_values: [G], of "the risk is above the tolerance"; those behind the first that is not rejected too.
        certified: How many policies at the beginning of the sequence are.
    """

    p_values: Floats
    certified: int


def certify(
    losses: ArrayLike,
    tolerance: float,
    *,
    clusters: Clusters,
    seed: int,
    span: float = 1.0,
    level: float = 0.95,
) -> Certified:
    """Tests a sequence of policies for a risk of at most the tolerance.

    Queries about one image are one observation, their mean: the risk is that of an image drawn at random, and of a
    query about it. Images must be independent draws.

    Args:
        losses: (G, n), how much lower than the baseline each policy scores on each query, in the order of the sequence.
        tolerance: The risk that is accepted, 0 to `span`.
        clusters: Of the n queries.
        seed: Decides the order in which the images are bet on.
        span: The largest possible score less the smallest: losses are within −span and span.
        level: The probability with which all certified policies keep the tolerance.

    Raises:
        ValueError: An argument is out of its range, or the shapes do not fit.
    """
    values = np.asarray(losses, dtype=np.float64)
    require_fraction(level, "level")
    if not 0 <= tolerance < span < math.inf:
        raise ValueError(f"the tolerance must be at least 0 and below the span of the scores, {span}, not {tolerance}")
    if values.ndim != 2 or values.shape[1] != clusters.n or clusters.n == 0:
        raise ValueError(f"losses must be (G, {clusters.n}) with at least one query, not {list(values.shape)}")
    if not (np.abs(values) <= span * (1 + 1e-9)).all():  # NaN too
        raise ValueError(f"losses must be within -{span} and {span}")
    by_image = np.stack([clusters.sums(row) for row in values]) / clusters.sizes  # (G, images)
    order = np.random.default_rng(seed).permutation(clusters.count)
    scaled = np.clip((by_image[:, order] / span + 1) / 2, 0.0, 1.0)  # from −span … span to 0 … 1
    p_values = betting_p_values(scaled, (tolerance / span + 1) / 2, level=level)
    rejected = p_values <= 1 - level
    return Certified(p_values, int(np.cumprod(rejected).sum()))


def betting_p_values(values: ArrayLike, mean: float, *, level: float = 0.95) -> Floats:
    """The p-values of "the expectation is at least `mean`" for samples of values in [0, 1].

    With X_t in order, the capital K_t = ∏ (1 + λ_t (mean − X_t)) starts at 1, and p = 1 / max_t K_t. The bet λ_t knows
    only the values before: √(2 ln(1/α) / (n σ²)), with α = 1 − level and their variance σ² (0.25 before the first), and
    at most 3/4 of what could cost the whole capital.

    Args:
        values: (…, n), in the order in which they are bet on, which must not depend on them.
        mean: The expectation that is tested, in (0, 1).
        level: The level that the bets are made for; the p-values are valid at any.

    Returns:
        The p-values (…), at most 1.

    Raises:
        ValueError: An argument is out of its range.
    """
    x = np.asarray(values, dtype=np.float64)
    require_fraction(mean, "mean")
    require_fraction(level, "level")
    if x.ndim == 0 or x.shape[-1] == 0 or not ((x >= 0) & (x <= 1)).all():
        raise ValueError("values must be at least one number in [0, 1]")
    n = x.shape[-1]
    t = np.arange(1, n + 1)
    means = (0.5 + x.cumsum(-1)) / (t + 1)  # (…, n), after each value
    variances = (0.25 + ((x - means) ** 2).cumsum(-1)) / (t + 1)
    before = np.concatenate([np.full((*x.shape[:-1], 1), 0.25), variances[..., :-1]], -1)
    bets = np.minimum(np.sqrt(2 * math.log(1 / (1 - level)) / (n * before)), _MOST_STAKED / (1 - mean))
    log_capital = np.log1p(bets * (mean - x)).cumsum(-1)
    p_values: Floats = np.exp(-np.maximum(log_capital.max(-1), 0.0))
    return p_values
