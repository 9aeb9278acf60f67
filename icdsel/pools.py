"""The candidate pool of a query: which training examples its ICDs may be chosen from.

The same kind of pool serves RL data, training and inference. A query is never in its own pool, and no example
stands in a pool twice. Rows are ranks by question_id in the training split.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from icdsel.datasets import Split
from icdsel.embeddings import Embeddings
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.settings import DataSettings


def build_pools(
    queries: Sequence[Example],
    train: Split,
    query_embeddings: Embeddings,
    train_embeddings: Embeddings,
    settings: DataSettings,
) -> list[list[int]]:
    """The pool of each query as rows of the training split, `settings.pool_size` long.

    A query's pool depends on the seed and its question_id alone, not on the other queries.

    Raises:
        DataError: the training split is too small for the pool.
    """
    forbidden = [_forbidden(query, train, settings.exclude_same_image) for query in queries]
    most = max((len(rows) for rows in forbidden), default=0)
    if len(train) - most < settings.pool_size:
        left = len(train) - most
        remedy = f"use --pool-size {left} or less" if left else "use --no-exclude-same-image, or more data"
        raise DataError(
            f"a pool of {settings.pool_size} does not fit into {len(train)} training examples "
            f"({most} of them excluded for a query): {remedy}"
        )
    size = settings.pool_size
    if settings.sampler == "rand":
        return [_random_rows(q, len(train), size, f, settings.seed) for q, f in zip(queries, forbidden, strict=True)]
    if settings.sampler == "text-sim":
        return list(nearest_rows(query_embeddings.question, train_embeddings.question, size, forbidden))
    if settings.sampler == "img-sim":
        return list(nearest_rows(query_embeddings.image, train_embeddings.image, size, forbidden))
    pools = []
    near = zip(
        queries,
        forbidden,
        nearest_rows(query_embeddings.image, train_embeddings.image, size, forbidden),
        nearest_rows(query_embeddings.question, train_embeddings.question, size, forbidden),
        strict=True,
    )
    for query, rows, by_image, by_text in near:  # half at random, a quarter by image, the rest by text
        pool = _random_rows(query, len(train), size // 2, rows, settings.seed)
        pool += [row for row in by_image if row not in pool][: size // 4]
        pool += [row for row in by_text if row not in pool][: size - len(pool)]
        pools.append(pool)
    return pools


def _forbidden(query: Example, train: Split, exclude_same_image: bool) -> frozenset[int]:
    rows = set(train.rows_of_image(query.image)) if exclude_same_image else set()
    if query.question_id in train.row and train.by_id(query.question_id) == query:
        rows.add(train.row[query.question_id])
    return frozenset(rows)


def _random_rows(query: Example, total: int, size: int, forbidden: frozenset[int], seed: int) -> list[int]:
    rng = random.Random(f"pool-{seed}-{query.question_id}")
    drawn = rng.sample(range(total), min(total, size + len(forbidden)))
    return [row for row in drawn if row not in forbidden][:size]


def nearest_rows(
    queries: Tensor, candidates: Tensor, count: int, forbidden: Sequence[frozenset[int]], chunk: int = 256
) -> Iterator[list[int]]:
    """For each query (Q, d) the `count` rows of `candidates` (N, d) of highest dot product, best first.

    Exact; ties go to the lower row. Memory is bounded by `chunk` × N similarities.
    """
    for at in range(0, len(queries), chunk):
        similar = queries[at : at + chunk] @ candidates.T  # (chunk, N)
        for b, rows in enumerate(forbidden[at : at + chunk]):
            similar[b, list(rows)] = -torch.inf
        # topk leaves open which of equal rows it takes: it gives the least similarity that counts, no more.
        least = similar.topk(min(count, similar.shape[1]), dim=1).values.amin(dim=1)
        for row, bound in zip(similar, least, strict=True):
            near = ((row >= bound) & (row > -torch.inf)).nonzero().squeeze(1)
            yield near[row[near].argsort(descending=True, stable=True)[:count]].tolist()
