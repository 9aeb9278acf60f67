"""Each sampler by itself, by icdsel's rules and by Lever-Plus's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.data.datasets import Split
from icdsel.errors import SettingsError
from icdsel.records import Example
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.lever_plus_pools import random_pools
from icdsel.retrieval.pool_rules import POOL_RULES
from icdsel.retrieval.pools import build_pools
from icdsel.retrieval.samplers import SAMPLERS, Draws, Kind, Sampler
from icdsel.settings.tables import DataSettings

# Directions, in degrees, of the rows' image and question embeddings. Two queries: row 2, whose image row 7 shows too,
# and an example of another split.
IMAGE = (40, 10, 0, 70, 20, 20, 90, 5)
QUESTION = (5, 80, 0, 15, 60, 30, 15, 50)
OTHER_IMAGE, OTHER_QUESTION = 90, 60


def example(question_id: int, image: int) -> Example:
    return Example(question_id, image, Path(f"{image}.png"), "?", "yes", ("yes",))


TRAIN = Split("train", [example(100 + row, 2 if row == 7 else row) for row in range(8)])
QUERIES = (TRAIN[2], example(100, 99))  # the second has the question_id of another split's example


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def pools(
    sampler: str,
    size: int,
    queries: Sequence[Example] = QUERIES,
    broken: frozenset[int] = frozenset(),
    similar: Callable[[], tuple[Embeddings, Embeddings]] | None = None,
    **settings: Any,
) -> list[list[int]]:
    def embeddings() -> tuple[Embeddings, Embeddings]:
        image, question = directions(IMAGE[2], OTHER_IMAGE), directions(QUESTION[2], OTHER_QUESTION)
        own = Embeddings(image[: len(queries)], question[: len(queries)])
        return own, Embeddings(directions(*IMAGE), directions(*QUESTION))

    similar = similar or embeddings
    return list(build_pools(queries, TRAIN, similar, DataSettings(sampler=sampler, pool_size=size, **settings), broken))


class FixedDraws:
    """Draws known in advance, for one query."""

    def __init__(self, random: list[int], image: list[int], question: list[int]) -> None:
        self.rows: dict[str, list[int]] = {"random": random, "image": image, "question": question}

    def random(self, count: int) -> list[list[int]]:
        return [self.rows["random"][:count]]

    def nearest(self, kind: Kind, count: int) -> list[list[int]]:
        return [self.rows[kind][:count]]


# --- rand -------------------------------------------------------------------------------------------------


def test_rand_draws_from_everything_that_the_query_may_get() -> None:
    for seed in range(20):
        own, other = pools("rand", 6, seed=seed)
        assert set(own) == {0, 1, 3, 4, 5, 6}
        assert len(set(other)) == len(other) == 6
    assert len({tuple(pools("rand", 6, seed=seed)[0]) for seed in range(20)}) > 10  # in any order


def test_rand_leaves_out_broken_images() -> None:
    assert set(pools("rand", 5, broken=frozenset({4}))[0]) == {0, 1, 3, 5, 6}


def test_rand_may_draw_the_same_image_if_allowed() -> None:
    assert set(pools("rand", 7, exclude_same_image=False)[0]) == {0, 1, 3, 4, 5, 6, 7}


def test_rand_computes_no_embeddings() -> None:
    def no_embeddings() -> tuple[Embeddings, Embeddings]:
        raise AssertionError("embeddings are not needed")

    for rules in POOL_RULES:
        assert pools("rand", 3, similar=no_embeddings, pool_rules=rules)
    assert [name for name, sampler in SAMPLERS.items() if not sampler.needs_embeddings] == ["rand"]


def test_rand_draws_lever_plus_s_pools_by_its_rules() -> None:
    (own,) = pools("rand", 4, QUERIES[:1], pool_rules="lever-plus", exclude_same_image=False, seed=3)
    assert own == random_pools([2], 8, 4, seed=3)[0]


# --- text-sim and img-sim ---------------------------------------------------------------------------------

# The whole order for both queries, ties (rows 4 and 5 by image, 3 and 6 by question) to the lower row.
BY_IMAGE = [1, 4, 5, 0, 3, 6], [6, 3, 0, 4, 5, 1, 7, 2]
BY_QUESTION = [0, 3, 6, 5, 4, 1], [4, 7, 1, 5, 3, 6, 0, 2]


@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize(("sampler", "order"), [("img-sim", BY_IMAGE), ("text-sim", BY_QUESTION)])
def test_similarity_samplers_take_the_nearest_best_first(
    sampler: str, order: tuple[list[int], list[int]], size: int
) -> None:
    assert pools(sampler, size) == [rows[:size] for rows in order]


def test_similarity_samplers_leave_out_broken_images() -> None:
    assert pools("img-sim", 3, broken=frozenset({1, 3})) == [[4, 5, 0], [6, 0, 4]]
    assert pools("text-sim", 3, broken=frozenset({0, 4})) == [[3, 6, 5], [7, 1, 5]]


def test_similarity_samplers_take_the_same_image_if_allowed_but_never_the_query() -> None:
    assert pools("img-sim", 7, exclude_same_image=False)[0] == [7, 1, 4, 5, 0, 3, 6]
    assert pools("text-sim", 7, exclude_same_image=False)[0] == [0, 3, 6, 5, 7, 4, 1]


def test_similarity_samplers_follow_lever_plus_by_its_rules() -> None:
    # Lever-Plus takes the nearest rows but the first, which is the query itself.
    one = QUERIES[:1]
    settings = {"pool_rules": "lever-plus", "exclude_same_image": False}
    assert pools("img-sim", 3, one, **settings) == [[7, 1, 4]]
    assert pools("text-sim", 3, one, **settings) == [[0, 3, 6]]
    # What must not be in a pool is removed, not replaced.
    assert pools("img-sim", 3, one, pool_rules="lever-plus") == [[1, 4]]
    assert pools("text-sim", 3, one, frozenset({3}), **settings) == [[0, 6]]


# --- mix --------------------------------------------------------------------------------------------------


def test_mix_is_half_random_a_quarter_by_image_and_the_rest_by_question() -> None:
    draws = FixedDraws([10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35])
    mix = SAMPLERS["mix"]
    assert list(mix.pools(draws, 8)) == [[10, 11, 12, 13, 20, 21, 30, 31]]
    assert list(mix.pools(draws, 7)) == [[10, 11, 12, 20, 30, 31, 32]]


def test_mix_replaces_what_a_pool_holds_already_by_the_next_nearest() -> None:
    draws = FixedDraws([7, 1, 3, 2], [1, 4, 2, 5, 0, 6, 8, 9], [4, 7, 0, 5, 6, 8, 9, 1])
    (pool,) = SAMPLERS["mix"].pools(draws, 8)
    assert pool == [7, 1, 3, 2, 4, 5, 0, 6]


def test_mix_combines_the_draws_of_the_other_samplers() -> None:
    own, other = pools("mix", 4, seed=5)
    own_random, other_random = pools("rand", 2, seed=5)
    for pool, drawn, by_image, by_question in (
        (own, own_random, BY_IMAGE[0], BY_QUESTION[0]),
        (other, other_random, BY_IMAGE[1], BY_QUESTION[1]),
    ):
        near = next(row for row in by_image if row not in drawn)
        assert pool == [*drawn, near, next(row for row in by_question if row not in (*drawn, near))]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (8, [10, 11, 12, 13, 20, 21, 30, 31]),
        (11, [10, 11, 12, 13, 14, 20, 21, 22, 23, 30, 31]),  # by image what rounding leaves
        (1, [20]),
    ],
)
def test_mix_has_lever_plus_s_parts_by_its_rules(size: int, expected: list[int]) -> None:
    draws = FixedDraws([10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35])
    mix = SAMPLERS["mix"].lever_plus_pools
    assert mix is not None
    assert list(mix(draws, size)) == [expected]
    assert list(mix(FixedDraws([7, 1], [1, 4], [1, 0]), 4)) == [[7, 1, 1, 1]]  # rows may repeat


def test_mix_removes_repeated_rows_and_the_query_by_lever_plus_s_rules() -> None:
    # Of 7 rows 3 are random, 3 by image and 1 by question. Seed 1 draws one of the nearest by image.
    (drawn,) = random_pools([2], 8, 3, seed=1)
    assert set(drawn) & {7, 1, 4}
    (pool,) = pools("mix", 7, QUERIES[:1], pool_rules="lever-plus", exclude_same_image=False, seed=1)
    assert pool == list(dict.fromkeys([*drawn, 7, 1, 4, 0]))


# --- both rules, and other samplers -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_queries_of_other_splits_get_icdsel_s_pools_by_lever_plus_s_rules(sampler: str) -> None:
    assert pools(sampler, 4, pool_rules="lever-plus") == pools(sampler, 4, pool_rules="icdsel")


def test_an_unknown_sampler_is_an_error_that_names_the_others() -> None:
    with pytest.raises(SettingsError, match="unknown sampler 'best': choose one of rand, text-sim, img-sim, mix"):
        pools("best", 4)


def near_and_far(draws: Draws, size: int) -> Iterator[list[int]]:
    """The example in the docstring of `SAMPLERS`."""
    for near, far in zip(draws.nearest("both", size), draws.random(size), strict=True):
        yield list(dict.fromkeys(near[: size // 2] + far))[:size]


@pytest.fixture
def added() -> Iterator[None]:
    SAMPLERS.add(Sampler("near-and-far", near_and_far))
    yield
    del SAMPLERS["near-and-far"]


@pytest.mark.parametrize("rules", POOL_RULES)
def test_an_added_sampler_draws_by_both_rules(added: None, rules: str) -> None:
    (pool,) = pools("near-and-far", 4, QUERIES[:1], pool_rules=rules)
    assert len(set(pool)) == len(pool) and not {2, 7} & set(pool)
    if rules == "icdsel":
        # Image and question together point halfway between the two: at 22.5°, 25° and 40° for rows 0, 5 and 4.
        assert pool[:2] == [0, 5]
        assert len(pool) == 4


@pytest.mark.parametrize("rules", POOL_RULES)
def test_a_sampler_that_uses_similarity_without_saying_so_is_rejected(
    monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    """The inputs of its results would lack the encoder that they depend on."""
    monkeypatch.setitem(SAMPLERS, "sneaky", Sampler("sneaky", near_and_far, needs_embeddings=False))
    with pytest.raises(ValueError, match=r"sampler sneaky uses similarity .*needs_embeddings=True"):
        pools("sneaky", 4, QUERIES[:1], pool_rules=rules)
