import hashlib
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icdsel.errors import DataError
from icdsel.retrieval.lever_plus_pools import anchors, random_pools, similarity_pools

OKVQA, VQAV2 = 9009, 443757  # training examples


def sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# The expected numbers come from Lever-Plus's own code, run on CPython 3.11.


def test_anchors_equal_those_of_lever_plus() -> None:
    drawn = anchors(OKVQA, 800)
    assert drawn[:8] == [1824, 409, 4506, 4012, 3657, 2286, 1679, 8935]
    assert sha(drawn) == "3a88f96ca23fd101"
    assert anchors(VQAV2, 5000)[:5] == [335243, 58369, 13112, 388786, 144194]


def test_random_pools_equal_those_of_lever_plus() -> None:
    drawn = anchors(OKVQA, 800)
    pools = random_pools(drawn, OKVQA, 64)
    assert pools[0][:8] == [2803, 8751, 4010, 2677, 7573, 6216, 4422, 3598]
    assert sha({str(anchor): pool for anchor, pool in zip(drawn, pools, strict=True)}) == "b3fe4de5b3220523"


def test_a_pool_that_holds_its_anchor_is_drawn_again_as_a_whole() -> None:
    # Of 20 rows 15 are drawn: three of four pools hold the anchor at first.
    pools = random_pools(range(20), 20, 15, seed=3)
    rng, expected = random.Random(3), []
    for anchor in range(20):
        draws = iter(lambda: rng.sample(range(20), 15), None)
        expected.append(next(pool for pool in draws if anchor not in pool))
    assert pools == expected


def test_draws_do_not_touch_the_global_generator() -> None:
    random.seed(1)
    state = random.getstate()
    random_pools(anchors(50, 5), 50, 8)
    assert random.getstate() == state


# On the unit circle the inner product falls with the angle: 0°, 10°, 25°, 45°, 70°, 100°.
ANGLES = torch.tensor([0.0, 10.0, 25.0, 45.0, 70.0, 100.0]).deg2rad()
CIRCLE = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def test_similarity_pools_hold_the_nearest_rows_best_first() -> None:
    assert similarity_pools([0, 3, 5], CIRCLE, 3) == [[1, 2, 3], [2, 4, 1], [4, 3, 2]]
    assert similarity_pools([2], CIRCLE.half(), 2) == [[1, 3]]


def test_the_first_row_is_dropped_whatever_it_is() -> None:
    # Row 4 repeats row 1, so searching for row 4 finds row 1 first and leaves row 4 in its own pool.
    features = CIRCLE[[0, 1, 2, 5, 1]]
    assert similarity_pools([1, 4], features, 2) == [[4, 0], [4, 0]]
    # Unless features are normalised, the anchor need not come first at all.
    assert similarity_pools([1], torch.tensor([[5.0], [1.0], [3.0]]), 2) == [[2, 1]]


def test_similarity_pools_equal_a_full_sort() -> None:
    features = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = (features.double() @ features.double().T).argsort(dim=1, descending=True)[:, 1:8]
    assert similarity_pools(range(60), features, 7) == expected.tolist()


@given(st.integers(2, 40), st.data())
def test_random_pools_hold_other_rows_once(total: int, data: st.DataObject) -> None:
    queries = anchors(total, data.draw(st.integers(0, total)))
    size = data.draw(st.integers(0, total - 1).filter(lambda size: size <= total // 2))
    for anchor, pool in zip(queries, random_pools(queries, total, size), strict=True):
        assert len(pool) == len(set(pool)) == size
        assert anchor not in pool and set(pool) <= set(range(total))


def test_too_few_examples_are_an_error_with_the_flag_to_use() -> None:
    with pytest.raises(DataError, match="--queries 5 or less"):
        anchors(5, 6)
    for pools in (
        lambda: random_pools([0], 5, 5),  # it would hold the anchor for ever
        lambda: similarity_pools([0], CIRCLE[:5], 5),
    ):
        with pytest.raises(DataError, match=r"--pool-size 4 or less"):
            pools()
