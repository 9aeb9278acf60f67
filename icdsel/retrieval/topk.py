"""The largest values of each row, ties to the lower index, so that the same numbers give the same choice everywhere.

`torch.topk` leaves open which of equal values it takes; a stable sort would tell, at many times the cost where
a row has hundreds of thousands of values.
"""

import torch
from torch import Tensor


def stable_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row, best first, of equal ones those of the lowest index.

    Args:
        values: [B, N], without NaN.
        count: At least 1; rows of fewer values are returned whole.

    Returns:
        Values and indices (int64), [B, min(count, N)] each.
    """
    size = values.shape[1]
    count = min(count, size)
    best = values.topk(min(count + 1, size), dim=1)
    indices = best.indices[:, :count].sort(dim=1).values  # ascending within a row
    if count < size:
        cut = best.values[:, count - 1] == best.values[:, count]  # (B,) the last that counts has an equal outside
        for b in cut.nonzero().flatten().tolist():
            indices[b] = _lowest(values[b], best.values[b, count - 1], count)
    found = values.gather(1, indices)
    order = found.sort(dim=1, descending=True, stable=True).indices
    return found.gather(1, order), indices.gather(1, order)


def _lowest(row: Tensor, least: Tensor, count: int) -> Tensor:
    """The indices [count] of what is above `least` in `row` [N], and of the first ones that equal it; ascending."""
    above = (row > least).nonzero().flatten()
    level = (row == least).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, level]).sort().values
