"""The candidate pool of a query: the training examples that its ICDs may be chosen from.

RL data, training and inference use the same pools. A query is never in its own pool, and a pool never contains an
example twice. Rows are ranks by question_id in the training split.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from icdsel.data.datasets import Split
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.pool_rules import POOL_RULES, PoolRequest
from icdsel.retrieval.samplers import SAMPLERS, Sampler
from icdsel.settings.tables import DataSettings


class Pools(Sequence[Sequence[int]]):
    """The pools of Q queries: `pools[q]` are rows of the training split, `batch` returns tensors.

    Attributes:
        shared: Whether every pool is the whole training split without the rows excluded for the query.
        excluded: For each query, the rows that must not be in its pool.
    """

    def __init__(self, total: int, excluded: Sequence[AbstractSet[int]], rows: Sequence[Sequence[int]] | None) -> None:
        self.shared = rows is None
        self.excluded = excluded
        self._total, self._rows = total, rows

    def __len__(self) -> int:
        return len(self.excluded)

    def __getitem__(self, q: Any) -> Any:
        if self._rows is not None:
            return self._rows[q]
        return [row for row in range(self._total) if row not in self.excluded[q]]

    @property
    def smallest(self) -> int:
        """The size of the smallest pool."""
        if self._rows is None:
            return self._total - max(map(len, self.excluded), default=0)
        return min(map(len, self._rows), default=self._total)

    def batch(self, at: int, count: int) -> tuple[Tensor, Tensor]:
        """Returns the pools of queries `at` to `at + count` (exclusive) as tensors.

        Returns:
            Rows, int64 (B, K), 0 where padded, or (1, N), the whole training split, if the pools are shared; and the
            mask, bool (B, K), True where there is a candidate.
        """
        queries = range(at, min(at + count, len(self)))
        if self._rows is None:
            mask = torch.ones(len(queries), self._total, dtype=torch.bool)
            for b, q in enumerate(queries):
                mask[b, list(self.excluded[q])] = False
            return torch.arange(self._total)[None], mask
        widest = max(len(self._rows[q]) for q in queries)
        rows = torch.zeros(len(queries), widest, dtype=torch.long)
        mask = torch.zeros(len(queries), widest, dtype=torch.bool)
        for b, q in enumerate(queries):
            rows[b, : len(self._rows[q])] = torch.tensor(self._rows[q])
            mask[b, : len(self._rows[q])] = True
        return rows, mask


def rows_at(pools: Tensor, places: Tensor) -> Tensor:
    """The rows [B, S] of the training split at `places` [B, S] in `pools`, [B, K] or [1, N]; -1 stays -1."""
    rows = pools.expand(len(places), -1).gather(1, places.clamp(min=0))
    return rows.masked_fill(places < 0, -1)


def build_pools(
    queries: Sequence[Example],
    train: Split,
    similar: Callable[[], tuple[Embeddings, Embeddings]],
    settings: DataSettings,
    broken: AbstractSet[int] = frozenset(),
) -> Pools:
    """Builds the pool of each query: `settings.pool_size` rows of the training split, or those that it brings.

    By icdsel's rules, a query's pool depends only on the seed and the query. By Lever-Plus's rules, the pools of
    training queries are those that Lever-Plus draws for these queries in this order, without repeated and excluded
    rows.

    Args:
        queries: The queries.
        train: The training split.
        similar: Returns the embeddings of the queries and of the training split; called only if the sampler needs them.
        settings: Sampler, size, rules and seed.
        broken: Rows to exclude from all pools because their image cannot be read.

    Raises:
        DataError: The training split is too small for the pool, or a query brings a pool with an unknown id.
        SettingsError: There is no sampler of this name.
        ValueError: The sampler returned too few pools, or one that repeats a row or contains its query, or it uses
            similarity without `needs_embeddings`.
    """
    sampler, rules = SAMPLERS.named(settings.sampler), POOL_RULES.named(settings.pool_rules)
    own_rows = [_own_row(query, train) for query in queries]
    excluded = [
        _excluded(query, own, train, settings.exclude_same_image) | broken
        for query, own in zip(queries, own_rows, strict=True)
    ]
    brought = [_brought(query, train, rows) for query, rows in zip(queries, excluded, strict=True)]
    if queries and None not in brought:
        return Pools(len(train), excluded, [pool or [] for pool in brought])
    most = max((len(rows) for rows in excluded), default=0)
    size = 1 if settings.pool_size == "all" else settings.pool_size
    if len(train) - most < size:
        left = len(train) - most
        remedy = f"use --pool-size {left} or less" if left else "use --no-exclude-same-image, or more data"
        raise DataError(
            f"a pool of {settings.pool_size} does not fit into {len(train)} training examples "
            f"({most} of them excluded for a query): {remedy}"
        )
    if settings.pool_size == "all":
        shared = Pools(len(train), excluded, None)
        if not any(pool is not None for pool in brought):
            return shared
        return Pools(len(train), excluded, [shared[q] if pool is None else pool for q, pool in enumerate(brought)])
    similar = similar if sampler.needs_embeddings else _undeclared(sampler)
    request = PoolRequest(queries, own_rows, len(train), size, excluded, similar, settings.seed)
    pools = list(rules.pools(sampler, request))
    if len(pools) != len(queries):
        raise ValueError(f"the sampler {sampler.name} gave {len(pools)} pools for {len(queries)} queries")
    for query, own, pool in zip(queries, own_rows, pools, strict=True):
        if own in pool or len(set(pool)) < len(pool):
            raise ValueError(
                f"the sampler {sampler.name} gave query {query.question_id} a pool with a row twice, or the query's own"
            )
    drawn = [pool if own is None else own for pool, own in zip(pools, brought, strict=True)]
    return Pools(len(train), excluded, drawn)


def _brought(query: Example, train: Split, excluded: AbstractSet[int]) -> list[int] | None:
    """The rows of the pool that a query brings, without those excluded for it; None if it brings none.

    Raises:
        DataError: It names an example that the training split does not have.
    """
    if query.pool is None:
        return None
    if unknown := [question_id for question_id in query.pool if question_id not in train.row]:
        raise DataError(
            f"question {query.question_id}: its pool names {unknown[0]!r}, which is no question_id of the "
            f'{len(train)} training examples: correct the field "pool" of its record'
        )
    return sorted({train.row[question_id] for question_id in query.pool} - excluded)


def _undeclared(sampler: Sampler) -> Callable[[], tuple[Embeddings, Embeddings]]:
    """In place of embeddings that a sampler says it does not need: the inputs of results would lack their encoder."""

    def similar() -> tuple[Embeddings, Embeddings]:
        raise ValueError(f"the sampler {sampler.name} uses similarity (`nearest`): give it needs_embeddings=True")

    return similar


def _own_row(query: Example, train: Split) -> int | None:
    """The query's row if it belongs to the training split; another split may use the same question_ids."""
    row = train.row.get(query.question_id)
    return row if row is not None and train[row] == query else None


def _excluded(query: Example, own: int | None, train: Split, exclude_same_image: bool) -> frozenset[int]:
    rows = {row for image in query.images for row in train.rows_of_image(image)} if exclude_same_image else set()
    return frozenset(rows if own is None else rows | {own})
