import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icdsel.retrieval.neighbours import nearest_in_pools, nearest_rows
from icdsel.retrieval.pools import Pools


def small_integers(rows: int, seed: int, width: int = 3) -> Tensor:
    """Vectors whose dot products are exact, and often equal."""
    return torch.randint(-2, 3, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def brute_force(query: Tensor, candidates: Tensor, count: int, rows: list[int]) -> list[int]:
    """The nearest of `rows`, ties to the first of them."""
    similar = (candidates.double() @ query.double()).tolist()
    return sorted(rows, key=lambda row: -similar[row])[:count]


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
def test_nearest_rows_equal_brute_force_with_ties_to_the_lower_row(
    size: int, queries: int, count: int, chunk: int, width: int, seed: int, data: st.DataObject
) -> None:
    vectors, candidates = small_integers(queries, seed, width), small_integers(size, seed + 1, width)
    excluded = [data.draw(st.frozensets(st.integers(0, size - 1), max_size=5)) for _ in range(queries)]
    found = list(nearest_rows(vectors, candidates, count, excluded, chunk))
    allowed = [[row for row in range(size) if row not in rows] for rows in excluded]
    assert found == [brute_force(q, candidates, count, rows) for q, rows in zip(vectors, allowed, strict=True)]


def test_of_many_equal_neighbours_the_lowest_rows_are_taken() -> None:
    # The questions of the bundled world come from a few templates: thousands of rows are equally near.
    candidates = torch.eye(4)[torch.arange(2000) % 4]
    (found,) = nearest_rows(torch.eye(4)[1:2], candidates, 10, [frozenset({1, 9})])
    assert found == [5, 13, 17, 21, 25, 29, 33, 37, 41, 45]


@given(size=st.integers(3, 40), queries=st.integers(1, 5), seed=st.integers(0, 10_000), data=st.data())
@settings(deadline=None)
def test_nearest_in_pools_equals_brute_force_with_ties_to_the_first_in_the_pool(
    size: int, queries: int, seed: int, data: st.DataObject
) -> None:
    vectors, candidates = small_integers(queries, seed), small_integers(size, seed + 1)
    rows = [data.draw(st.lists(st.integers(0, size - 1), min_size=2, unique=True)) for _ in range(queries)]
    found = list(nearest_in_pools(vectors, candidates, 2, Pools(size, [frozenset()] * queries, rows)))
    assert found == [brute_force(q, candidates, 2, pool) for q, pool in zip(vectors, rows, strict=True)]


def test_nearest_in_pools_searches_more_queries_than_fit_at_once() -> None:
    vectors, candidates = small_integers(600, 0), small_integers(50, 1)
    rows = [[(7 * q + k) % 50 for k in range(5 + q % 3)] for q in range(600)]
    found = list(nearest_in_pools(vectors, candidates, 4, Pools(50, [frozenset()] * 600, rows)))
    assert found == [brute_force(q, candidates, 4, pool) for q, pool in zip(vectors, rows, strict=True)]


def test_nearest_in_a_shared_pool_leaves_out_what_is_excluded() -> None:
    candidates = torch.tensor([[1.0], [5.0], [3.0], [4.0]])
    pools = Pools(4, [frozenset({1}), frozenset({3})], None)
    assert list(nearest_in_pools(torch.ones(2, 1), candidates, 2, pools)) == [[3, 2], [1, 2]]
