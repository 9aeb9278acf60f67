"""The candidate pool of a query: which training examples its ICDs may be chosen from.

The same kind of pool serves RL data, training and inference. A query is never in its own pool, and no example
stands in a pool twice. Rows are ranks by question_id in the training split.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from icdsel.data.datasets import Split
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.retrieval import lever_plus_pools as samplers
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.neighbours import nearest_rows
from icdsel.settings.tables import DataSettings


class Pools(Sequence[Sequence[int]]):
    """The pools of Q queries as rows of the training split; where they are `shared`, the whole of it less a few rows.

    `pools[q]` are the rows of one query; `batch` gives tensors.
    """

    def __init__(self, total: int, hidden: Sequence[AbstractSet[int]], rows: Sequence[Sequence[int]] | None) -> None:
        self.shared = rows is None
        self.hidden = hidden
        self._total, self._rows = total, rows

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, q: Any) -> Any:
        if self._rows is not None:
            return self._rows[q]
        return [row for row in range(self._total) if row not in self.hidden[q]]

    @property
    def smallest(self) -> int:
        """The size of the smallest pool."""
        if self._rows is None:
            return self._total - max(map(len, self.hidden), default=0)
        return min(map(len, self._rows), default=self._total)

    def batch(self, at: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows, int64 (B, K), 0 where padded, and the mask, bool (B, K), True where there is a candidate.

        Of shared pools the rows are (1, N): all of the training split.
        """
        queries = range(at, min(at + count, len(self)))
        if self._rows is None:
            mask = torch.ones(len(queries), self._total, dtype=torch.bool)
            for b, q in enumerate(queries):
                mask[b, list(self.hidden[q])] = False
            return torch.arange(self._total)[None], mask
        widest = max(len(self._rows[q]) for q in queries)
        rows = torch.zeros(len(queries), widest, dtype=torch.long)
        mask = torch.zeros(len(queries), widest, dtype=torch.bool)
        for b, q in enumerate(queries):
            rows[b, : len(self._rows[q])] = torch.tensor(self._rows[q])
            mask[b, : len(self._rows[q])] = True
        return rows, mask


def build_pools(
    queries: Sequence[Example],
    train: Split,
    similar: Callable[[], tuple[Embeddings, Embeddings]],
    settings: DataSettings,
    broken: AbstractSet[int] = frozenset(),
) -> Pools:
    """The pool of each query, `settings.pool_size` rows of the training split.

    By icdsel's rules a query's pool depends on the seed and its question_id alone, not on the other queries. By
    Lever-Plus's rules the pools of training queries are those of its samplers (specification §3) for these
    queries in this order, less repetitions and the query itself; it has none for held-out queries, so those get
    icdsel's.

    Args:
        queries: The queries.
        train: The training split.
        similar: Gives the embeddings of the queries and of the training split; asked only by samplers that need it.
        settings: Sampler, size, rules and seed.
        broken: Rows that may be in no pool, since their image cannot be read.

    Raises:
        DataError: the training split is too small for the pool.
    """
    forbidden = [_forbidden(query, train, settings.exclude_same_image) | broken for query in queries]
    most = max((len(rows) for rows in forbidden), default=0)
    size = 1 if settings.pool_size == "all" else settings.pool_size
    if len(train) - most < size:
        left = len(train) - most
        remedy = f"use --pool-size {left} or less" if left else "use --no-exclude-same-image, or more data"
        raise DataError(
            f"a pool of {settings.pool_size} does not fit into {len(train)} training examples "
            f"({most} of them excluded for a query): {remedy}"
        )
    if settings.pool_size == "all":
        return Pools(len(train), forbidden, None)
    anchors = [_own_row(query, train) for query in queries]
    if settings.pool_rules == "lever-plus" and None not in anchors:
        rows = _lever_plus([row for row in anchors if row is not None], len(train), size, similar, settings)
        rows = [[r for r in dict.fromkeys(row) if r not in hidden] for row, hidden in zip(rows, forbidden, strict=True)]
    else:
        rows = list(_rows(queries, len(train), size, forbidden, similar, settings))
    return Pools(len(train), forbidden, rows)


def _rows(
    queries: Sequence[Example],
    total: int,
    size: int,
    forbidden: Sequence[AbstractSet[int]],
    similar: Callable[[], tuple[Embeddings, Embeddings]],
    settings: DataSettings,
) -> Iterator[list[int]]:
    def drawn(count: int) -> Iterator[list[int]]:
        for query, hidden in zip(queries, forbidden, strict=True):
            yield _random_rows(query, total, count, hidden, settings.seed)

    if settings.sampler == "rand":
        yield from drawn(size)
        return
    own, others = similar()
    if settings.sampler == "text-sim":
        yield from nearest_rows(own.question, others.question, size, forbidden)
        return
    by_image = nearest_rows(own.image, others.image, size, forbidden)
    if settings.sampler == "img-sim":
        yield from by_image
        return
    by_text = nearest_rows(own.question, others.question, size, forbidden)
    for pool, near, told in zip(drawn(size // 2), by_image, by_text, strict=True):
        # Half at random, a quarter by image, the rest by text.
        pool += [row for row in near if row not in pool][: size // 4]
        pool += [row for row in told if row not in pool][: size - len(pool)]
        yield pool


def _lever_plus(
    anchors: Sequence[int],
    total: int,
    size: int,
    similar: Callable[[], tuple[Embeddings, Embeddings]],
    settings: DataSettings,
) -> list[list[int]]:
    if settings.sampler == "rand":
        return samplers.random_pools(anchors, total, size, settings.seed)
    _, train = similar()
    if settings.sampler == "text-sim":
        return samplers.similarity_pools(anchors, train.question, size)
    if settings.sampler == "img-sim":
        return samplers.similarity_pools(anchors, train.image, size)
    return samplers.mixed_pools(anchors, train.question, train.image, size, settings.seed)


def _own_row(query: Example, train: Split) -> int | None:
    """The query's row, if it is of the training split."""
    row = train.row.get(query.question_id)
    return row if row is not None and train[row] == query else None


def _forbidden(query: Example, train: Split, exclude_same_image: bool) -> frozenset[int]:
    rows = set(train.rows_of_image(query.image)) if exclude_same_image else set()
    own = _own_row(query, train)
    return frozenset(rows if own is None else rows | {own})


def _random_rows(query: Example, total: int, size: int, forbidden: AbstractSet[int], seed: int) -> list[int]:
    rng = random.Random(f"pool-{seed}-{query.question_id}")
    drawn = rng.sample(range(total), min(total, size + len(forbidden)))
    return [row for row in drawn if row not in forbidden][:size]
