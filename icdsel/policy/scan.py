"""Attention and ranking over a pool that all queries share, chunk by chunk: a pool of any size in bounded memory.

Shapes: B queries, N candidates, H attention heads of width d, hidden width h. A `mask` [B, N] (bool) is True where a
candidate may be chosen; None allows all.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from icdsel.retrieval.topk import stable_topk

__all__ = ["RunningLogSum", "RunningTop", "attend", "cosines"]

_VALUES = 2**18
"""Maximum number of scores computed at once: 1 MiB in float32, half of a core's second-level cache. More are slower,
since every score is then written to memory and read again; fewer are, since matrix products get small."""


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention to all candidates, with a running maximum and sum instead of all N weights.

    The method is that of Milakov and Gimelshein 2018 (arXiv 1805.02867); the result is the exact softmax.

    Args:
        query: [H, B, d], already divided by √d.
        keys: [H, N, d].
        values: [H, N, d].
        mask: Candidates to attend to. A query without any gets the mean of all values.

    Returns:
        The weighted means of the values, [H, B, d].
    """
    least = torch.finfo(query.dtype).min  # finite, so that a chunk without any candidate yields no NaN
    most = query.new_full((*query.shape[:2], 1), least)  # (H, B, 1)
    total, mean = torch.zeros_like(most), torch.zeros_like(query)
    for start, end in _chunks(keys.shape[1], query.shape[0] * query.shape[1]):
        scores = query @ keys[:, start:end].transpose(1, 2)  # (H, B, n)
        if mask is not None:
            row, column = _hidden(mask, start, end)
            scores[:, row, column] = least
        highest = torch.maximum(most, scores.amax(-1, keepdim=True))
        weights = scores.sub_(highest).exp_()
        shrink = (most - highest).exp_()
        total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        mean.mul_(shrink).baddbmm_(weights, values[:, start:end])
        most = highest
    return mean / total


def cosines(
    states: Tensor, candidates: Tensor, mask: Tensor | None = None, taken: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yields the dot products of the states with the candidates, chunk by chunk.

    Args:
        states: [B, h].
        candidates: [N, h].
        mask: Candidates that may be chosen.
        taken: Positions that may not be chosen, int64 [B, T]; -1 is padding.

    Yields:
        The position of the chunk's first candidate, and its dot products [B, n], -inf for those that may not be chosen.
        The caller may change them.
    """
    for start, end in _chunks(len(candidates), len(states)):
        found = states @ candidates[start:end].T  # (B, n)
        if mask is not None:
            found[_hidden(mask, start, end)] = -torch.inf
        if taken is not None:
            row, column = ((taken >= start) & (taken < end)).nonzero(as_tuple=True)
            found[row, taken[row, column] - start] = -torch.inf
        yield start, found


class RunningTop:
    """The `count` largest values of each row and their positions, of chunks that are added in order.

    Attributes:
        values: Largest first, [B, min(count, values so far)].
        positions: Where they are, int64; equal values are in the order of their positions.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.values, self.positions = torch.empty(0, 0), torch.empty(0, 0, dtype=torch.int64)

    def add(self, start: int, chunk: Tensor) -> None:
        """Adds the values [B, n] at the positions from `start` on."""
        if not self.values.numel():
            self.values, found = stable_topk(chunk, self._count)
            self.positions = found + start
            return
        if self.values.shape[1] < self._count:
            rows = torch.arange(len(chunk), device=chunk.device)
        else:  # of most rows, a later chunk has nothing that is large enough
            rows = (chunk.amax(1) > self.values[:, -1]).nonzero().flatten()
            if not len(rows):
                return
        values, found = stable_topk(chunk[rows], self._count)
        values = torch.cat([self.values[rows], values], dim=1)  # earlier positions first, as ties need them
        values, order = stable_topk(values, self._count)
        positions = torch.cat([self.positions[rows], found + start], dim=1).gather(1, order)
        if len(rows) == len(chunk):
            self.values, self.positions = values, positions
        else:
            self.values[rows], self.positions[rows] = values, positions


class RunningLogSum:
    """log Σ exp of each row, of chunks that are added one by one.

    Attributes:
        value: [B], -inf before anything is added.
    """

    def __init__(self) -> None:
        self.value = torch.tensor(-torch.inf)

    def add(self, chunk: Tensor) -> None:
        """Adds the values [B, n]."""
        self.value = torch.logaddexp(self.value.to(chunk), chunk.logsumexp(-1))


def _hidden(mask: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of a chunk that may not be chosen. They are few: only examples of the query's own image."""
    row, column = (~mask[:, start:end]).nonzero(as_tuple=True)
    return row, column


def _chunks(size: int, rows: int) -> Iterator[tuple[int, int]]:
    """The bounds of chunks of `size` candidates, for scores of `rows` rows."""
    step = max(1, _VALUES // max(1, rows))
    for start in range(0, size, step):
        yield start, min(size, start + step)
