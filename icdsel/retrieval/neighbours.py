"""Exact nearest neighbours, in the whole training split or in each query's pool, within bounded memory."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from icdsel.retrieval.topk import stable_topk

if TYPE_CHECKING:
    from icdsel.retrieval.pools import Pools

_SIMILARITIES = 2**26  # maximum number of similarities computed at once: 256 MiB
_QUERIES = 256  # number of queries whose pools are searched at once


def nearest_rows(
    queries: Tensor, candidates: Tensor, count: int, excluded: Sequence[AbstractSet[int]], chunk: int | None = None
) -> Iterator[list[int]]:
    """Yields, for each query, the `count` rows of `candidates` with the highest dot product, best first.

    Ties go to the lower row. A query gets fewer rows if exclusion leaves fewer.

    Args:
        queries: (Q, d).
        candidates: (N, d).
        count: Rows per query.
        excluded: For each query, the rows that it must not get.
        chunk: Queries compared at once; by default, the largest number whose similarities fit into 256 MiB.
    """
    chunk = chunk or max(1, _SIMILARITIES // max(1, len(candidates)))
    for at in range(0, len(queries), chunk):
        similar = queries[at : at + chunk] @ candidates.T  # (chunk, N)
        for b, rows in enumerate(excluded[at : at + chunk]):
            similar[b, list(rows)] = -torch.inf
        values, found = stable_topk(similar, count)
        left = (values > -torch.inf).sum(1).tolist()
        yield from (row[:n] for row, n in zip(found.tolist(), left, strict=True))


def nearest_in_pools(queries: Tensor, candidates: Tensor, count: int, pools: "Pools") -> Iterator[list[int]]:
    """Yields, for each query, the `count` rows of its pool with the highest dot product, best first.

    Ties go to the row that comes first in the pool.

    Args:
        queries: (Q, d).
        candidates: (N, d), the training split.
        count: Rows per query; from a smaller pool all its rows.
        pools: The pool of each query.
    """
    if pools.shared:
        yield from nearest_rows(queries, candidates, count, pools.excluded)
        return
    for at in range(0, len(queries), _QUERIES):
        rows, mask = pools.batch(at, _QUERIES)  # (B, K) each
        similar = torch.einsum("bd,bkd->bk", queries[at : at + _QUERIES], candidates[rows])
        similar = similar.masked_fill(~mask, -torch.inf)
        values, places = stable_topk(similar, count)
        left = (values > -torch.inf).sum(1).tolist()
        yield from (row[:n] for row, n in zip(rows.gather(1, places).tolist(), left, strict=True))
