"""Lever-Plus's anchors (its training queries) and candidate pools, to the number (specification §3).

Rows are ranks by question_id in the training split. Everything it draws comes from Python's generator, seeded
anew for each list. What it found with faiss is found exactly here; of equal similarities the lower row comes
first, where faiss leaves the order open.
"""

import random
from collections.abc import Sequence

from torch import Tensor

from icdsel.errors import DataError
from icdsel.retrieval.neighbours import nearest_rows


def anchors(total: int, count: int, seed: int = 42) -> list[int]:
    """The `count` queries that are drawn from `total` training examples.

    Raises:
        DataError: There are fewer training examples than that.
    """
    if count > total:
        raise DataError(
            f"{count} queries cannot be drawn from {total} training examples: use --queries {total} or less"
        )
    return random.Random(seed).sample(range(total), count)


def random_pools(anchors: Sequence[int], total: int, size: int, seed: int = 42) -> list[list[int]]:
    """A random pool for each anchor; one that holds its anchor is drawn anew.

    The pools depend on all anchors before them, since one generator draws them all.

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
    """The rows most similar to each anchor by inner product, best first.

    The first of `size` + 1 rows is dropped, as if it were sure to be the anchor. It is not: where other rows
    have the same features (in VQAv2 some five questions share an image), the anchor can stay in its own pool.

    Args:
        anchors: Rows of the queries.
        features: [N, d], of the whole training split; the original's are normalised CLIP ViT-L/14 features.
        size: Rows in a pool.

    Raises:
        DataError: There are too few training examples.
    """
    _require_room(len(features), size)
    features = features.float()
    nothing: list[frozenset[int]] = [frozenset()] * len(anchors)
    return [rows[1:] for rows in nearest_rows(features[list(anchors)], features, size + 1, nothing)]


def mixed_pools(
    anchors: Sequence[int], text_features: Tensor, image_features: Tensor, size: int, seed: int = 42
) -> list[list[int]]:
    """Half a random pool, then a quarter by image, then the rest by text: 32, 16 and 16 of 64.

    The random half is a draw of its own, not the start of `random_pools` of the whole size. A row may stand in
    a pool more than once.

    Args:
        anchors: Rows of the queries.
        text_features: [N, d], of the questions.
        image_features: [N, d], of the images.
        size: Rows in a pool.
        seed: Of the random half.

    Raises:
        DataError: There are too few training examples.
    """
    # In the original's order of ratios, random 0.5, text 0.25, image 0.25, the last takes what rounding leaves.
    drawn, by_text = size // 2, size // 4
    parts = zip(
        random_pools(anchors, len(text_features), drawn, seed),
        similarity_pools(anchors, image_features, size - drawn - by_text),
        similarity_pools(anchors, text_features, by_text),
        strict=True,
    )
    return [rand + image + text for rand, image, text in parts]


def _require_room(total: int, size: int) -> None:
    if size >= total:
        raise DataError(
            f"a pool of {size} does not fit into {total} training examples, one of which is the query: "
            f"use --pool-size {total - 1} or less"
        )
