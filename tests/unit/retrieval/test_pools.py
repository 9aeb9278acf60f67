import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from icdsel.data.datasets import Split
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.pools import Pools, build_pools
from icdsel.retrieval.samplers import SAMPLERS, Sampler
from icdsel.settings.tables import DataSettings


def example(question_id: int, image: int) -> Example:
    return Example(question_id, image, Path(f"{image}.png"), f"question {question_id}", "yes", ("yes",))


def small_integers(rows: int, seed: int, width: int = 3) -> Tensor:
    """Vectors whose dot products are exact, and often equal."""
    return torch.randint(-2, 3, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def build(
    queries: Sequence[Example], train: Split, own: Embeddings, others: Embeddings, settings: DataSettings, **more: Any
) -> Pools:
    return build_pools(queries, train, lambda: (own, others), settings, **more)


class Case:
    """A training split in which images recur, with queries from it and from another split."""

    def __init__(self, size: int, images: int, own: int, others: int, seed: int) -> None:
        rng = random.Random(seed)
        ids = rng.sample(range(10 * size), size)
        self.train = Split("train", [example(i, rng.randrange(images)) for i in ids])
        self.rows = rng.sample(range(size), min(own, size))
        self.queries = [self.train[row] for row in self.rows]
        # Queries of another split: their question_ids may be those of training examples, their images too.
        self.queries += [example(rng.randrange(10 * size), rng.randrange(images + 2)) for _ in range(others)]
        self.train_embeddings = Embeddings(small_integers(size, seed), small_integers(size, seed + 1))
        new = Embeddings(small_integers(others, seed + 2), small_integers(others, seed + 3))
        self.query_embeddings = Embeddings(
            torch.cat([self.train_embeddings.image[self.rows], new.image]),
            torch.cat([self.train_embeddings.question[self.rows], new.question]),
        )

    def pools(self, settings: DataSettings, chosen: Sequence[int] | None = None) -> list[list[int]]:
        chosen = range(len(self.queries)) if chosen is None else chosen
        own = Embeddings(self.query_embeddings.image[list(chosen)], self.query_embeddings.question[list(chosen)])
        return list(build([self.queries[q] for q in chosen], self.train, own, self.train_embeddings, settings))

    def excluded(self, query: Example, same_image: bool) -> frozenset[int]:
        rows = {row for row, e in enumerate(self.train) if e == query}
        if same_image:
            rows |= {row for row, e in enumerate(self.train) if e.image == query.image}
        return frozenset(rows)

    def largest(self, same_image: bool) -> int:
        return len(self.train) - max(len(self.excluded(query, same_image)) for query in self.queries)


cases = st.builds(
    Case,
    size=st.integers(6, 60),
    images=st.integers(2, 40),
    own=st.integers(1, 5),
    others=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)


@given(case=cases, sampler=st.sampled_from(list(SAMPLERS)), same_image=st.booleans(), share=st.floats(0.01, 1))
@settings(deadline=None)
def test_a_pool_is_full_and_never_holds_its_query(case: Case, sampler: str, same_image: bool, share: float) -> None:
    largest = case.largest(same_image)
    assume(largest > 0)
    size = max(1, round(share * largest))
    drawn_by = DataSettings(sampler=sampler, pool_size=size, exclude_same_image=same_image)
    pools = case.pools(drawn_by)
    for query, pool in zip(case.queries, pools, strict=True):
        assert len(pool) == size
        assert len(set(pool)) == size
        assert not set(pool) & case.excluded(query, same_image)
        assert all(0 <= row < len(case.train) for row in pool)


@given(case=cases, sampler=st.sampled_from(list(SAMPLERS)), data=st.data())
@settings(deadline=None)
def test_a_pool_does_not_depend_on_the_other_queries(case: Case, sampler: str, data: st.DataObject) -> None:
    assume(case.largest(True) > 0)
    drawn_by = DataSettings(sampler=sampler, pool_size=case.largest(True))
    together = case.pools(drawn_by)
    chosen = data.draw(st.lists(st.sampled_from(range(len(case.queries))), min_size=1, unique=True))
    assert case.pools(drawn_by, chosen) == [together[q] for q in chosen]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_image_is_allowed_if_the_setting_is_off(sampler: str) -> None:
    # Ten examples of one image: without the exclusion a pool of nine is the other nine, with it nothing is left.
    train = Split("train", [example(i, 0) for i in range(10)])
    embeddings = Embeddings(small_integers(10, 0), small_integers(10, 1))
    own = Embeddings(embeddings.image[3:4], embeddings.question[3:4])
    off = DataSettings(sampler=sampler, pool_size=9, exclude_same_image=False)
    (pool,) = build([train[3]], train, own, embeddings, off)
    assert sorted(pool) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(DataError):
        build([train[3]], train, own, embeddings, off.model_copy(update={"exclude_same_image": True}))


def test_a_query_of_another_split_excludes_nothing_even_with_the_question_id_of_a_training_example() -> None:
    train = Split("train", [example(i, i) for i in range(10)])
    embeddings = Embeddings(small_integers(10, 0), small_integers(10, 1))
    of_another_split = example(3, 99)
    (pool,) = build([of_another_split], train, embeddings, embeddings, DataSettings(pool_size=10))
    assert sorted(pool) == list(range(10))


def test_a_random_pool_depends_on_the_seed_and_on_the_question() -> None:
    train = Split("train", [example(i, i) for i in range(500)])
    empty = Embeddings(torch.zeros(500, 1), torch.zeros(500, 1))

    def pool(question_id: int, seed: int) -> list[int]:
        return build([example(question_id, 1000)], train, empty, empty, DataSettings(seed=seed))[0]

    assert pool(7, 42) == pool(7, 42)
    # 64 of 500: two draws agree in a given place with probability 1/500.
    assert sum(a == b for a, b in zip(pool(7, 42), pool(7, 43), strict=True)) < 8
    assert sum(a == b for a, b in zip(pool(7, 42), pool(8, 42), strict=True)) < 8


def test_random_pools_are_uniform_over_the_split() -> None:
    # 400 pools of 20 from 100: an example is in 80 of them on average, with a standard deviation of
    # sqrt(400 · 0.2 · 0.8) = 8. The extremes of 100 such counts are within 4.5 deviations.
    train = Split("train", [example(i, i) for i in range(100)])
    queries = [example(1000 + i, 1000 + i) for i in range(400)]
    empty = Embeddings(torch.zeros(400, 1), torch.zeros(400, 1))
    counts = [0] * 100
    for pool in build(queries, train, empty, empty, DataSettings(pool_size=20)):
        for row in pool:
            counts[row] += 1
    assert min(counts) > 80 - 36 and max(counts) < 80 + 36


@given(case=cases, sampler=st.sampled_from(list(SAMPLERS)), same_image=st.booleans())
@settings(deadline=None)
def test_the_error_of_too_large_a_pool_names_the_largest_that_fits(case: Case, sampler: str, same_image: bool) -> None:
    largest = case.largest(same_image)
    assume(largest > 0)
    drawn_by = {"sampler": sampler, "exclude_same_image": same_image}
    with pytest.raises(DataError, match=rf"--pool-size {largest} or less"):
        case.pools(DataSettings(pool_size=largest + 1, **drawn_by))
    assert {len(pool) for pool in case.pools(DataSettings(pool_size=largest, **drawn_by))} == {largest}


# --- a shared pool ----------------------------------------------------------------------------------------


@given(case=cases, same_image=st.booleans())
@settings(deadline=None)
def test_a_shared_pool_is_the_whole_split_without_what_is_excluded(case: Case, same_image: bool) -> None:
    assume(case.largest(same_image) > 0)
    drawn_by = DataSettings(pool_size="all", exclude_same_image=same_image)
    pools = build(case.queries, case.train, case.query_embeddings, case.train_embeddings, drawn_by)
    assert pools.shared
    rows, mask = pools.batch(0, len(pools))
    assert rows.tolist() == [list(range(len(case.train)))]
    for query, pool, allowed in zip(case.queries, pools, mask, strict=True):
        assert set(range(len(case.train))) - set(pool) == case.excluded(query, same_image)
        assert allowed.nonzero().flatten().tolist() == pool


def test_broken_images_are_in_no_pool() -> None:
    train = Split("train", [example(i, i) for i in range(30)])
    embeddings = Embeddings(small_integers(30, 0), small_integers(30, 1))
    own = Embeddings(embeddings.image[:5], embeddings.question[:5])
    for size in (20, "all"):
        for sampler in SAMPLERS:
            drawn_by = DataSettings(sampler=sampler, pool_size=size)
            pools = build(train[:5], train, own, embeddings, drawn_by, broken=frozenset(range(20, 29)))
            assert not any(set(pool) & set(range(20, 29)) for pool in pools)


def test_batches_are_padded_to_the_widest_pool_and_masked() -> None:
    pools = Pools(9, [frozenset()] * 3, [[4, 2], [7], [1, 2, 3]])
    rows, mask = pools.batch(0, 2)
    assert rows.tolist() == [[4, 2], [7, 0]] and mask.tolist() == [[True, True], [True, False]]
    assert pools.batch(2, 2)[0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("pools_of", "message"),
    [
        (lambda draws, size: ([pool[0]] * size for pool in draws.random(size)), "a row twice"),
        (lambda draws, size: (list(range(size)) for _ in draws.random(size)), "or the query's own"),
        (lambda draws, size: list(draws.random(size))[:1], "gave 1 pools for 2 queries"),
    ],
)
def test_a_sampler_that_breaks_its_promise_is_an_error(
    monkeypatch: pytest.MonkeyPatch, pools_of: Any, message: str
) -> None:
    monkeypatch.setitem(SAMPLERS, "broken", Sampler("broken", pools_of, needs_embeddings=False))
    case = Case(size=8, images=8, own=2, others=0, seed=0)
    case.queries = [case.train[0], case.train[1]]
    with pytest.raises(ValueError, match=message):
        case.pools(DataSettings(sampler="broken", pool_size=3, exclude_same_image=False), [0, 1])


# ---- pools that queries bring ----

BRINGING = Split("train", [example(10 * i, i) for i in range(1, 9)])


def brought(size: int | str, *pools: tuple[int, ...] | None) -> Pools:
    queries = [replace(example(1000 + q, q), pool=pool) for q, pool in enumerate(pools)]

    def no_embeddings() -> Any:
        raise AssertionError

    return build_pools(queries, BRINGING, no_embeddings, DataSettings(sampler="rand", pool_size=size))


@pytest.mark.parametrize("size", [3, 64, "all"])
def test_a_query_chooses_from_the_pool_that_it_brings_but_not_its_own_image(size: int | str) -> None:
    pools = brought(size, (30, 10, 20, 20), (80, 10))  # the second query has the image of 10
    assert list(pools) == [[0, 1, 2], [7]] and not pools.shared and pools.smallest == 1
    rows, mask = pools.batch(0, 2)
    assert rows[mask].tolist() == [0, 1, 2, 7]


def test_other_queries_have_pools_as_without_it() -> None:
    drawn = brought(3, None, None)
    assert list(brought(3, None, (40, 50))) == [drawn[0], [3, 4]]
    assert list(brought("all", None, (40, 50))) == [list(range(8)), [3, 4]]


def test_a_pool_with_an_unknown_id_is_told() -> None:
    with pytest.raises(DataError, match=r'question 1000: its pool names 7, which is .* 8 training .*"pool"'):
        brought(3, (10, 7))
