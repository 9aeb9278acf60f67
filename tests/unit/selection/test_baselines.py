"""Baselines that weigh candidates against each other, and those over the whole training split, by hand."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.data.datasets import Split
from icdsel.policy.network import CosineNetwork
from icdsel.records import Example, Pointer
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.pools import Pools
from icdsel.selection import SELECTORS, selectors_named
from icdsel.selection.balanced import balanced_draws
from icdsel.selection.context import Context
from icdsel.selection.subsets import SHORTLIST, Mmr
from icdsel.settings.loading import load_settings

SUBSETS = ("mmr", "k-dpp", "facility-location")
TWICE = ("balanced", "nearest-image", "nearest-question", "nearest-both", "mmices", *SUBSETS, "majority")


def examples(answers: Sequence[str]) -> Split:
    """Training examples in the rows 0, 1, … with the question_ids 100, 101, …"""
    return Split(
        "train", [Example(100 + row, row, Path(f"{row}.png"), "?", own, (own,)) for row, own in enumerate(answers)]
    )


def directions(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def context(
    image: Tensor,
    question: Tensor,
    pools: Sequence[Sequence[int]] | None = None,
    excluded: Sequence[frozenset[int]] = (frozenset(),),
    answers: Sequence[str] | None = None,
    query: Tensor | None = None,
    **infer: Any,
) -> Context:
    """Queries in the direction of 0 degrees; without pools all choose from the whole training split."""
    count = len(pools or excluded)
    train = examples(answers or [str(row) for row in range(len(image))])
    own = (directions(0) if query is None else query).expand(count, -1)
    return Context(
        settings=load_settings({"infer": {"shots": "1,2,3"} | infer}),
        train=train,
        queries=[Example(900 + q, 900 + q, Path("q.png"), "?", "", ()) for q in range(count)],
        pools=Pools(len(train), excluded, pools),
        embeddings=own,
        train_embeddings=image,
        open_similar=lambda: (Embeddings(own, own), Embeddings(image, question)),
        network=CosineNetwork(2),
        open_encoded=lambda: CosineNetwork(2).encode_candidates(image),
        open_scored=dict,
    )


def alike(*degrees: float, **how: Any) -> Context:
    """Training examples whose images and questions point in these directions."""
    return context(directions(*degrees), directions(*degrees), **how)


def chosen(name: str, where: Context, shots: int) -> list[list[int]]:
    return rows(SELECTORS[name].choose(where, shots))


def rows(pointers: Sequence[Pointer | None]) -> list[list[int]]:
    return [[int(icd) - 100 for icd in pointer] for pointer in pointers if pointer is not None]


# --- subsets ----------------------------------------------------------------------------------------------


def test_mmr_prefers_the_other_side_of_the_query_to_a_second_one_of_the_same() -> None:
    # After 10°: 12° has (0.978 − 0.999) / 2, −15° has (0.966 − 0.906) / 2, 40° has (0.766 − 0.866) / 2.
    assert chosen("mmr", alike(12, 40, 10, -15), 2) == [[3, 2]]
    assert rows(Mmr("by-relevance", weight=1).choose(alike(12, 40, 10, -15), 3)) == [[3, 0, 2]]


def test_k_dpp_shows_the_nearest_and_what_is_left_of_the_others() -> None:
    # After 1°: r / 0.1 is 9.999, 9.993, 9.698; log d² is −9.49 for 2°, −5.05 for 10°, and −2.50 for −28°.
    assert chosen("k-dpp", alike(2, -28, 1, 10), 2) == [[1, 2]]
    # 3° and −3° are as near; of 1° after 3° less is left than of −3°.
    assert chosen("k-dpp", alike(1, 3, -3), 3) == [[1, 2, 0]]


def test_facility_location_shows_the_middle_of_what_is_near_first() -> None:
    # Weights by relevance are 0.17, 0.98, 0.87, 0.64 and 0. At first, 30° covers 0.98 · 0.94 + 0.87 + 0.64 · 0.94, or
    # 2.40, and 10° covers 2.29, although it is nearer. Then −80° adds 0.17, and 10° adds 0.98 · 0.06.
    assert chosen("facility-location", alike(-80, 10, 30, 50, 95), 2) == [[0, 2]]


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_choose_from_pools_without_what_is_excluded(name: str) -> None:
    degrees = (0, 5, -40, 80, 12, -9)
    for where in (alike(*degrees, pools=[(4, 2, 1)]), alike(*degrees, excluded=[frozenset({0, 3, 5})])):
        [three] = chosen(name, where, 3)
        assert sorted(three) == [1, 2, 4]
    together = alike(*degrees, pools=[(4, 2, 1), (0, 3, 5)], excluded=[frozenset()] * 2)
    [_, other] = chosen(name, together, 2)
    assert set(other) < {0, 3, 5}
    assert [other] == chosen(name, alike(*degrees, pools=[(0, 3, 5)]), 2)  # whatever else is answered


@pytest.mark.parametrize("name", (*SUBSETS, "mmices"))
def test_fewer_shots_are_the_nearest_to_the_query_of_more(name: str) -> None:
    where = alike(0, 5, -40, 80, 12, -9, 33)
    [one], [two], [three] = (chosen(name, where, shots) for shots in (1, 2, 3))
    assert one == two[-1:] and two == three[-2:] and len(set(three)) == 3


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_weigh_only_the_shortlist(name: str) -> None:
    # Vectors so far from each other that diversity would choose among all of them; row i is the i-th nearest.
    generator = torch.Generator().manual_seed(3)
    vectors = normalize(torch.randn(4 * SHORTLIST, 32, generator=generator), dim=-1)
    query = normalize(torch.randn(1, 32, generator=generator), dim=-1)
    vectors = vectors[(vectors @ query[0]).argsort(descending=True)]
    [whole] = chosen(name, context(vectors, vectors, query=query, shots="8"), 8)
    [shortlisted] = chosen(name, context(vectors[:SHORTLIST], vectors[:SHORTLIST], query=query, shots="8"), 8)
    assert whole == shortlisted


# --- MMICES -----------------------------------------------------------------------------------------------


def test_mmices_ranks_the_nearest_images_by_question_and_equal_questions_by_image() -> None:
    # 12 candidates: the shortlist holds the three nearest images, 7, 2 and 5; the best questions are outside.
    image = directions(40, 50, 2, 60, 70, 3, 80, 1, 45, 55, 65, 75)
    question = directions(0, 0, 20, 0, 0, 10, 0, 20, 0, 0, 0, 0)
    assert chosen("mmices", context(image, question), 1) == [[5]]
    assert chosen("mmices", context(image, question), 3) == [[2, 7, 5]]
    assert chosen("mmices", context(image, question), 5) == [[8, 0, 2, 7, 5]]  # then by image
    # 2 of the 8 in the pool: 7 and 5.
    assert chosen("mmices", context(image, question, pools=[(0, 1, 3, 4, 5, 6, 7, 8)]), 2) == [[7, 5]]


# --- balanced ---------------------------------------------------------------------------------------------


def test_balanced_draws_every_answer_with_the_same_probability() -> None:
    # 90 of 100 answers are "yes"; a first ICD is "yes" in a third of 300 draws, with a standard deviation of 8.
    answers = ["yes"] * 90 + ["no"] * 6 + ["two"] * 4
    where = [alike(*range(100), answers=answers, random_seed=seed) for seed in range(300)]
    drawn = [chosen("balanced", one, 3)[0] for one in where]
    counts = Counter(answers[own[0]] for own in drawn)
    assert all(60 < counts[answer] < 140 for answer in ("yes", "no", "two"))
    assert all({answers[row] for row in own} == {"yes", "no", "two"} for own in drawn)  # each once
    assert len({own[0] for own in drawn}) > 50


def test_balanced_repeats_answers_when_each_was_shown_and_never_an_icd() -> None:
    [drawn] = chosen("balanced", alike(*range(5), answers=["a", "a", "a", "b", "b"], shots="4"), 4)
    assert len(set(drawn)) == 4 and sum(row < 3 for row in drawn) == 2
    assert {row < 3 for row in drawn[:2]} == {True, False}


@pytest.mark.parametrize("seed", range(20))
def test_balanced_never_draws_what_is_excluded(seed: int) -> None:
    rng = random.Random(seed)
    groups = [[row] for row in range(30)]
    assert set(balanced_draws(groups, 6, set(range(24)), rng)) == set(range(24, 30))
    assert sorted(balanced_draws([[0, 1, 2], [3], [4]], 3, {3, 4}, rng)) == [0, 1, 2]
    assert {*balanced_draws([[0, 1, 2, 3], [4]], 2, {0, 1, 2}, rng)} == {3, 4}


def test_balanced_depends_on_seed_and_query_alone_and_keeps_to_the_pool() -> None:
    pools = [(4, 2, 0), (1, 3, 5)]
    where = alike(*range(6), pools=pools, excluded=[frozenset()] * 2)
    drawn = chosen("balanced", where, 2)
    assert all(set(own) < set(pool) for own, pool in zip(drawn, pools, strict=True))
    assert chosen("balanced", where, 2) == drawn
    assert chosen("balanced", alike(*range(6), pools=pools[:1]), 2) == drawn[:1]
    settings = load_settings({"infer": {"random_seed": 7}})
    assert SELECTORS["balanced"].row_name(settings, None) == "balanced-7"
    assert SELECTORS["balanced-all"].row_name(settings, None) == "balanced-all-7"
    assert SELECTORS["balanced-all"].without_seed("balanced-all-7") == "balanced-all"
    assert SELECTORS["balanced"].without_seed("balanced-all-7") == "balanced-all-7"
    assert SELECTORS["balanced"].reference_rank == 0


# --- over the whole training split ------------------------------------------------------------------------

WIDE = (3, 8, -20, 55, 14, -9, 70, -33)


@pytest.mark.parametrize("name", TWICE)
def test_every_baseline_exists_over_the_whole_split_too(name: str) -> None:
    excluded = [frozenset({0})]
    pooled = alike(*WIDE, pools=[(6, 3, 7)], excluded=excluded)
    whole = alike(*WIDE, excluded=excluded)
    assert chosen(f"{name}-all", pooled, 3) == chosen(name, whole, 3) == chosen(f"{name}-all", whole, 3)
    assert set(chosen(name, pooled, 3)[0]) == {3, 6, 7}
    assert 0 not in chosen(f"{name}-all", pooled, 3)[0]
    one, all_ = SELECTORS[name], SELECTORS[f"{name}-all"]
    assert (one.pool(64), all_.pool(64), one.pool("all")) == ("64", "all", "all")
    assert all_.needs_similarity == one.needs_similarity and all_.needs_vlm == one.needs_vlm
    assert not all_.always_shown


def test_the_majority_over_the_whole_split_answers_as_the_other() -> None:
    icds = [Example(k, k, Path("a.png"), "?", own, (own,)) for k, own in enumerate(("cat", "dog", "dog"))]
    assert SELECTORS["majority-all"].answer(icds) == "dog"


def test_embeddings_are_opened_once_for_pools_and_whole_split() -> None:
    opened = []
    where = alike(*WIDE, pools=[(6, 3, 7)])
    similar = where.open_similar
    object.__setattr__(where, "open_similar", lambda: opened.append(1) or similar())
    for name in ("nearest-both", "nearest-both-all", "mmr-all", "mmices-all"):
        SELECTORS[name].choose(where, 2)
    assert len(opened) == 1


def test_over_pools_of_the_whole_split_each_choice_is_one_row() -> None:
    names = ("policy", "nearest-both", "nearest-both-all", "mmr-all", "zero-shot")
    assert [one.name for one in selectors_named(names, 64)] == list(names)
    assert [one.name for one in selectors_named(names, "all")] == ["policy", "nearest-both", "mmr", "zero-shot"]
