"""How far an example's answer agrees with those of its nearest neighbours: a hint at whether it is right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from icdsel.retrieval.neighbours import nearest_rows

NEIGHBOURS = 10
"""Neighbours that are compared with; 5 or 20 tell right from wrong answers as well (docs/selectors.md)."""
MOST_REFERENCES = 2**15
"""The most examples that neighbours are looked for among; of a larger training set, as many evenly spaced ones."""


def agreement(embeddings: Tensor, answers: Sequence[str]) -> Tensor:
    """The share of each example's nearest neighbours that have its answer, itself left out, standardised.

    Leaving out examples that their neighbours contradict is the edited nearest neighbour rule (Wilson 1972). Here
    nothing is left out: the policy learns what the number is worth.

    Args:
        embeddings: Unit vectors (N, d), N above 1.
        answers: The N answers; capitals and outer spaces do not count.

    Returns:
        Float32 (N,), of mean 0 and variance 1; zeros if all shares are equal.
    """
    total = len(answers)
    step = -(-total // MOST_REFERENCES)
    numbers: dict[str, int] = {}
    known = torch.tensor([numbers.setdefault(answer.strip().casefold(), len(numbers)) for answer in answers])  # (N,)
    own = [{row // step} if row % step == 0 else set() for row in range(total)]
    near = nearest_rows(embeddings, embeddings[::step], NEIGHBOURS, own)
    found = [float((known[torch.tensor(rows) * step] == known[row]).float().mean()) for row, rows in enumerate(near)]
    share = torch.tensor(found)  # (N,)
    spread = share.std(correction=0)
    return (share - share.mean()) / spread if spread > 0 else torch.zeros(total)
