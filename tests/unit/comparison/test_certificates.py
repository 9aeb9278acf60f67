"""Certificates: the betting p-values by hand, the sequence of tests, and how often they are wrong."""

import math

import numpy as np
import pytest
from simulated_certificates import OFFSETS, drawn, losses, violations

from icdsel.comparison.statistics import Clusters, betting_p_values, certify


def test_the_capital_of_two_bets_by_hand() -> None:
    # ln(1/0.05) = 2.9957. First bet: √(2·2.9957/(2·0.25)) = 3.46, cut to 0.75/(1 − 0.6) = 1.875.
    # First value 0.5: capital 1 + 1.875·0.1 = 1.1875. Mean and variance then (0.5 + 0.5)/2 and 0.25/2 = 0.125, so the
    # second bet is cut too. Second value 0.2: 1.1875·(1 + 1.875·0.4) = 2.078125.
    assert betting_p_values([0.5, 0.2], 0.6) == pytest.approx(1 / 2.078125)
    # The other way round the first value would be 1: capital 1 − 1.875·0.4 = 0.25, and never above 1 again.
    assert betting_p_values([1.0, 0.5], 0.6) == 1.0
    # What was won once counts, whatever comes later.
    assert betting_p_values([0.2, 1.0], 0.6) == pytest.approx(1 / 1.75)


def test_a_bet_that_is_not_cut_follows_the_variance() -> None:
    values = [0.0, 1.0] * 50
    bet = math.sqrt(2 * math.log(20) / (100 * 0.25))
    first = 1 + bet * 0.6
    assert betting_p_values([0.0, *[1.0] * 99], 0.6) == pytest.approx(1 / first)
    assert 0.05 < betting_p_values(values, 0.6) < 1.0


def test_samples_are_tested_independently() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(3, 4, 50))
    found = betting_p_values(values, 0.6)
    assert found.shape == (3, 4)
    assert found[1, 2] == betting_p_values(values[1, 2], 0.6)


def test_without_a_loss_the_number_of_queries_decides_what_can_be_certified() -> None:
    # Each query multiplies the capital by 1 + 0.75/(1 − m)·(m − 0.5), with m = 0.505 for a tolerance of 0.01.
    factor = 1 + 0.75 / 0.495 * 0.005
    for n, certified in ((380, 0), (500, 1)):
        found = certify(np.zeros((1, n)), 0.01, clusters=Clusters.independent(n), seed=0)
        assert found.certified == certified
        # The first bets are smaller, until the variance is known to be small.
        assert factor**-n < found.p_values[0] < factor ** -(n - 60)


def test_the_first_policy_that_fails_ends_the_sequence() -> None:
    n = 1000
    better, worse = np.where(np.arange(n) < 300, -1.0, 0.0), np.where(np.arange(n) < 300, 1.0, 0.0)
    found = certify([better, better, worse, better], 0.01, clusters=Clusters.independent(n), seed=1)
    assert found.certified == 2
    assert found.p_values[0] == found.p_values[1] == found.p_values[3] < 0.001 and found.p_values[2] > 0.9
    assert certify([worse, better], 0.01, clusters=Clusters.independent(n), seed=1).certified == 0


def test_the_queries_of_an_image_are_one_observation() -> None:
    rng = np.random.default_rng(2)
    alone = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.7, 0.1], size=(2, 150))
    clusters = Clusters([i // 3 for i in range(450)])
    repeated = certify(np.repeat(alone, 3, axis=1), 0.02, clusters=clusters, seed=3)
    once = certify(alone, 0.02, clusters=Clusters.independent(150), seed=3)
    np.testing.assert_allclose(repeated.p_values, once.p_values)
    independent = certify(np.repeat(alone, 3, axis=1), 0.02, clusters=Clusters.independent(450), seed=3)
    assert (independent.p_values < once.p_values).all()


def test_losses_in_other_units_are_scaled() -> None:
    rng = np.random.default_rng(4)
    points = rng.choice([-1.0, 0.0, 1.0], p=[0.3, 0.6, 0.1], size=(1, 300))
    clusters = Clusters.independent(300)
    one = certify(points, 0.02, clusters=clusters, seed=0)
    other = certify(5 * points, 0.1, clusters=clusters, seed=0, span=5.0)
    np.testing.assert_allclose(one.p_values, other.p_values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": -0.01}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"span": math.inf}, "tolerance"),
        ({"level": 95.0}, "level"),
        ({"losses": [[0.0] * 3]}, "losses must be"),
        ({"losses": [0.0] * 4}, "losses must be"),
        ({"losses": [[0.0, 0.0, 0.0, 1.5]]}, "within"),
        ({"losses": [[0.0, 0.0, 0.0, math.nan]]}, "within"),
    ],
)
def test_mistakes_are_rejected(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"losses": [[0.0] * 4], "tolerance": 0.1, "level": 0.95, "span": 1.0} | change
    with pytest.raises(ValueError, match=message):
        certify(clusters=Clusters.independent(4), seed=0, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("queries", "per_image"), [(500, 1), (1200, 4)])
@pytest.mark.parametrize("harm", [0.0, 2.0])
def test_at_most_one_certificate_in_twenty_is_violated(queries: int, per_image: int, harm: float) -> None:
    # 200 calibration splits of a population that is known, with policies on both sides of the tolerance.
    violated, certified, shown = violations(200, queries, 0.03, harm, per_image)
    assert violated <= 0.05
    assert certified > 0.9 and shown > 0.1  # it does certify


def test_the_simulated_policies_get_worse_the_more_they_show() -> None:
    need, shown = drawn(np.random.default_rng(0), 100_000, 2.0)
    risks = losses(need, shown).mean(1)
    assert risks[: len(OFFSETS) // 3].max() < 0 and risks[-1] > 0.03


def test_p_values_at_the_edge_of_the_null_are_not_too_small() -> None:
    # E[X] = mean exactly, with a variance that bets exploit: 2,000 samples of 300 values.
    rng = np.random.default_rng(5)
    values = rng.choice([0.0, 0.5, 1.0], p=[0.1, 0.8, 0.1], size=(2000, 300))
    p_values = betting_p_values(values, 0.5)
    for level in (0.01, 0.05, 0.2):
        assert (p_values <= level).mean() <= level + 2 * math.sqrt(level / 2000)
