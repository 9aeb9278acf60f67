"""The nearest of many vectors, exactly, within bounded memory."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from icdsel.retrieval.topk import stable_topk

_SIMILARITIES = 2**26  # held at once


def nearest_rows(
    queries: Tensor, candidates: Tensor, count: int, forbidden: Sequence[AbstractSet[int]], chunk: int | None = None
) -> Iterator[list[int]]:
    """For each query (Q, d) the `count` rows of `candidates` (N, d) of highest dot product, best first.

    Exact; ties go to the lower row. `chunk` queries are compared at once, by default as many as keep the
    similarities within 256 MiB.
    """
    chunk = chunk or max(1, _SIMILARITIES // max(1, len(candidates)))
    for at in range(0, len(queries), chunk):
        similar = queries[at : at + chunk] @ candidates.T  # (chunk, N)
        for b, rows in enumerate(forbidden[at : at + chunk]):
            similar[b, list(rows)] = -torch.inf
        values, found = stable_topk(similar, count)
        real = (values > -torch.inf).sum(1).tolist()
        yield from (row[:n] for row, n in zip(found.tolist(), real, strict=True))
