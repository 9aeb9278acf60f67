import random
from collections.abc import Sequence
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
from icdsel.retrieval import lever_plus_pools as samplers
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.neighbours import nearest_rows
from icdsel.retrieval.pools import Pools, build_pools
from icdsel.settings.tables import DataSettings

SAMPLERS = ("rand", "text-sim", "img-sim", "mix")


def example(question_id: int, image: int) -> Example:
    return Example(question_id, image, Path(f"{image}.png"), f"question {question_id}", "yes", ("yes",))


def grid(rows: int, seed: int, width: int = 3) -> Tensor:
    """Vectors of small integers: their dot products are exact, and many are equal."""
    return torch.randint(-2, 3, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def brute_force(query: Tensor, candidates: Tensor, count: int, forbidden: frozenset[int]) -> list[int]:
    allowed = [row for row in range(len(candidates)) if row not in forbidden]
    similar = (candidates.double() @ query.double()).tolist()
    return sorted(allowed, key=lambda row: (-similar[row], row))[:count]


def made(
    queries: Sequence[Example], train: Split, own: Embeddings, others: Embeddings, settings: DataSettings, **more: Any
) -> Pools:
    return build_pools(queries, train, lambda: (own, others), settings, **more)


class Case:
    """A training split in which images recur, and queries from it and from elsewhere."""

    def __init__(self, size: int, images: int, own: int, fresh: int, seed: int) -> None:
        rng = random.Random(seed)
        ids = rng.sample(range(10 * size), size)
        self.train = Split("train", [example(i, rng.randrange(images)) for i in ids])
        self.rows = rng.sample(range(size), min(own, size))
        self.queries = [self.train[row] for row in self.rows]
        # Queries of another split: their question_ids may be those of training examples, their images too.
        self.queries += [example(rng.randrange(10 * size), rng.randrange(images + 2)) for _ in range(fresh)]
        self.train_embeddings = Embeddings(grid(size, seed), grid(size, seed + 1))
        new = Embeddings(grid(fresh, seed + 2), grid(fresh, seed + 3))
        self.query_embeddings = Embeddings(
            torch.cat([self.train_embeddings.image[self.rows], new.image]),
            torch.cat([self.train_embeddings.question[self.rows], new.question]),
        )

    def pools(self, settings: DataSettings, chosen: Sequence[int] | None = None) -> list[list[int]]:
        chosen = range(len(self.queries)) if chosen is None else chosen
        own = Embeddings(self.query_embeddings.image[list(chosen)], self.query_embeddings.question[list(chosen)])
        return list(made([self.queries[q] for q in chosen], self.train, own, self.train_embeddings, settings))

    def forbidden(self, query: Example, same_image: bool) -> frozenset[int]:
        rows = {row for row, e in enumerate(self.train) if e == query}
        if same_image:
            rows |= {row for row, e in enumerate(self.train) if e.image == query.image}
        return frozenset(rows)

    def largest(self, same_image: bool) -> int:
        return len(self.train) - max(len(self.forbidden(query, same_image)) for query in self.queries)


cases = st.builds(
    Case,
    size=st.integers(6, 60),
    images=st.integers(2, 40),
    own=st.integers(1, 5),
    fresh=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)


@given(case=cases, sampler=st.sampled_from(SAMPLERS), same_image=st.booleans(), share=st.floats(0.01, 1))
@settings(deadline=None)
def test_a_pool_is_whole_and_never_holds_its_query(case: Case, sampler: str, same_image: bool, share: float) -> None:
    largest = case.largest(same_image)
    assume(largest > 0)
    size = max(1, round(share * largest))
    told = DataSettings(sampler=sampler, pool_size=size, exclude_same_image=same_image)
    pools = case.pools(told)
    for query, pool in zip(case.queries, pools, strict=True):
        assert len(pool) == size
        assert len(set(pool)) == size
        assert not set(pool) & case.forbidden(query, same_image)
        assert all(0 <= row < len(case.train) for row in pool)


@given(case=cases, sampler=st.sampled_from(SAMPLERS), data=st.data())
@settings(deadline=None)
def test_a_pool_does_not_depend_on_the_other_queries(case: Case, sampler: str, data: st.DataObject) -> None:
    assume(case.largest(True) > 0)
    told = DataSettings(sampler=sampler, pool_size=case.largest(True))
    together = case.pools(told)
    chosen = data.draw(st.lists(st.sampled_from(range(len(case.queries))), min_size=1, unique=True))
    assert case.pools(told, chosen) == [together[q] for q in chosen]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_image_is_allowed_where_the_setting_is_off(sampler: str) -> None:
    # Ten examples of one image. Without the exclusion a pool of nine is exactly the other nine; with it there
    # is nothing left to choose from.
    train = Split("train", [example(i, 0) for i in range(10)])
    embeddings = Embeddings(grid(10, 0), grid(10, 1))
    own = Embeddings(embeddings.image[3:4], embeddings.question[3:4])
    off = DataSettings(sampler=sampler, pool_size=9, exclude_same_image=False)
    (pool,) = made([train[3]], train, own, embeddings, off)
    assert sorted(pool) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(DataError):
        made([train[3]], train, own, embeddings, off.model_copy(update={"exclude_same_image": True}))


def test_an_example_of_another_split_with_a_training_id_excludes_nothing() -> None:
    train = Split("train", [example(i, i) for i in range(10)])
    embeddings = Embeddings(grid(10, 0), grid(10, 1))
    stranger = example(3, 99)
    (pool,) = made([stranger], train, embeddings, embeddings, DataSettings(pool_size=10))
    assert sorted(pool) == list(range(10))


def test_a_random_pool_depends_on_the_seed_and_on_the_question() -> None:
    train = Split("train", [example(i, i) for i in range(500)])
    empty = Embeddings(torch.zeros(500, 1), torch.zeros(500, 1))

    def pool(question_id: int, seed: int) -> list[int]:
        return made([example(question_id, 1000)], train, empty, empty, DataSettings(seed=seed))[0]

    assert pool(7, 42) == pool(7, 42)
    # 64 of 500: that two draws agree in a place has a chance of 1/500, that they are equal next to none.
    assert sum(a == b for a, b in zip(pool(7, 42), pool(7, 43), strict=True)) < 8
    assert sum(a == b for a, b in zip(pool(7, 42), pool(8, 42), strict=True)) < 8


def test_random_pools_reach_all_of_the_split_evenly() -> None:
    # 400 pools of 20 out of 100: an example is in 80 of them on average, with a standard deviation of
    # sqrt(400 · 0.2 · 0.8) = 8. The extremes of 100 such counts lie within 4.5 deviations.
    train = Split("train", [example(i, i) for i in range(100)])
    queries = [example(1000 + i, 1000 + i) for i in range(400)]
    empty = Embeddings(torch.zeros(400, 1), torch.zeros(400, 1))
    counts = [0] * 100
    for pool in made(queries, train, empty, empty, DataSettings(pool_size=20)):
        for row in pool:
            counts[row] += 1
    assert min(counts) > 80 - 36 and max(counts) < 80 + 36


@given(case=cases, sampler=st.sampled_from(SAMPLERS), same_image=st.booleans())
@settings(deadline=None)
def test_too_large_a_pool_names_the_largest_that_fits(case: Case, sampler: str, same_image: bool) -> None:
    largest = case.largest(same_image)
    assume(largest > 0)
    told = {"sampler": sampler, "exclude_same_image": same_image}
    with pytest.raises(DataError, match=rf"--pool-size {largest} or less"):
        case.pools(DataSettings(pool_size=largest + 1, **told))
    assert {len(pool) for pool in case.pools(DataSettings(pool_size=largest, **told))} == {largest}


def test_a_mixed_pool_is_half_random_a_quarter_by_image_a_quarter_by_question() -> None:
    case = Case(size=400, images=400, own=10, fresh=10, seed=5)
    random_half = case.pools(DataSettings(sampler="rand", pool_size=32))
    for q, pool in enumerate(case.pools(DataSettings(sampler="mix"))):
        hidden = case.forbidden(case.queries[q], same_image=True)
        assert pool[:32] == random_half[q]
        # The nearest that are not in the pool already, so that none of the 64 is there twice.
        by_image = brute_force(
            case.query_embeddings.image[q], case.train_embeddings.image, 16, hidden | frozenset(pool[:32])
        )
        assert pool[32:48] == by_image
        by_question = brute_force(
            case.query_embeddings.question[q], case.train_embeddings.question, 16, hidden | frozenset(pool[:48])
        )
        assert pool[48:] == by_question


@pytest.mark.parametrize(("sampler", "kind"), [("img-sim", "image"), ("text-sim", "question")])
def test_a_similarity_pool_holds_the_nearest_best_first(sampler: str, kind: str) -> None:
    case = Case(size=200, images=60, own=10, fresh=10, seed=6)
    for q, pool in enumerate(case.pools(DataSettings(sampler=sampler, pool_size=30))):
        hidden = case.forbidden(case.queries[q], same_image=True)
        assert pool == brute_force(case.query_embeddings.of(kind)[q], case.train_embeddings.of(kind), 30, hidden)


@given(
    size=st.integers(1, 80),
    queries=st.integers(1, 7),
    count=st.integers(1, 90),
    chunk=st.integers(1, 8),
    width=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
@settings(deadline=None)
def test_nearest_rows_equals_brute_force_with_ties_to_the_lower_row(
    size: int, queries: int, count: int, chunk: int, width: int, seed: int, data: st.DataObject
) -> None:
    asked, candidates = grid(queries, seed, width), grid(size, seed + 1, width)
    hidden = [data.draw(st.frozensets(st.integers(0, size - 1), max_size=5)) for _ in range(queries)]
    found = list(nearest_rows(asked, candidates, count, hidden, chunk))
    assert found == [brute_force(q, candidates, count, rows) for q, rows in zip(asked, hidden, strict=True)]


def test_of_many_equal_neighbours_the_lowest_rows_are_taken() -> None:
    # A few templates make all the questions, as in the bundled world: thousands of rows are equally near.
    candidates = torch.eye(4)[torch.arange(2000) % 4]
    (found,) = nearest_rows(torch.eye(4)[1:2], candidates, 10, [frozenset({1, 9})])
    assert found == [5, 13, 17, 21, 25, 29, 33, 37, 41, 45]


# --- the whole split as one pool --------------------------------------------------------------------------


@given(case=cases, same_image=st.booleans())
@settings(deadline=None)
def test_the_whole_split_is_everyones_pool_but_for_what_is_forbidden(case: Case, same_image: bool) -> None:
    assume(case.largest(same_image) > 0)
    told = DataSettings(pool_size="all", exclude_same_image=same_image)
    pools = made(case.queries, case.train, case.query_embeddings, case.train_embeddings, told)
    assert pools.shared
    rows, mask = pools.batch(0, len(pools))
    assert rows.tolist() == [list(range(len(case.train)))]
    for query, pool, allowed in zip(case.queries, pools, mask, strict=True):
        assert set(range(len(case.train))) - set(pool) == case.forbidden(query, same_image)
        assert allowed.nonzero().flatten().tolist() == pool


def test_broken_images_are_in_no_pool() -> None:
    train = Split("train", [example(i, i) for i in range(30)])
    embeddings = Embeddings(grid(30, 0), grid(30, 1))
    own = Embeddings(embeddings.image[:5], embeddings.question[:5])
    for size in (20, "all"):
        for sampler in SAMPLERS:
            told = DataSettings(sampler=sampler, pool_size=size)
            pools = made(train[:5], train, own, embeddings, told, broken=frozenset(range(20, 29)))
            assert not any(set(pool) & set(range(20, 29)) for pool in pools)


def test_batches_are_padded_to_the_widest_pool_and_masked() -> None:
    pools = Pools(9, [frozenset()] * 3, [[4, 2], [7], [1, 2, 3]])
    rows, mask = pools.batch(0, 2)
    assert rows.tolist() == [[4, 2], [7, 0]] and mask.tolist() == [[True, True], [True, False]]
    assert pools.batch(2, 2)[0].tolist() == [[1, 2, 3]]


# --- the original's rules ---------------------------------------------------------------------------------


def lever_plus_pools(sampler: str, count: int = 40, size: int = 300) -> tuple[list[list[int]], list[int], Embeddings]:
    train = Split("train", [example(i, i) for i in range(size)])
    vectors = Embeddings(*(torch.randn(size, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2)))
    anchors = samplers.anchors(size, count)
    own = Embeddings(vectors.image[anchors], vectors.question[anchors])
    told = DataSettings(sampler=sampler, pool_rules="lever-plus", exclude_same_image=False)
    return list(made([train[row] for row in anchors], train, own, vectors, told)), anchors, vectors


def test_the_originals_random_pools_are_taken_to_the_number() -> None:
    pools, anchors, _ = lever_plus_pools("rand")
    assert pools == samplers.random_pools(anchors, 300, 64)


def test_of_the_originals_mixed_pools_repetitions_and_the_query_go() -> None:
    pools, anchors, vectors = lever_plus_pools("mix")
    theirs = samplers.mixed_pools(anchors, vectors.question, vectors.image, 64)
    assert any(len(pool) < 64 for pool in pools)  # 64 of 300 at random and by likeness: some coincide
    for query, pool, original in zip(anchors, pools, theirs, strict=True):
        assert pool == [row for row in dict.fromkeys(original) if row != query]


def test_held_out_queries_get_our_pools_under_the_originals_rules() -> None:
    train = Split("train", [example(i, i) for i in range(300)])
    empty = Embeddings(torch.zeros(300, 1), torch.zeros(300, 1))
    stranger = [example(1000, 1000)]
    theirs, ours = (made(stranger, train, empty, empty, DataSettings(pool_rules=r)) for r in ("lever-plus", "icdsel"))
    assert list(theirs) == list(ours)
