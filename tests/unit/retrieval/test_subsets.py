"""Greedy choices of several candidates: small cases by hand, and larger ones against the definitions."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.retrieval.subsets import facility_location, map_of_k_dpp, maximal_marginal_relevance


def symmetric(n: int, **pairs: float) -> Tensor:
    """Similarities (n, n) with ones on the diagonal; `_01=0.5` is that of the places 0 and 1, the others are 0."""
    similarity = torch.eye(n, dtype=torch.float64)
    for pair, value in pairs.items():
        i, j = map(int, pair[1:])
        similarity[i, j] = similarity[j, i] = value
    return similarity


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- by hand ----------------------------------------------------------------------------------------------


def test_mmr_weighs_relevance_against_the_most_similar_of_the_chosen() -> None:
    relevance, similarity = numbers(0.9, 0.8, 0.5), symmetric(3, _01=0.95, _02=0.1, _12=0.2)
    # After 0, at λ = 0.5: 1 has 0.4 − 0.475, 2 has 0.25 − 0.05. At λ = 0.9: 0.72 − 0.095 and 0.45 − 0.01.
    assert maximal_marginal_relevance(relevance, similarity, 3, 0.5) == [0, 2, 1]
    assert maximal_marginal_relevance(relevance, similarity, 3, 0.9) == [0, 1, 2]


def test_mmr_remembers_all_of_the_chosen_not_the_last_alone() -> None:
    # 2 is like 0, and unlike 1, which is chosen second: 0.35 − 0.5 for 2, 0.1 − 0 for 3.
    relevance, similarity = numbers(1.0, 0.9, 0.7, 0.2), symmetric(4, _02=1.0)
    assert maximal_marginal_relevance(relevance, similarity, 3, 0.5) == [0, 1, 3]


def test_the_dpp_weighs_relevance_against_the_volume_that_is_left() -> None:
    relevance, similarity = numbers(0.9, 0.8, 0.0), symmetric(3, _01=0.98)
    # After 0, with the cosines moved to 0.99 and 0.5: log d² is log(1 − 0.9801) = −3.92 for 1, log(1 − 0.25) = −0.29
    # for 2. The qualities are 9 and 5 at a scale of 0.1, 4.5 and 2.5 at a scale of 0.2.
    assert map_of_k_dpp(relevance, similarity, 2, 0.1) == [0, 1]
    assert map_of_k_dpp(relevance, similarity, 2, 0.2) == [0, 2]


def test_the_dpp_takes_copies_last_and_then_by_relevance() -> None:
    vectors = numbers(1, 0, 1, 0, 0, 1, 1, 0).reshape(4, 2)  # 0, 1 and 3 are the same
    assert map_of_k_dpp(numbers(0.9, 0.7, 0.1, 0.8), vectors @ vectors.T, 4, 0.1) == [0, 2, 3, 1]


def test_facility_location_covers_what_is_relevant() -> None:
    relevance, similarity = numbers(1.0, 0.9, 0.8, 0.1), symmetric(4, _12=0.9)
    # First 0 covers 1.0, 1 covers 0.9 + 0.8 · 0.9 = 1.62, 2 covers 0.8 + 0.9 · 0.9 = 1.61, 3 covers 0.1; in the end 2
    # adds 0.8 · 0.1 and 3 adds 0.1.
    assert facility_location(relevance, similarity, 4) == [1, 0, 3, 2]


def test_facility_location_ignores_what_points_away() -> None:
    relevance, similarity = numbers(0.5, 0.4, -0.9, -0.8), symmetric(4, _01=-0.9, _23=0.9)
    assert facility_location(relevance, similarity, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    "choose",
    [
        lambda r, s, k: maximal_marginal_relevance(r, s, k, 0.5),
        lambda r, s, k: map_of_k_dpp(r, s, k, 0.1),
        facility_location,
    ],
)
def test_ties_go_to_the_first(choose: Callable[[Tensor, Tensor, int], list[int]]) -> None:
    assert choose(torch.full((4,), 0.5, dtype=torch.float64), symmetric(4), 4) == [0, 1, 2, 3]


# --- against the definitions ------------------------------------------------------------------------------


def random_case(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Relevance (n) and similarity (n, n) of random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(n + 1, 6, generator=generator, dtype=torch.float64), dim=-1)
    return vectors[1:] @ vectors[0], vectors[1:] @ vectors[1:].T


def greedy(n: int, count: int, value: Callable[[list[int]], float]) -> list[int]:
    """Adds, one by one, the place with which the set has the highest value."""
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(max((place for place in range(n) if place not in chosen), key=lambda p: value([*chosen, p])))
    return chosen


cases = given(n=st.integers(2, 9), seed=st.integers(0, 10_000), data=st.data())


@cases
def test_the_dpp_maximises_the_determinant_step_by_step(n: int, seed: int, data: st.DataObject) -> None:
    relevance, similarity = random_case(n, seed)
    count, scale = data.draw(st.integers(1, min(n, 6))), data.draw(st.sampled_from((0.05, 0.1, 0.5)))
    quality = ((1 + relevance) / 2 / (2 * scale)).exp()
    kernel = quality[:, None] * (1 + similarity) / 2 * quality
    expected = greedy(n, count, lambda chosen: float(kernel[chosen][:, chosen].slogdet().logabsdet))
    assert map_of_k_dpp(relevance, similarity, count, scale) == expected


@cases
def test_facility_location_maximises_the_coverage_step_by_step(n: int, seed: int, data: st.DataObject) -> None:
    relevance, similarity = random_case(n, seed)

    def coverage(chosen: list[int]) -> float:
        return sum(max(0.0, float(relevance[i])) * max([0.0, *similarity[i, chosen].tolist()]) for i in range(n))

    count = data.draw(st.integers(1, n))
    found = facility_location(relevance, similarity, count)
    values = [coverage(found[:k]) for k in range(count + 1)]
    assert len(set(found)) == count
    gains = [after - before for before, after in pairwise(values)]
    for k, gain in enumerate(gains):  # where nothing relevant is left to cover, anything may follow
        others = [coverage([*found[:k], place]) - values[k] for place in range(n) if place not in found[:k]]
        assert gain == pytest.approx(max(others), abs=1e-9)


@cases
def test_mmr_follows_its_definition(n: int, seed: int, data: st.DataObject) -> None:
    relevance, similarity = random_case(n, seed)
    count, weight = data.draw(st.integers(1, n)), data.draw(st.sampled_from((0.3, 0.5, 0.8)))
    expected: list[int] = []
    for _ in range(count):
        rest = [place for place in range(n) if place not in expected]
        most = {place: max((float(similarity[place, j]) for j in expected), default=0.0) for place in rest}
        expected.append(max(rest, key=lambda p: weight * float(relevance[p]) - (1 - weight) * most[p]))
    assert maximal_marginal_relevance(relevance, similarity, count, weight) == expected
