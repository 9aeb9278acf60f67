"""Top-k with ties broken by the lower index, so that equal inputs lead to equal choices.

`torch.topk` does not specify which of several equal values it returns. A stable sort does, but is many times slower on
rows of hundreds of thousands of values.
"""

import torch
from torch import Tensor


def stable_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Finds the `count` largest values of each row, largest first; ties go to the lowest index.

    Args:
        values: (B, N), without NaN.
        count: At least 1; a row with fewer values is returned whole.

    Returns:
        Values and indices (int64), (B, min(count, N)) each.
    """
    size = values.shape[1]
    count = min(count, size)
    if count == 1:  # of equal values, argmax gives the first
        found = values.argmax(dim=1, keepdim=True)
        return values.gather(1, found), found
    best = values.topk(min(count + 1, size), dim=1)
    indices = best.indices[:, :count].sort(dim=1).values  # ascending within a row
    if count < size:
        tied = best.values[:, count - 1] == best.values[:, count]  # (B,): the last kept value equals a dropped one
        for b in tied.nonzero().flatten().tolist():
            indices[b] = _lowest(values[b], best.values[b, count - 1], count)
    found = values.gather(1, indices)
    order = found.sort(dim=1, descending=True, stable=True).indices
    return found.gather(1, order), indices.gather(1, order)


def _lowest(row: Tensor, least: Tensor, count: int) -> Tensor:
    """Indices (count,) of all values of `row` (N,) above `least` and of the first ones equal to it; ascending."""
    above = (row > least).nonzero().flatten()
    equal = (row == least).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, equal]).sort().values
