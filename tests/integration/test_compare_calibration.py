"""What the table says of its own certainty, over simulated tables whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from icdsel.comparison.compare import ComparisonRow, comparison_rows
from icdsel.comparison.scores import Scores

VALUES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
WEAK, STRONG = np.array([0.45, 0.1, 0.05, 0.1, 0.3]), np.array([0.38, 0.1, 0.05, 0.12, 0.35])
TRUTH = 100 * float(WEAK @ VALUES)  # 45 points
EFFECT = 100 * float(STRONG @ VALUES) - TRUTH  # 6.8 points
DRAWS = {"resamples": 300, "permutations": 399}  # fewer than the table's own, for the sake of time


def answers(rng: np.random.Generator, p: np.ndarray, difficulty: np.ndarray) -> dict[int, float]:
    """Scores with the probabilities p, correlated with other rows' by the queries' difficulty, standard normal [n]."""
    latent = np.sqrt(0.7) * difficulty + np.sqrt(0.3) * rng.normal(size=len(difficulty))
    return dict(enumerate(VALUES[np.searchsorted(stats.norm.ppf(np.cumsum(p)[:-1]), latent)].tolist()))


def table_without_effect(rng: np.random.Generator, n: int) -> list[ComparisonRow]:
    """A baseline, and two seeds with their mean, at 1 and 2 shots; half of the tables against the one or the other."""
    scores = []
    for shots in (1, 2):
        difficulty = rng.normal(size=n)
        names = ("random-1", "random-2", "nearest-both")
        scores += [
            Scores(name, name.split("-")[0], shots, answers(rng, WEAK, difficulty), "official") for name in names
        ]
    seed = int(rng.integers(2**31))
    return comparison_rows(scores, ("random", "nearest-both")[seed % 2], seed=seed, **DRAWS)


@pytest.fixture(scope="module")
def tables() -> dict[int, list[list[ComparisonRow]]]:
    """By the number of queries, 1,000 in all."""
    of_size = {200: 800, 800: 200}
    return {n: [table_without_effect(np.random.default_rng([n, k]), n) for k in range(of_size[n])] for n in of_size}


@pytest.mark.parametrize("n", [200, 800])
def test_intervals_cover_the_truth_as_often_as_they_say(tables, n):
    rows = [row for rows in tables[n] for row in rows]
    accuracies = np.mean([row.low <= TRUTH <= row.high for row in rows])
    assert 0.93 <= accuracies <= 0.97
    differences = np.mean([row.difference_low <= 0 <= row.difference_high for row in rows if row.p_value is not None])
    assert 0.93 <= differences <= 0.97


def test_few_tables_without_an_effect_show_one(tables):
    # Any of a table's corrected p-values below 0.05 is a false positive: 5 % of 1,000 tables, give or take 2·0.7 %.
    found = [
        min(row.p_holm for row in rows if row.p_holm is not None) < 0.05 for of_n in tables.values() for rows in of_n
    ]
    assert len(found) == 1000
    assert 0.02 <= np.mean(found) <= 0.065
    # Uncorrected, more would show one.
    naive = [
        min(row.p_value for row in rows if row.p_value is not None) < 0.05 for of_n in tables.values() for rows in of_n
    ]
    assert np.mean(naive) > np.mean(found) + 0.02


def test_a_known_effect_is_covered_and_found_as_often_as_the_power_says():
    n, covered, found, detectable = 200, [], [], []
    for k in range(1000):
        rng = np.random.default_rng([1, k])
        difficulty = rng.normal(size=n)
        scores = [Scores("a", "nearest", 1, answers(rng, WEAK, difficulty), "official")]
        scores.append(Scores("b", "policy", 1, answers(rng, STRONG, difficulty), "official"))
        row = next(row for row in comparison_rows(scores, "a", seed=k, **DRAWS) if row.name == "b")
        covered.append(row.difference_low <= EFFECT <= row.difference_high)
        found.append(row.p_value <= 0.05)
        detectable.append(row.detectable)
    assert 0.93 <= np.mean(covered) <= 0.97
    # An effect of what is detectable with 80 % power is found so often; of this one, as often as it is larger.
    power = stats.norm.cdf(EFFECT / (np.mean(detectable) / (1.96 + 0.8416)) - 1.96)
    assert np.mean(found) == pytest.approx(power, abs=0.04)


def test_holm_over_a_large_table_can_still_be_sure():
    # No flip of 40 equal differences is as extreme: p is 1/(flips + 1), whose 90-fold must still be small.
    scores = [
        Scores(f"nearest-x{i}", "nearest", s, dict.fromkeys(range(40), 0.6), "official")
        for s in (1, 2, 3)
        for i in range(30)
    ]
    scores += [Scores("random-42", "random", s, dict.fromkeys(range(40), 0.3), "official") for s in (1, 2, 3)]
    rows = [row for row in comparison_rows(scores, seed=0) if row.p_value is not None]
    assert len(rows) == 90
    assert all(row.p_holm <= 0.001 for row in rows)


def test_a_table_of_300_000_answers_takes_seconds():
    import time

    rng = np.random.default_rng(0)
    scores = []
    for shots in (1, 2, 3):
        difficulty = rng.normal(size=5000)
        scores += [
            Scores(f"nearest-x{i}", "nearest", shots, answers(rng, WEAK, difficulty), "official") for i in range(19)
        ]
        scores.append(Scores("random-42", "random", shots, answers(rng, WEAK, difficulty), "official"))
    started = time.process_time()
    assert len(comparison_rows(scores, seed=0)) == 60
    assert time.process_time() - started < 15  # about 3 on an idle core
