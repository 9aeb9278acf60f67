import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.policy.config import PointerConfig
from icdsel.policy.network import CosineNetwork, PointerNetwork
from icdsel.policy.proposals import METHODS, ProposalMethod, Unit, most_pointers, propose, pruned
from icdsel.records import Pointer, Proposal, QueryGroup, ScoredPointer
from icdsel.retrieval.shared_words import Sharing
from icdsel.settings.tables import ProposalSettings

NONE = {"beam": 0, "samples": 0, "retrieval": 0, "random": 0}


def unit_vectors(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def policy(width: int, seed: int = 0) -> PointerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointerNetwork(PointerConfig(width, hidden_dim=8)).eval()


def random_pools(batch: int, size: int, seed: int) -> list[list[int]]:
    """Overlapping pools of question_ids: a position looked up in another query's pool gives a wrong pointer."""
    rng = random.Random(seed)
    return [rng.sample(range(100, 100 + 2 * size), size) for _ in range(batch)]


def random_unit(
    batch: int, size: int, network: PointerNetwork, seed: int = 0, mask: Tensor | None = None, **counts: Any
) -> Unit:
    query, candidates = unit_vectors(batch, 6, seed=seed), unit_vectors(batch, size, 6, seed=seed + 1)
    pools = random_pools(batch, size, seed)
    return Unit(query, candidates, pools, network, ProposalSettings(**counts), f"unit-{seed}", mask)


def by_angles(*degrees: Sequence[float], pools: Sequence[Sequence[int]], hidden: Any = None, **counts: Any) -> Unit:
    """Queries at angle 0 and candidates at these angles to them, so that their cosines are known."""
    angles = torch.tensor(degrees).deg2rad()
    query = torch.tensor([[1.0, 0.0]]).expand(len(degrees), -1)
    mask = None if hidden is None else ~torch.tensor(hidden)
    candidates = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (B, K, 2)
    return Unit(query, candidates, pools, CosineNetwork(2), ProposalSettings(**NONE | counts), "seed", mask)


def pointers(proposals: Sequence[Proposal]) -> list[Pointer]:
    return [proposal.pointer for proposal in proposals]


# Nearest first: 11 (10°), 13 (30°), 10 (50°), 12 (90°) for the first query, 24, 21, 23, 22 for the second.
ANGLES = ((50, 10, 90, 30), (20, 80, 60, 5))
POOLS = ((10, 11, 12, 13), (21, 22, 23, 24))
# The nearest candidate of the first query and the second nearest of the second may not be chosen.
HIDDEN = ((False, True, False, False), (True, False, False, False))


# --- beam -------------------------------------------------------------------------------------------------


def test_a_policy_that_sees_answers_proposes_by_them_and_neighbours_are_those_of_the_examples() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointerNetwork(PointerConfig(6, hidden_dim=8, answer_dim=3)).eval()
        torch.nn.init.normal_(network.answer_proj)
    blind = random_unit(3, 20, CosineNetwork(6), **NONE | {"retrieval": 4, "shots": 2})
    beams = []
    for seed in (1, 2):
        answers = unit_vectors(3, 20, 3, seed=seed)
        unit = replace(blind, network=network, candidates=torch.cat([blind.candidates, answers], dim=-1))
        assert METHODS["retrieval"].propose(unit) == METHODS["retrieval"].propose(blind)
        beams.append(METHODS["beam"].propose(replace(unit, settings=ProposalSettings(**NONE | {"beam": 3}))))
    assert beams[0] != beams[1]


def test_beam_finds_the_most_probable_pointers_best_first() -> None:
    one, other = METHODS["beam"].propose(by_angles(*ANGLES, pools=POOLS, beam=3))
    assert pointers(one) == [(11, 13), (13, 11), (11, 10)]
    assert pointers(other) == [(24, 21), (21, 24), (24, 23)]
    assert [(p.method, p.rank, p.temperature) for p in one] == [("cosine-beam", rank, None) for rank in range(3)]


def test_beam_avoids_what_the_mask_hides() -> None:
    one, other = METHODS["beam"].propose(by_angles(*ANGLES, pools=POOLS, hidden=HIDDEN, beam=2))
    assert pointers(one) == [(13, 10), (10, 13)]
    assert pointers(other) == [(24, 23), (24, 22)]


def test_beam_gives_the_log_probs_of_its_pointers() -> None:
    (made,) = METHODS["beam"].propose(by_angles((0, 60), pools=[(7, 8)], beam=5))
    assert pointers(made) == [(7, 8), (8, 7)]  # both orders; there are no more
    # The cosines 1 and 1/2 over the temperature 0.1 are the logits 10 and 5, so the first choice has the log-probs
    # -log(1 + e^-5) and -log(1 + e^5); the one candidate that is left then has probability 1.
    assert made[0].log_prob == pytest.approx(-math.log1p(math.exp(-5)), abs=1e-6)
    assert made[1].log_prob == pytest.approx(-math.log1p(math.exp(5)), rel=1e-6)


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_beam_pointers_are_as_long_as_the_settings_say(shots: int) -> None:
    (made,) = METHODS["beam"].propose(by_angles(ANGLES[0], pools=POOLS[:1], beam=1, shots=shots))
    assert pointers(made) == [(11, 13, 10)[:shots]]


# --- retrieval --------------------------------------------------------------------------------------------


def test_retrieval_proposes_windows_of_consecutive_ranks() -> None:
    one, other = METHODS["retrieval"].propose(by_angles(*ANGLES, pools=POOLS, retrieval=5))
    assert one == [
        Proposal((11, 13), "retrieval", rank=0),
        Proposal((13, 10), "retrieval", rank=1),
        Proposal((10, 12), "retrieval", rank=2),
    ]
    assert pointers(other) == [(24, 21), (21, 23), (23, 22)]


def test_retrieval_leaves_out_what_the_mask_hides() -> None:
    one, other = METHODS["retrieval"].propose(by_angles(*ANGLES, pools=POOLS, hidden=HIDDEN, retrieval=5))
    assert pointers(one) == [(13, 10), (10, 12)]
    assert pointers(other) == [(24, 23), (23, 22)]


@pytest.mark.parametrize(("shots", "expected"), [(1, [(11,), (13,)]), (3, [(11, 13, 10), (13, 10, 12)])])
def test_retrieval_proposes_as_many_pointers_as_the_settings_say(shots: int, expected: list[Pointer]) -> None:
    (made,) = METHODS["retrieval"].propose(by_angles(ANGLES[0], pools=POOLS[:1], retrieval=2, shots=shots))
    assert pointers(made) == expected


def test_retrieval_breaks_ties_by_the_position_in_the_pool() -> None:
    (made,) = METHODS["retrieval"].propose(by_angles((40, 10, 40, 40), pools=POOLS[:1], retrieval=5))
    assert pointers(made) == [(11, 10), (10, 12), (12, 13)]


@given(size=st.integers(2, 10), shots=st.integers(1, 3), count=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_retrieval_equals_windows_of_a_sorted_list(size: int, shots: int, count: int, seed: int) -> None:
    shots = min(shots, size)
    unit = random_unit(2, size, CosineNetwork(6), seed, **NONE | {"retrieval": count, "shots": shots})
    for q, made in enumerate(METHODS["retrieval"].propose(unit)):
        cosines = (unit.candidates[q] @ unit.query[q]).tolist()
        ranked = [unit.pools[q][place] for place in sorted(range(size), key=lambda place: -cosines[place])]
        windows = [tuple(ranked[rank : rank + shots]) for rank in range(min(count, size - shots + 1))]
        assert pointers(made) == windows
        assert [proposal.rank for proposal in made] == list(range(len(windows)))


# --- sample -----------------------------------------------------------------------------------------------


def test_sample_draws_as_many_pointers_as_asked_at_each_temperature() -> None:
    unit = by_angles(*ANGLES, pools=POOLS, samples=5, temperatures=(1.0, 2.0))
    for pool, made in zip(POOLS, METHODS["sample"].propose(unit), strict=True):
        assert [proposal.temperature for proposal in made] == [1.0] * 5 + [2.0] * 5
        assert {proposal.method for proposal in made} == {"cosine-sample"}
        assert all(len(set(pointer)) == 2 and set(pointer) <= set(pool) for pointer in pointers(made))


def test_sample_never_draws_what_the_mask_hides() -> None:
    unit = by_angles(*ANGLES, pools=POOLS, hidden=HIDDEN, samples=50, temperatures=(10.0,))
    for made, allowed in zip(METHODS["sample"].propose(unit), ({10, 12, 13}, {22, 23, 24}), strict=True):
        assert {icd for pointer in pointers(made) for icd in pointer} == allowed


def test_sample_gives_the_log_probs_at_its_temperature() -> None:
    # One shot of two candidates with the logits 10 and 5: at temperature t the odds are e^(5/t).
    (made,) = METHODS["sample"].propose(by_angles((0, 60), pools=[(7, 8)], samples=200, shots=1, temperatures=(5.0,)))
    likely = 1 / (1 + math.exp(-1))
    log_probs = {proposal.pointer: proposal.log_prob for proposal in made}
    assert log_probs == {
        (7,): pytest.approx(math.log(likely), abs=1e-6),
        (8,): pytest.approx(math.log(1 - likely), abs=1e-6),
    }
    # 146 of 200 are expected, with a standard deviation of 6.
    assert 120 < pointers(made).count((7,)) < 172


# --- random -----------------------------------------------------------------------------------------------


def test_random_draws_pointers_from_each_query_s_own_pool() -> None:
    one, other = METHODS["random"].propose(by_angles(*ANGLES, pools=POOLS, random=60, shots=3))
    for pool, made in ((POOLS[0], one), (POOLS[1], other)):
        assert len(made) == 60
        assert all(len(set(pointer)) == 3 and set(pointer) <= set(pool) for pointer in pointers(made))
        assert {pointer[0] for pointer in pointers(made)} == set(pool)  # any of them may come first
    assert one[0] == Proposal(one[0].pointer, "random")  # without rank, log-prob and temperature


def test_random_never_draws_what_the_mask_hides() -> None:
    made = METHODS["random"].propose(by_angles(*ANGLES, pools=POOLS, hidden=HIDDEN, random=40))
    for proposals, allowed in zip(made, ({10, 12, 13}, {22, 23, 24}), strict=True):
        assert {icd for pointer in pointers(proposals) for icd in pointer} == allowed
        assert all(len(set(pointer)) == 2 for pointer in pointers(proposals))


def test_random_draws_differ_between_the_queries_of_a_unit() -> None:
    unit = random_unit(5, 50, CosineNetwork(6), **NONE | {"random": 1})
    pairs = zip(unit.pools, propose(unit), strict=True)
    places = {tuple(pool.index(icd) for icd in made[0].pointer) for pool, made in pairs}
    assert len(places) > 1


# --- all methods together ---------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 4),
    size=st.integers(3, 12),
    shots=st.integers(1, 3),
    counts=st.fixed_dictionaries({name: st.integers(0, 6) for name in NONE}),
    trained=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_proposals_are_distinct_pointers_into_the_pool(
    batch: int, size: int, shots: int, counts: dict[str, int], trained: bool, seed: int
) -> None:
    if not any(counts.values()):
        counts["random"] = 1
    network = policy(6, seed) if trained else CosineNetwork(6)
    unit = random_unit(batch, size, network, seed, shots=shots, **counts)
    made = propose(unit)
    assert len(made) == batch
    source = "policy" if trained else "cosine"
    for pool, proposals in zip(unit.pools, made, strict=True):
        found = pointers(proposals)
        assert len(set(found)) == len(found) <= most_pointers(unit.settings)  # distinct as ordered sequences
        assert all(len(set(pointer)) == len(pointer) == shots for pointer in found)
        assert all(set(pointer) <= set(pool) for pointer in found)
        most = {
            f"{source}-beam": counts["beam"],
            f"{source}-sample": counts["samples"] * 2,
            "retrieval": counts["retrieval"],
            "random": counts["random"],
        }
        methods = [proposal.method for proposal in proposals]
        assert set(methods) <= set(most)
        assert all(methods.count(method) <= count for method, count in most.items())
        # The first method loses no pointer to the others.
        if counts["beam"]:
            assert methods.count(f"{source}-beam") == min(counts["beam"], math.perm(size, shots))
        for proposal in proposals:
            follows_a_network = proposal.method.startswith(source)
            assert (proposal.log_prob is not None) == follows_a_network
            assert (proposal.temperature in unit.settings.temperatures) == proposal.method.endswith("-sample")
            assert (proposal.rank is not None) == (proposal.method in (f"{source}-beam", "retrieval"))


def test_of_equal_pointers_the_first_method_s_is_kept() -> None:
    # Two candidates make two pointers. Beam finds both; retrieval, samples and random draws find them again.
    def methods(**more: int) -> dict[Pointer, str]:
        counts = {"retrieval": 5, "samples": 40, "random": 40} | more
        (made,) = propose(by_angles((0, 60), pools=[(7, 8)], **counts))
        return {proposal.pointer: proposal.method for proposal in made}

    assert methods(beam=5) == {(7, 8): "cosine-beam", (8, 7): "cosine-beam"}
    assert methods(beam=1) == {(7, 8): "cosine-beam", (8, 7): "cosine-sample"}
    assert methods() == {(7, 8): "retrieval", (8, 7): "cosine-sample"}
    assert methods(retrieval=0) == {(7, 8): "cosine-sample", (8, 7): "cosine-sample"}
    assert methods(samples=0) == {(7, 8): "retrieval", (8, 7): "random"}


def test_a_shared_pool_gives_the_same_proposals_as_copies_of_it() -> None:
    query, pool = unit_vectors(3, 6), unit_vectors(1, 12, 6, seed=1)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 4] = mask[2, 7] = False
    ids = [list(range(12))] * 3
    shared, copied = (
        propose(Unit(query, candidates, ids, policy(6), ProposalSettings(), "seed", mask))
        for candidates in (pool, pool.expand(3, -1, -1))
    )
    assert [pointers(made) for made in shared] == [pointers(made) for made in copied]


def test_proposals_name_the_kind_of_network_that_they_follow() -> None:
    by_cosine, by_policy = (
        propose(random_unit(1, 40, network, samples=20))[0] for network in (CosineNetwork(6), policy(6))
    )
    assert {p.method for p in by_cosine} == {"cosine-beam", "cosine-sample", "retrieval", "random"}
    assert {p.method for p in by_policy} == {"policy-beam", "policy-sample", "retrieval", "random"}


def test_beams_and_samples_follow_the_given_policy() -> None:
    network = policy(6)
    query, candidates = unit_vectors(3, 6), unit_vectors(3, 20, 6, seed=1)
    ids = [list(range(20))] * 3  # question_ids equal positions
    made = propose(Unit(query, candidates, ids, network, ProposalSettings(samples=10), "seed"))
    for q, proposals in enumerate(made):
        followed = [proposal for proposal in proposals if proposal.log_prob is not None]
        beams = [proposal for proposal in followed if proposal.method == "policy-beam"]
        places = torch.tensor([pointers(followed)])
        expected = network.log_prob(query[q : q + 1], candidates[q : q + 1], places)[0].tolist()
        for proposal, log_prob in zip(followed, expected, strict=True):
            if proposal.temperature in (None, 1.0):
                assert proposal.log_prob == pytest.approx(log_prob, abs=1e-4)
        assert [proposal.rank for proposal in beams] == [0, 1, 2, 3, 4]
        assert sorted((p.log_prob for p in beams), reverse=True) == [p.log_prob for p in beams]


@pytest.mark.parametrize("network", [CosineNetwork(6), policy(6)], ids=["cosine", "policy"])
def test_proposals_depend_on_the_unit_s_seed_alone(network: PointerNetwork) -> None:
    query, candidates, ids = unit_vectors(4, 6), unit_vectors(4, 30, 6, seed=1), random_pools(4, 30, 0)

    def made(seed: str) -> list[list[Proposal]]:
        return propose(Unit(query, candidates, ids, network, ProposalSettings(random=3), seed))

    first = made("a")
    torch.manual_seed(1)
    random.seed(1)
    assert made("a") == first
    other = made("b")

    def of(kind: str, proposals: list[list[Proposal]]) -> list[list[Pointer]]:
        return [pointers([p for p in group if p.method.endswith(kind)]) for group in proposals]

    assert of("beam", other) == of("beam", first)  # draws nothing
    assert of("retrieval", other) == of("retrieval", first)
    assert of("sample", other) != of("sample", first)
    assert of("random", other) != of("random", first)


def backwards(unit: Unit) -> list[list[Proposal]]:
    """A method that somebody adds: the last candidates of the pool, the very last first."""
    size = len(unit.pools[0])
    places = range(size - 1, size - 1 - unit.settings.shots, -1)
    return [[Proposal(unit.pointer(b, places), "backwards")] for b in range(len(unit.pools))]


@pytest.fixture
def added() -> Iterator[None]:
    METHODS.add(ProposalMethod("backwards", lambda settings: 1, backwards))
    yield
    del METHODS["backwards"]


def test_an_added_method_proposes_after_the_others(added: None) -> None:
    (made,) = propose(by_angles(ANGLES[0], pools=POOLS[:1], retrieval=1))
    assert made == [Proposal((11, 13), "retrieval", rank=0), Proposal((13, 12), "backwards")]
    assert most_pointers(ProposalSettings(**NONE | {"retrieval": 4})) == 5


# --- shorter pointers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [CosineNetwork(6), policy(6)], ids=["cosine", "policy"])
def test_shorter_pointers_and_the_empty_one_are_proposed_after_the_usual_ones(network: PointerNetwork) -> None:
    usual = propose(random_unit(3, 20, network))
    for least in (0, 1, 2):
        settings = ProposalSettings(min_shots=least)
        found = propose(random_unit(3, 20, network, min_shots=least))
        for b in range(3):
            assert found[b][: len(usual[b])] == usual[b]
            lengths = [len(pointer) for pointer in pointers(found[b])]
            assert sorted(lengths, reverse=True) == lengths and set(lengths) == set(range(least, 3))
            assert lengths.count(0) == (least == 0) and len(found[b]) <= most_pointers(settings)
            one = [proposal for proposal in found[b] if len(proposal.pointer) == 1]
            assert {p.method.split("-")[-1] for p in one} <= {"beam", "sample", "retrieval", "random"}
            assert len(one) >= 5 * (least < 2)
    assert found[0] == usual[0]
    assert propose(random_unit(1, 20, network, min_shots=0))[0][-1] == Proposal((), "zero-shot")


def test_a_proposer_that_may_stop_proposes_every_length_all_the_same() -> None:
    torch.manual_seed(0)
    network = PointerNetwork(PointerConfig(6, hidden_dim=8, stop=True)).eval()
    assert network.stop_head is not None
    torch.nn.init.constant_(network.stop_head.bias, 50.0)  # it would always stop at once
    found = propose(random_unit(2, 20, network, min_shots=1))
    assert all({len(p) for p in pointers(own)} == {1, 2} for own in found)


# --- pruned pointers --------------------------------------------------------------------------------------


def scored(rewards: dict[Pointer, int]) -> QueryGroup:
    candidates = tuple(ScoredPointer(pointer, correct=right, score=float(right)) for pointer, right in rewards.items())
    return QueryGroup(1, 1, "?", ("yes",), None, candidates)


@pytest.mark.parametrize(
    ("rewards", "count", "least", "expected"),
    [
        ({(2, 3): 1, (4, 5): 0}, 2, 1, [(3,), (2,)]),
        ({(2, 3): 1, (3,): 0}, 2, 1, [(2,)]),  # (3,) is known
        ({(2, 3): 1, (4, 5): 1}, 1, 1, [(3,), (2,)]),  # at most one pointer
        ({(2, 3): 1, (4,): 1}, 2, 1, []),  # a right one is short already
        ({(2, 3, 4): 1}, 2, 2, [(3, 4), (2, 4), (2, 3)]),
        ({(2, 3): 1}, 0, 1, []),
        ({(2, 3): 0}, 2, 1, []),
    ],
)
def test_right_pointers_are_tried_without_each_of_their_icds(
    rewards: dict[Pointer, int], count: int, least: int, expected: list[Pointer]
) -> None:
    assert pointers(pruned(scored(rewards), count, least)) == expected


# --- by answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharing", "shots", "expected"),
    [
        # Nearest first: 11 (10°), 13 (30°), 10 (50°), 12 (90°).
        (Sharing([0, 1, 3], [[0, 1, 3]]), 1, [(11,), (13,)]),
        (Sharing([0, 1, 3], [[0, 1, 3]]), 2, [(11, 13)]),  # no second pair of others
        (Sharing([0, 1, 2, 3], [[0, 1, 2, 3]]), 2, [(11, 13), (10, 12)]),
        (Sharing([3], [[0, 2], [1]]), 1, [(13,)]),  # one ICD has to have both words
        (Sharing([3], [[0, 2], [1]]), 2, [(10, 11)]),  # the first word's first
        (Sharing([], [[1], [0, 2]]), 2, [(11, 10)]),
        (Sharing([], [[1], []]), 2, []),
        (Sharing([], []), 1, []),
    ],
)
def test_answers_propose_one_icd_for_each_word_of_the_reference(
    sharing: Sharing, shots: int, expected: list[Pointer]
) -> None:
    unit = by_angles([50, 10, 90, 30], pools=[[10, 11, 12, 13]], answers=2, shots=shots)
    assert pointers(propose(replace(unit, sharing=[sharing]))[0]) == expected


def test_answers_leave_out_what_may_not_be_chosen() -> None:
    unit = by_angles(
        [50, 10, 90, 30], pools=[[10, 11, 12, 13]], hidden=[[False, True, False, False]], answers=1, shots=1
    )
    assert pointers(propose(replace(unit, sharing=[Sharing([0, 1, 3], [[0, 1, 3]])]))[0]) == [(13,)]
