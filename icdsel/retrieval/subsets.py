"""Greedy choices of several candidates that are relevant to a query and complete each other, for one query at a time.

n candidates are given by their relevance to the query (n) and their similarities to each other (n, n). Each function
returns the places of the chosen ones in the order of choosing, so that fewer are always the first of more. Ties go to
the earlier place. All of them need n ≥ `count`, and O(count · n²) time at most: shortlist before.
"""

import torch
from torch import Tensor

_LEAST_VOLUME = 1e-10  # squared; below it a candidate is a copy of chosen ones, up to rounding


def maximal_marginal_relevance(relevance: Tensor, similarity: Tensor, count: int, weight: float) -> list[int]:
    """Maximal marginal relevance (MMR), Carbonell and Goldstein, SIGIR 1998.

    Each choice maximises weight · relevance − (1 − weight) · (the highest similarity to one of those chosen before).

    Args:
        relevance: (n).
        similarity: (n, n).
        count: How many to choose.
        weight: λ in the paper, 0 to 1; 1 ranks by relevance alone.
    """
    chosen: list[int] = []
    nearest = torch.zeros_like(relevance)  # (n); nothing is chosen yet, so the first is the most relevant
    for _ in range(count):
        place = _best(weight * relevance - (1 - weight) * nearest, chosen)
        nearest = similarity[place] if not chosen else nearest.maximum(similarity[place])
        chosen.append(place)
    return chosen


def map_of_k_dpp(relevance: Tensor, similarity: Tensor, count: int, scale: float) -> list[int]:
    """The greedy MAP of a k-DPP, by the incremental Cholesky factors of Chen, Zhang and Zhou, NeurIPS 2018.

    The kernel of the determinantal point process is L = diag(q) S diag(q), with quality q = exp(r / (2 · scale)), where
    r and S are relevance and similarity moved from [−1, 1] to [0, 1]. Each choice maximises the determinant of L over
    the chosen ones: log q² + log d², where d² is the part of a candidate that the chosen ones do not span.

    Args:
        relevance: (n), cosines.
        similarity: (n, n), cosines; positive semi-definite, with ones on the diagonal.
        count: How many to choose. Once only copies of chosen ones are left, those of highest quality follow.
        scale: Of the relevance, above 0; the smaller, the more relevance counts.
    """
    quality = (1 + relevance) / 2 / scale  # (n), log q²
    kernel = (1 + similarity) / 2  # (n, n)
    volume = kernel.diagonal().clone()  # (n), d²
    factors = relevance.new_zeros(count, len(relevance))  # rows of the Cholesky factor, (count, n)
    chosen: list[int] = []
    for step in range(count):
        place = _best(quality + volume.clamp(min=_LEAST_VOLUME).log(), chosen)
        if volume[place] > _LEAST_VOLUME:
            projected = kernel[place] - factors[:step, place] @ factors[:step]  # (n)
            factors[step] = projected / volume[place].sqrt()
            volume = volume - factors[step] ** 2
        chosen.append(place)
    return chosen


def facility_location(relevance: Tensor, similarity: Tensor, count: int) -> list[int]:
    """Greedy facility location, Lin and Bilmes, ACL 2011, with every candidate weighted by its relevance.

    Maximises Σᵢ max(0, relevance[i]) · maxⱼ max(0, similarity[i, j]) over the candidates i and the chosen j: those
    relevant to the query should have a similar one among the chosen. The sum is monotone and submodular, so the greedy
    choice reaches at least 1 − 1/e of its maximum (Nemhauser et al., 1978).

    Args:
        relevance: (n).
        similarity: (n, n).
        count: How many to choose.
    """
    weights, similarity = relevance.clamp(min=0), similarity.clamp(min=0)
    covered = torch.zeros_like(relevance)  # (n), by those chosen
    chosen: list[int] = []
    for _ in range(count):
        gains = (similarity - covered).clamp(min=0) @ weights  # (n): rows are those to choose, columns those to cover
        place = _best(gains, chosen)
        covered = covered.maximum(similarity[place])
        chosen.append(place)
    return chosen


def _best(values: Tensor, chosen: list[int]) -> int:
    """The first place of the highest value (n) that is not chosen yet."""
    values = values.clone()
    values[chosen] = -torch.inf
    return int(values.argmax())
