"""The rules by which samplers draw: icdsel's, where each query is independent of the others, and Lever-Plus's.

Does not import torch.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.retrieval.samplers import Kind, Sampler

if TYPE_CHECKING:
    from icdsel.retrieval.embeddings import Embeddings


@dataclass(frozen=True, eq=False)
class PoolRequest:
    """A request for the pools of several queries.

    Attributes:
        queries: The queries.
        own_rows: The row of each query in the training split; None for a query of another split.
        total: Size of the training split.
        size: Size of a pool.
        excluded: For each query, the rows that must not be in its pool.
        similar: Returns the embeddings of the queries and of the training split.
        seed: The seed of random draws.
    """

    queries: Sequence[Example]
    own_rows: Sequence[int | None]
    total: int
    size: int
    excluded: Sequence[AbstractSet[int]]
    similar: "Callable[[], tuple[Embeddings, Embeddings]]"
    seed: int

    @cached_property
    def embeddings(self) -> "tuple[Embeddings, Embeddings]":
        """Embeddings of the queries and of the training split, computed when a sampler first needs them."""
        return self.similar()


@dataclass(frozen=True)
class PoolRules:
    """Rules by which a sampler draws.

    Attributes:
        name: The name that users type.
        pools: Returns the pool of each query.
    """

    name: str
    pools: Callable[[Sampler, PoolRequest], Iterable[list[int]]]


@dataclass(frozen=True)
class _Draws:
    """Draws by icdsel's rules: they depend only on the seed and the query, and omit excluded rows."""

    request: PoolRequest

    def random(self, count: int) -> Iterator[list[int]]:
        request = self.request
        for query, excluded in zip(request.queries, request.excluded, strict=True):
            rng = random.Random(f"pool-{request.seed}-{query.question_id}")
            drawn = rng.sample(range(request.total), min(request.total, count + len(excluded)))
            yield [row for row in drawn if row not in excluded][:count]

    def nearest(self, kind: Kind, count: int) -> Iterator[list[int]]:
        from icdsel.retrieval.neighbours import nearest_rows

        queries, train = self.request.embeddings
        return nearest_rows(queries.of(kind), train.of(kind), count, self.request.excluded)


@dataclass(frozen=True)
class _LeverPlusDraws:
    """Draws by Lever-Plus's rules: they depend on all queries and their order, and may include excluded rows."""

    own_rows: Sequence[int]
    request: PoolRequest

    def random(self, count: int) -> list[list[int]]:
        from icdsel.retrieval import lever_plus_pools

        return lever_plus_pools.random_pools(self.own_rows, self.request.total, count, self.request.seed)

    def nearest(self, kind: Kind, count: int) -> list[list[int]]:
        from icdsel.retrieval import lever_plus_pools

        _, train = self.request.embeddings
        return lever_plus_pools.similarity_pools(self.own_rows, train.of(kind), count)


def _icdsel(sampler: Sampler, request: PoolRequest) -> Iterable[list[int]]:
    return sampler.pools(_Draws(request), request.size)


def _lever_plus(sampler: Sampler, request: PoolRequest) -> Iterable[list[int]]:
    """Lever-Plus builds pools for training queries only; other queries get icdsel's pools."""
    own_rows = [row for row in request.own_rows if row is not None]
    if len(own_rows) < len(request.queries):
        return _icdsel(sampler, request)
    pools = (sampler.lever_plus_pools or sampler.pools)(_LeverPlusDraws(own_rows, request), request.size)
    return (
        [row for row in dict.fromkeys(pool) if row not in excluded]
        for pool, excluded in zip(pools, request.excluded, strict=True)
    )


POOL_RULES = Registry("rules for pools", (PoolRules("icdsel", _icdsel), PoolRules("lever-plus", _lever_plus)))
"""The rules, by the name that `--pool-rules` takes.

To add rules, write a function that calls `sampler.pools` with your own implementation of
`icdsel.retrieval.samplers.Draws`, and call `POOL_RULES.add(PoolRules("my-rules", my_pools))`. Import torch inside the
function.
"""
