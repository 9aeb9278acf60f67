"""Lever-Plus's training queries ("anchors") and candidate pools, reproduced exactly.

Rows are ranks by question_id in the training split. All draws use Python's generator, which is seeded once per list.
Lever-Plus searches with faiss, which does not define the order of equal similarities; here the lower row comes first.
"""

import random
from collections.abc import Sequence

from torch import Tensor

from icdsel.errors import DataError
from icdsel.retrieval.neighbours import nearest_rows


def anchors(total: int, count: int, seed: int = 42) -> list[int]:
    """Draws `count` queries from `total` training examples.

    Raises:
        DataError: There are fewer than `count` training examples.
    """
    if count > total:
        raise DataError(
            f"{count} queries cannot be drawn from {total} training examples: use --queries {total} or less"
        )
    return random.Random(seed).sample(range(total), count)


def random_pools(anchors: Sequence[int], total: int, size: int, seed: int = 42) -> list[list[int]]:
    """Draws a random pool for each anchor; a pool that contains its anchor is drawn again.

    All pools are drawn from one generator, so each depends on the previous anchors.

    Raises:
        DataError: There are too few training examples.
    """
    _require_room(total, size)
    rng = random.Random(seed)
    pools = []
    for anchor in anchors:
        pool = rng.sample(range(total), size)
        while anchor in pool:
            pool = rng.sample(range(total), size)
        pools.append(pool)
    return pools


def similarity_pools(anchors: Sequence[int], features: Tensor, size: int) -> list[list[int]]:
    """Finds the rows most similar to each anchor by inner product, best first.

    Lever-Plus finds `size` + 1 rows and drops the first, assuming that it is the anchor. If other rows have the same
    features (in VQAv2 about five questions share an image), the anchor can remain in its own pool.

    Args:
        anchors: Rows of the queries.
        features: Features of the whole training split (N, d); Lever-Plus uses normalised CLIP ViT-L/14 features.
        size: Rows in a pool.

    Raises:
        DataError: There are too few training examples.
    """
    _require_room(len(features), size)
    features = features.float()
    excluded: list[frozenset[int]] = [frozenset()] * len(anchors)
    return [rows[1:] for rows in nearest_rows(features[list(anchors)], features, size + 1, excluded)]


def _require_room(total: int, size: int) -> None:
    if size >= total:
        raise DataError(
            f"a pool of {size} does not fit into {total} training examples, one of which is the query: "
            f"use --pool-size {total - 1} or less"
        )
