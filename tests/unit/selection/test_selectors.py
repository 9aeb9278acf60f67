"""Each selector by itself, on embeddings, pools and scores made by hand."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from icdsel.data.datasets import Split
from icdsel.errors import SettingsError
from icdsel.policy.network import CosineNetwork
from icdsel.records import Example, Pointer
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.pools import Pools
from icdsel.selection import SELECTORS, Selector, always_shown, selector_named
from icdsel.selection.context import Context
from icdsel.selection.fingerprints import Fingerprints
from icdsel.selection.scored import Scored
from icdsel.settings.loading import load_settings

NEAREST = ("nearest-image", "nearest-question", "nearest-both", "nearest-both-all")
BY_SIMILARITY = ("nearest-image", "nearest-question", "nearest-both", "mmices", "mmr", "k-dpp", "facility-location")
BY_SIMILARITY += ("majority",)


def example(question_id: int, answer: str = "yes") -> Example:
    return Example(question_id, question_id, Path(f"{question_id}.png"), "?", answer, (answer,))


# Eight training examples with the question_ids 100 to 107, in rows 0 to 7, and two queries.
TRAIN = Split("train", [example(100 + row) for row in range(8)])
QUERIES = (example(900), example(901))
# Directions of the training examples' embeddings in degrees; all queries are at 0.
IMAGE = (40, 10, 5, 70, 20, 20, 90, 50)
QUESTION = (5, 80, 50, 15, 60, 30, 15, 4)
# "both" is halfway: 22.5, 45, 27.5, 42.5, 40, 25, 52.5, 27.
POLICY = (80, 0, 30, 40, 10, 60, 20, 50)
# Row 0 may be shown to neither query, row 7 not to the second.
EXCLUDED = (frozenset({0}), frozenset({0, 7}))
POOLS = ((4, 6, 1, 5, 3), (3, 5, 2, 4))


def directions(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def similar() -> tuple[Embeddings, Embeddings]:
    zero = directions(*[0] * len(QUERIES))
    return Embeddings(zero, zero), Embeddings(directions(*IMAGE), directions(*QUESTION))


def context(
    pools: Sequence[Sequence[int]] | None = POOLS,
    queries: Sequence[Example] = QUERIES,
    similar: Callable[[], tuple[Embeddings, Embeddings]] = similar,
    scored: Mapping[int, Sequence[Scored]] | None = None,
    network: CosineNetwork | None = None,
    excluded: Sequence[frozenset[int]] = EXCLUDED,
    **infer: Any,
) -> Context:
    """What there is to choose by; with `pools` None all queries share the whole training split."""
    network = network or CosineNetwork(2)
    return Context(
        settings=load_settings({"infer": {"shots": "1,2,3"} | infer}),
        train=TRAIN,
        queries=queries,
        pools=Pools(len(TRAIN), excluded, pools),
        embeddings=directions(*[0] * len(queries)),
        train_embeddings=directions(*POLICY),
        open_similar=similar,
        network=network,
        open_encoded=lambda: network.encode_candidates(directions(*POLICY)),
        open_scored=lambda: scored or {},
    )


def rows(pointers: Sequence[Pointer | None]) -> list[list[int]]:
    return [[icd - 100 for icd in pointer] for pointer in pointers if pointer is not None]


# --- zero-shot --------------------------------------------------------------------------------------------


def test_zero_shot_shows_nothing() -> None:
    assert SELECTORS["zero-shot"].choose(context(), 0) == [(), ()]


def test_zero_shot_is_queried_at_no_shots_only_and_the_others_as_the_settings_want() -> None:
    counts = {name: selector.shot_counts((1, 4)) for name, selector in SELECTORS.items()}
    assert counts.pop("zero-shot") == (0,)
    assert set(counts.values()) == {(1, 4)}


# --- random -----------------------------------------------------------------------------------------------


def draw(shots: int, **how: Any) -> list[list[int]]:
    return rows(SELECTORS["random"].choose(context(**how), shots))


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_random_draws_different_rows_of_the_pool(shots: int) -> None:
    drawn = [draw(shots, random_seed=seed) for seed in range(60)]
    for q, pool in enumerate(POOLS):
        own = [choice[q] for choice in drawn]
        assert all(len(set(choice)) == len(choice) == shots and set(choice) <= set(pool) for choice in own)
        assert {choice[0] for choice in own} == set(pool)  # each of them comes first


def test_random_draws_from_a_shared_pool_what_the_query_may_get() -> None:
    drawn = [draw(3, pools=None, random_seed=seed) for seed in range(60)]
    for q, allowed in enumerate(({1, 2, 3, 4, 5, 6, 7}, {1, 2, 3, 4, 5, 6})):
        own = [choice[q] for choice in drawn]
        assert all(len(set(choice)) == len(choice) == 3 for choice in own)
        assert {row for choice in own for row in choice} == allowed


def test_random_is_uniform() -> None:
    # 500 single draws from a pool of 5: each row is drawn 100 times, with a standard deviation of 9.
    counts = Counter(draw(1, random_seed=seed)[0][0] for seed in range(500))
    assert set(counts) == set(POOLS[0]) and all(60 < count < 140 for count in counts.values())


def test_random_depends_on_the_seed_and_the_query_alone() -> None:
    many = [example(900 + k) for k in range(40)]
    how = {"pools": [range(8)] * 40, "excluded": [frozenset()] * 40}
    first = draw(3, queries=many, **how)
    assert draw(3, queries=many, **how) == first
    assert draw(3, queries=many[::-1], **how) == first[::-1]
    assert len({tuple(choice) for choice in first}) > 20
    assert draw(3, queries=many, random_seed=7, **how) != first
    assert draw(3, queries=many, random_seed=42, **how) == first  # the seed of everything, by default


def test_random_is_called_after_its_seed() -> None:
    random, settings = SELECTORS["random"], load_settings({"data": {"seed": 5}})
    assert random.row_name(settings, None) == "random-5"
    assert random.row_name(load_settings({"infer": {"random_seed": 0}}), None) == "random-0"
    assert random.without_seed("random-5") == "random"
    assert random.without_seed("my-random-5") == "my-random-5"


# --- nearest neighbours -----------------------------------------------------------------------------------

# The nearest rows of each query's pool, nearest first. Ties: by image rows 4 and 5 (20), by question 3 and 6 (15).
RANKED = {
    "nearest-image": ([1, 4, 5, 3, 6], [2, 5, 4, 3]),
    "nearest-question": ([6, 3, 5, 4, 1], [3, 5, 2, 4]),
    "nearest-both": ([5, 4, 3, 1, 6], [5, 2, 4, 3]),
    "nearest-both-all": ([5, 7, 2, 4, 3], [5, 2, 4, 3, 1]),
}


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("name", NEAREST)
def test_nearest_shows_the_most_similar_rows_the_nearest_last(name: str, shots: int) -> None:
    chosen = rows(SELECTORS[name].choose(context(), shots))
    assert chosen == [ranking[:shots][::-1] for ranking in RANKED[name]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nearest-image", ([2, 1, 4], [2, 1, 4])),
        ("nearest-question", ([7, 3, 6], [3, 6, 5])),
        ("nearest-both", ([5, 7, 2], [5, 2, 4])),
        ("nearest-both-all", ([5, 7, 2], [5, 2, 4])),
    ],
)
def test_nearest_in_a_shared_pool_never_shows_what_is_excluded(
    name: str, expected: tuple[list[int], list[int]]
) -> None:
    chosen = rows(SELECTORS[name].choose(context(pools=None), 3))
    assert chosen == [ranking[::-1] for ranking in expected]


@pytest.mark.parametrize("name", NEAREST)
def test_nearest_gives_the_same_icds_at_whatever_other_numbers_of_shots_are_wanted(name: str) -> None:
    alone, among = context(shots="2"), context(shots="1,2,3")
    assert SELECTORS[name].choose(alone, 2) == SELECTORS[name].choose(among, 2)


def test_selectors_do_not_share_their_rankings() -> None:
    together = context()
    for name, ranked in RANKED.items():
        assert rows(SELECTORS[name].choose(together, 3)) == [ranking[:3][::-1] for ranking in ranked]


# --- majority ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_majority_chooses_as_nearest_both(shots: int) -> None:
    chosen = SELECTORS["majority"].choose(context(), shots)
    assert rows(chosen) == [ranking[:shots][::-1] for ranking in RANKED["nearest-both"]]


def test_majority_copies_the_most_common_answer_and_of_equals_the_first_in_the_prompt() -> None:
    def answer(*answers: str) -> str:
        return SELECTORS["majority"].answer([example(k, own) for k, own in enumerate(answers)])

    assert answer("cat", "dog", "dog") == "dog"
    assert answer("cat", "dog", "cow") == "cat"
    assert [name for name, selector in SELECTORS.items() if not selector.needs_vlm] == ["majority", "majority-all"]


# --- oracle -----------------------------------------------------------------------------------------------

SCORED: dict[int, list[Scored]] = {
    900: [
        (0.3, 0.9, (101, 102)),
        (0.6, 0.1, (103, 104)),
        (0.6, 0.2, (104, 103)),
        (0.9, 0.9, (101, 102, 103)),
        (1.0, 1.0, (105,)),
    ],
    901: [(0.0, 0.0, (102,)), (0.0, 0.0, (103,))],
}


def test_the_oracle_takes_the_most_accurate_then_the_most_probable_pointer_as_it_was_scored() -> None:
    oracle = SELECTORS["oracle"]
    assert oracle.choose(context(scored=SCORED), 2) == [(104, 103), None]
    assert oracle.choose(context(scored=SCORED), 1) == [(105,), (103,)]


def test_the_oracle_has_none_for_a_query_that_was_not_scored() -> None:
    assert SELECTORS["oracle"].choose(context(scored={}), 1) == [None, None]


# --- policy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_the_policy_shows_its_greedy_choice_in_the_order_of_choosing(shots: int) -> None:
    # By the policy's embeddings, nearest first: 1, 4, 6, 3, 5 and 4, 2, 3, 5.
    chosen = rows(SELECTORS["policy"].choose(context(network=CosineNetwork(2)), shots))
    assert chosen == [[1, 4, 6][:shots], [4, 2, 3][:shots]]


def test_the_policy_never_shows_what_is_excluded_from_a_shared_pool() -> None:
    nearest_first = [[1, 4, 6, 2, 3, 7, 5], [1, 4, 6, 2, 3, 5]]
    shared = context(pools=None, shots="6")
    assert rows(SELECTORS["policy"].choose(shared, 6)) == [ranking[:6] for ranking in nearest_first]


class LastPlaces(CosineNetwork):
    """A policy that chooses the last candidates of a pool, the very last first, and may stop after the first."""

    def greedy(self, query: Tensor, candidates: Tensor, shots: int, mask: Tensor | None = None, **how: Any) -> Tensor:
        assert mask is not None and mask.shape == candidates.shape[:2]
        places = mask.sum(1, keepdim=True) - 1 - torch.arange(shots)  # (B, S)
        if how == {"fixed": True}:
            return places
        return places.masked_fill(torch.arange(shots) > 1 - how["stop_offset"], -1)


def test_the_policy_follows_its_network() -> None:
    chosen = rows(SELECTORS["policy"].choose(context(network=LastPlaces(2)), 3))
    assert chosen == [[3, 5, 1], [4, 2, 5]]


def test_the_policy_shows_what_it_chooses_before_it_stops() -> None:
    # At most two: pointers of the settings have two ICDs.
    here = context(network=LastPlaces(2))
    for offset, expected in ((0.0, [[3, 5], [4, 2]]), (1.0, [[3], [4]]), (2.0, [[], []])):
        assert rows(SELECTORS["policy"].choose_auto(here, offset)) == expected


def test_the_policy_reads_more_queries_than_fit_at_once() -> None:
    many = [example(1000 + k) for k in range(600)]
    pools = [POOLS[k % 3 == 0] for k in range(600)]
    chosen = rows(SELECTORS["policy"].choose(context(pools, many, excluded=[frozenset()] * 600), 2))
    assert chosen == [[4, 2], [1, 4], [1, 4]] * 200


def test_the_policy_is_called_after_run_and_checkpoint() -> None:
    policy, settings = SELECTORS["policy"], load_settings({})
    assert policy.row_name(settings, Path("results/world/model_cpk/mine/rce_epoch5.pt")) == "policy-mine-rce_epoch5"
    assert policy.without_seed("policy-mine_train-seed-43-rce_epoch5") == "policy-mine-rce_epoch5"
    assert policy.without_seed("policy-mine-rce_epoch5") == "policy-mine-rce_epoch5"


# --- what selectors need ----------------------------------------------------------------------------------


def test_inputs_name_what_decides_the_choice() -> None:
    fingerprints: Any = SimpleNamespace(sampler_encoder="s", policy="p", rl_data="r")
    found = {name: selector.inputs(fingerprints) for name, selector in SELECTORS.items()}
    by_similarity = {"sampler_encoder": "s"}
    assert found == {
        "policy": {"checkpoint": "p"},
        "zero-shot": {},
        "random": {},
        "balanced": {},
        "balanced-all": {},
        **{name: by_similarity for one in BY_SIMILARITY for name in (one, f"{one}-all")},
        "oracle": {"rl_data": "r"},
    }


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_opens_only_what_it_says_that_it_needs(name: str) -> None:
    selector, opened = SELECTORS[name], set()

    def open_similar() -> tuple[Embeddings, Embeddings]:
        opened.add("similarity")
        return similar()

    class Watched(CosineNetwork):
        def greedy(self, *given: Any, **how: Any) -> Tensor:
            opened.add("policy")
            return super().greedy(*given, **how)

    here = context(similar=open_similar, network=Watched(2), scored=SCORED)
    selector.choose(here, 1)
    if "scored" in vars(here):
        opened.add("RL data")
    needed = {"similarity"} if selector.needs_similarity else set()
    needed |= {"policy"} if selector.needs_policy else set()
    assert opened == needed | ({"RL data"} if selector.needs_rl_data else set())


def test_fingerprints_stay_those_of_the_files_that_were_read(tmp_path: Path) -> None:
    settings = load_settings({"data": {"results_dir": str(tmp_path)}})
    checkpoint = tmp_path / "policy.pt"
    checkpoint.write_text("one")
    fingerprints = Fingerprints(settings, checkpoint, lambda: "encoder")
    before = fingerprints.policy
    checkpoint.write_text("two")
    assert fingerprints.policy == before
    assert Fingerprints(settings, checkpoint, lambda: "encoder").policy not in (before, None)
    assert fingerprints.rl_data is None  # there is no such file
    assert Fingerprints(settings, None, lambda: "encoder").policy is None
    scored = tmp_path / "world/generated_data/rl_data_RandSampler_tiny-vlm_validation.jsonl"
    scored.parent.mkdir(parents=True)
    scored.write_text("{}")
    assert Fingerprints(settings, None, lambda: "encoder").rl_data is not None


# --- the dictionary ---------------------------------------------------------------------------------------


def test_zero_shot_and_majority_are_always_shown() -> None:
    assert always_shown() == ("zero-shot", "majority")


def test_random_is_preferred_as_the_reference_then_zero_shot() -> None:
    ranks = {name: selector.reference_rank for name, selector in SELECTORS.items() if selector.reference_rank}
    assert sorted(ranks, key=lambda name: -ranks[name]) == ["random", "zero-shot"]


def test_an_unknown_selector_is_an_error_that_names_the_others() -> None:
    with pytest.raises(SettingsError, match="unknown selector 'nearst-both': did you mean 'nearest-both'"):
        SELECTORS.named("nearst-both")


def test_rows_of_a_selector_that_is_not_installed_have_no_special_properties() -> None:
    selector = selector_named("theirs")
    assert (selector.name, selector.needs_policy, selector.reference_rank) == ("theirs", False, 0)
    assert selector.without_seed("theirs-43") == "theirs"
    assert selector_named("policy") is SELECTORS["policy"]


class ShortestAnswers(Selector):
    """The example in the docstring of `SELECTORS`."""

    name = "shortest-answers"

    def choose(self, context: Context, shots: int) -> list[Pointer | None]:
        train = context.train
        return context.pointers(sorted(pool, key=lambda row: len(train[row].answer))[:shots] for pool in context.pools)


@pytest.fixture
def added() -> Iterator[Selector]:
    yield SELECTORS.add(ShortestAnswers())
    del SELECTORS["shortest-answers"]


def test_an_added_selector_needs_only_a_name_and_how_it_chooses(added: Selector) -> None:
    assert list(SELECTORS)[-1] == "shortest-answers"
    assert rows(added.choose(context(), 2)) == [[4, 6], [3, 5]]
    assert added.row_name(load_settings({}), None) == "shortest-answers"
    assert added.shot_counts((1, 2)) == (1, 2)
    assert added.inputs(Fingerprints(load_settings({}), None, lambda: "encoder")) == {}


def test_names_and_attributes_load_no_torch() -> None:
    code = "import sys, icdsel.selection, icdsel.retrieval.samplers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
