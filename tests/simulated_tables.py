"""Simulated scores whose truth is known: how often intervals cover it, and how often chance looks like an effect.

`python -m tests.simulated_tables` prints the table of docs/guide.md (1,000 tables a line; 20 seconds of one core).

Answers are VQA scores, most of them 0 or 1. Behind each is a normal variable with parts for the difficulty of the
query, luck, and the seed; difficulty and luck are alike within an image. Thresholds turn it into scores of the wanted
distribution, so rows agree on many queries.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from icdsel.comparison.statistics import (
    Clusters,
    PairedDifference,
    SeedScores,
    permutation_pvalue,
    score_interval,
)

Floats = NDArray[np.float64]
VALUES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
ACCURACIES = {  # probabilities of the values
    45: (0.45, 0.10, 0.05, 0.10, 0.30),
    52: (0.38, 0.10, 0.05, 0.12, 0.35),
    86: (0.09, 0.03, 0.03, 0.05, 0.80),
    87: (0.09, 0.03, 0.03, 0.04, 0.81),
    90: (0.07, 0.02, 0.02, 0.04, 0.85),
    97.8: (0.016, 0.004, 0.003, 0.008, 0.969),
}


def truth(accuracy: float) -> float:
    """The mean score of a distribution."""
    return float(np.array(ACCURACIES[accuracy]) @ VALUES)


def scores(latent: Floats, accuracy: float) -> Floats:
    """Scores of a distribution from standard normal variables."""
    return VALUES[np.searchsorted(stats.norm.ppf(np.cumsum(ACCURACIES[accuracy])[:-1]), latent)]


def slope(accuracy: float) -> float:
    """By how much the mean score rises if the variable behind all answers rises by 1."""
    thresholds = stats.norm.ppf(np.cumsum(ACCURACIES[accuracy])[:-1])
    return float(np.diff(VALUES) @ stats.norm.pdf(thresholds))


@dataclass(frozen=True)
class World:
    """Where rows come from.

    Attributes:
        n: Queries.
        accuracy: A key of `ACCURACIES`.
        per_image: Questions on one image.
        on_first: Questions on the first image, if it has more than the others.
        long_tail: Whether the k-th image has 1/k as many questions as the first, but at least one.
        within_image: Correlation of the answers' variables within an image, and of what distinguishes two rows there.
        shared: Share that rows have in common: the difficulty of queries.
        seeds: Seeds of each row.
        seed_sd: Standard deviation between seeds, in points.
        seed_correlation: Between two rows with the same seeds.
    """

    n: int
    accuracy: float = 45
    per_image: int = 1
    on_first: int = 0
    long_tail: bool = False
    within_image: float = 0.0
    shared: float = 0.7
    seeds: int = 1
    seed_sd: float = 0.0
    seed_correlation: float = 0.0

    @property
    def clusters(self) -> Clusters:
        if self.long_tail:
            sizes = (max(1, self.on_first // k) for k in range(1, self.n + 1))
            return Clusters([image for image, size in enumerate(sizes) for _ in range(size)][: self.n])
        return Clusters([max(0, i - self.on_first + self.per_image) // self.per_image for i in range(self.n)])

    def rows(self, rng: np.random.Generator, count: int, same_seeds: bool = True) -> list[SeedScores]:
        """`count` rows over the same queries, equally good on average over seeds."""
        image_of = self.clusters.of_query

        def by_query(*rows: int) -> Floats:  # (…, n), alike within an image
            images = rng.normal(size=(*rows, image_of[-1] + 1))[..., image_of]
            own = rng.normal(size=(*rows, self.n))
            return np.sqrt(self.within_image) * images + np.sqrt(1 - self.within_image) * own

        difficulty = by_query()
        common = rng.normal(size=self.seeds)
        rho, found = self.seed_correlation, []
        for k in range(count):
            own = rng.normal(size=self.seeds)
            sign = -1 if rho < 0 and k % 2 else 1
            effect = sign * np.sqrt(abs(rho)) * common + np.sqrt(1 - abs(rho)) * own if same_seeds else own
            latent = np.sqrt(self.shared) * difficulty + np.sqrt(1 - self.shared) * by_query(self.seeds)
            shift = self.seed_sd / 100 / slope(self.accuracy) * effect
            labels = [(0 if same_seeds else k, s) for s in range(self.seeds)]
            found.append(SeedScores(scores(latent + shift[:, None], self.accuracy), labels))
        return found

    @property
    def mean(self) -> float:
        """The true mean score: over seeds too."""
        sd = self.seed_sd / 100 / slope(self.accuracy)
        nodes, weights = np.polynomial.hermite_e.hermegauss(61)
        thresholds = stats.norm.ppf(np.cumsum(ACCURACIES[self.accuracy])[:-1])
        above = stats.norm.sf(thresholds[:, None] - sd * nodes)  # (values - 1, nodes)
        return float(np.diff(VALUES) @ above @ weights / weights.sum())


@dataclass
class Counts:
    """What was found in simulated tables, a list entry for each."""

    score_covered: list[bool] = field(default_factory=list)
    difference_covered: list[bool] = field(default_factory=list)
    p_values: list[float] = field(default_factory=list)
    worse: list[bool] = field(default_factory=list)


def simulate(world: World, tables: int, *, same_seeds: bool = True, seed: int = 0, permutations: int = 399) -> Counts:
    """Two equally good rows in each table."""
    counts, clusters, mean = Counts(), world.clusters, world.mean
    for k in range(tables):
        one, other = world.rows(np.random.default_rng([seed, k]), 2, same_seeds)
        low, high = score_interval(one, clusters=clusters)[1:]
        counts.score_covered.append(low <= mean <= high)
        difference = PairedDifference.of(one, other, clusters=clusters)
        low, high = difference.interval()[1:]
        counts.difference_covered.append(low <= 0 <= high)
        counts.worse.append(high < 0)
        counts.p_values.append(
            difference.p_value()
            if world.seeds > 1
            else permutation_pvalue(difference.by_query, seed=k, permutations=permutations, clusters=clusters)
        )
    return counts


def power_of(detectable: Callable[[Floats], float], ties: float, n: int, tables: int, seed: int = 0) -> float:
    """How often an effect that a table calls detectable is found in a new one, which wins it on more queries.

    Args:
        detectable: From differences [n] without an effect to the size that they would detect.
        ties: Probability that a query does not change without the effect.
        n: Queries.
        tables: How many times.
        seed: Of the simulation.
    """
    sizes, weights = np.array([1.0, 0.7, 0.6, 0.3]), np.array([0.6, 0.1, 0.1, 0.2])
    found = []
    for k in range(tables):
        rng = np.random.default_rng([seed, k])

        def without_effect(rng: np.random.Generator = rng) -> Floats:
            return (rng.random(n) >= ties) * rng.choice([-1, 1], size=n) * rng.choice(sizes, size=n, p=weights)

        effect = detectable(without_effect())
        wins = rng.random(n) < effect / (weights @ sizes)
        changed = np.where(wins, rng.choice(sizes, size=n, p=weights), without_effect())
        found.append(permutation_pvalue(changed, seed=k, permutations=399) <= 0.05)
    return float(np.mean(found))


LINES: list[tuple[str, World, bool]] = [
    ("accuracy 45, n = 200", World(200), True),
    ("accuracy 45, n = 800", World(800), True),
    ("accuracy 90, n = 20", World(20, 90), True),
    ("accuracy 90, n = 50", World(50, 90), True),
    ("accuracy 90, n = 200", World(200, 90), True),
    ("accuracy 97.8, n = 20", World(20, 97.8), True),
    ("accuracy 97.8, n = 50", World(50, 97.8), True),
    ("accuracy 97.8, n = 200", World(200, 97.8), True),
    ("5 questions an image, correlation 0.2, accuracy 45, n = 200", World(200, 45, 5, within_image=0.2), True),
    ("5 questions an image, correlation 0.5, accuracy 45, n = 200", World(200, 45, 5, within_image=0.5), True),
    ("5 questions an image, correlation 0.5, accuracy 90, n = 800", World(800, 90, 5, within_image=0.5), True),
    ("one image with 50 of 200 questions, correlation 0.2", World(200, on_first=50, within_image=0.2), True),
    ("one image with 100 of 800 questions, correlation 0.5", World(800, 90, on_first=100, within_image=0.5), True),
    (
        "800 questions, 100 on the first image, 50 on the second, 33, 25, …, correlation 0.2",
        World(800, 90, on_first=100, long_tail=True, within_image=0.2),
        True,
    ),
    (
        "800 questions, 100 on the first image, 50 on the second, 33, 25, …, correlation 0.5",
        World(800, 90, on_first=100, long_tail=True, within_image=0.5),
        True,
    ),
    ("the same 2 seeds, SD 1.5, correlation 0", World(800, 86, seeds=2, seed_sd=1.5), True),
    ("3 seeds against 3 others, SD 1.3, n = 800", World(800, 86, seeds=3, seed_sd=1.3), False),
    ("3 seeds against 3 others, SD 1.65, n = 800", World(800, 86, seeds=3, seed_sd=1.65), False),
    ("3 seeds against 3 others, SD 1.65, n = 5,000", World(5000, 86, seeds=3, seed_sd=1.65), False),
    ("5 seeds against 5 others, SD 1.65, n = 800", World(800, 86, seeds=5, seed_sd=1.65), False),
    ("the same 3 seeds, SD 1.5, correlation −0.23", World(800, 86, seeds=3, seed_sd=1.5, seed_correlation=-0.23), True),
    ("the same 3 seeds, SD 1.5, correlation 0", World(800, 86, seeds=3, seed_sd=1.5), True),
    ("the same 3 seeds, SD 1.5, correlation 0.88", World(800, 86, seeds=3, seed_sd=1.5, seed_correlation=0.88), True),
    ("3 seeds without an effect, as of `random`, n = 800", World(800, 45, seeds=3, shared=0.5), False),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    tables = parser.parse_args().tables
    print("| simulated | interval covers | interval of Δ covers | p < 0.05 | worse |\n|---|---:|---:|---:|---:|")
    for name, world, same_seeds in LINES:
        counts = simulate(world, tables, same_seeds=same_seeds)
        false = np.mean(np.array(counts.p_values) < 0.05)
        shares = (np.mean(counts.score_covered), np.mean(counts.difference_covered), false, np.mean(counts.worse))
        print(f"| {name} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
