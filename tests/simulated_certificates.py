"""Certificates for simulated policies whose risk is known: how often a certified policy breaks its tolerance.

`python -m tests.simulated_certificates` prints the table of docs/guide.md (200 calibration splits a line; 10 seconds
of one core).

A query has a need for ICDs, as the policy estimates it, and its scores without and with ICDs, both 0 or 1. Where the
need is low, ICDs harm, so that a policy that shows them to more and more queries first gains and then loses.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from icdsel.comparison.statistics import Clusters, certify

Floats = NDArray[np.float64]
OFFSETS = np.linspace(3.0, -3.0, 25)
"""From showing ICDs to hardly any query to nearly all."""


def drawn(rng: np.random.Generator, queries: int, harm: float, per_image: int = 1) -> tuple[Floats, Floats]:
    """The need of each query, and its loss if ICDs are shown: −1, 0 or 1, both [queries].

    Args:
        rng: Source of chance.
        queries: How many.
        harm: The higher it is, the more queries ICDs harm.
        per_image: Neighbouring queries that are on one image, and mostly alike.
    """
    shared = np.repeat(rng.normal(size=-(-queries // per_image)), per_image)[:queries]
    need = np.sqrt(0.8) * shared + np.sqrt(0.2) * rng.normal(size=queries)
    fate = rng.uniform(size=queries)
    harmed = 0.3 / (1 + np.exp(2 * need - harm))
    helped = 0.25 / (1 + np.exp(-2 * need + 1))
    return need, np.where(fate < harmed, 1.0, np.where(fate > 1 - helped, -1.0, 0.0))


def losses(need: Floats, shown: Floats) -> Floats:
    """The losses (G, n) of the policies of all offsets: 0 where nothing is shown."""
    return np.where(need > OFFSETS[:, None], shown, 0.0)


def violations(splits: int, queries: int, delta: float, harm: float, per_image: int = 1, seed: int = 0) -> Floats:
    """Of certificates on calibration splits: the share that is violated, that certifies some policy, the mean shown.

    Args:
        splits: Calibration splits.
        queries: Queries of each.
        delta: The tolerance.
        harm: As for `drawn`.
        per_image: As for `drawn`.
        seed: Seed of everything.
    """
    rng = np.random.default_rng(seed)
    need, loss = drawn(rng, 400_000, harm, per_image)
    risks = losses(need, loss).mean(1)  # (G,), of the population
    shares = (need > OFFSETS[:, None]).mean(1)
    clusters = Clusters([i // per_image for i in range(queries)])
    found = []
    for split in range(splits):
        start = per_image * int(rng.integers((len(need) - queries) // per_image))
        own = slice(start, start + queries)
        count = certify(losses(need[own], loss[own]), delta, clusters=clusters, seed=split).certified
        found.append((max(risks[:count], default=0.0) > delta, count > 0, shares[count - 1] if count else 0.0))
    return np.array(found, dtype=np.float64).mean(0)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--splits", type=int, default=200)
    splits = parser.parse_args().splits
    print("| calibration queries | δ | ICDs harm | queries per image | violated | certified | shown to |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    for queries in (500, 1000, 2000):
        for delta in (0.01, 0.03):
            for harm, name in ((2.0, "many"), (0.0, "some")):
                for per_image in (1, 4):
                    figures = 100 * violations(splits, queries, delta, harm, per_image)
                    cells = " | ".join(f"{figure:.1f} %" for figure in figures)
                    print(f"| {queries} | {100 * delta:g} | {name} | {per_image} | {cells} |")


if __name__ == "__main__":
    main()
