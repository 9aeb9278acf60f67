import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.policy.network import CosineNetwork, PointerConfig, PointerNetwork
from icdsel.policy.proposals import propose
from icdsel.records import Proposal
from icdsel.settings.tables import ProposalSettings

NOTHING = {"beam": 0, "samples": 0, "retrieval": 0, "random": 0}


def units(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def policy(width: int, seed: int = 0) -> PointerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointerNetwork(PointerConfig(width, hidden_dim=8)).eval()


def pools_of(batch: int, size: int, seed: int) -> list[list[int]]:
    """Pools of question_ids that overlap, so that a place of one query's pool taken in another's shows."""
    rng = random.Random(seed)
    return [rng.sample(range(100, 100 + 2 * size), size) for _ in range(batch)]


def from_angles(*degrees: float) -> tuple[Tensor, Tensor]:
    """A query at angle 0 and candidates at these angles to it: their cosines are known."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.tensor([[1.0, 0.0]]), torch.stack([angles.cos(), angles.sin()], dim=-1)[None]


@given(
    batch=st.integers(1, 4),
    size=st.integers(3, 12),
    shots=st.integers(1, 3),
    told=st.fixed_dictionaries({name: st.integers(0, 6) for name in NOTHING}),
    trained=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_proposals_are_distinct_pointers_into_the_pool(
    batch: int, size: int, shots: int, told: dict[str, int], trained: bool, seed: int
) -> None:
    if not any(told.values()):
        told["random"] = 1
    asked = ProposalSettings(shots=shots, **told)
    network = policy(6, seed) if trained else CosineNetwork(6)
    pools = pools_of(batch, size, seed)
    query, candidates = units(batch, 6, seed=seed), units(batch, size, 6, seed=seed + 1)
    made = propose(query, candidates, pools, network, asked, f"unit-{seed}")
    assert len(made) == batch
    source = "policy" if trained else "cosine"
    for pool, proposals in zip(pools, made, strict=True):
        pointers = [proposal.pointer for proposal in proposals]
        assert len(set(pointers)) == len(pointers)  # as ordered sequences
        assert all(len(set(pointer)) == len(pointer) == shots for pointer in pointers)
        assert all(set(pointer) <= set(pool) for pointer in pointers)
        counts = {
            f"{source}-beam": told["beam"],
            f"{source}-sample": told["samples"] * 2,
            "retrieval": told["retrieval"],
            "random": told["random"],
        }
        methods = [proposal.method for proposal in proposals]
        assert set(methods) <= set(counts)
        assert all(methods.count(method) <= most for method, most in counts.items())
        # The first method loses nothing to the others: with enough pointers to find, it finds all.
        if told["beam"]:
            assert methods.count(f"{source}-beam") == min(told["beam"], math.perm(size, shots))
        for proposal in proposals:
            follows_a_network = proposal.method.startswith(source)
            assert (proposal.log_prob is not None) == follows_a_network
            assert (proposal.temperature in asked.temperatures) == proposal.method.endswith("-sample")
            assert (proposal.rank is not None) == (proposal.method in (f"{source}-beam", "retrieval"))


@given(size=st.integers(2, 10), shots=st.integers(1, 3), count=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_retrieval_takes_consecutive_windows_of_the_order_of_similarity(
    size: int, shots: int, count: int, seed: int
) -> None:
    shots = min(shots, size)
    pools = pools_of(2, size, seed)
    query, candidates = units(2, 5, seed=seed), units(2, size, 5, seed=seed + 1)
    asked = ProposalSettings(**NOTHING | {"retrieval": count, "shots": shots})
    made = propose(query, candidates, pools, CosineNetwork(5), asked, "seed")
    for q in range(2):
        cosines = (candidates[q] @ query[q]).tolist()
        ranked = [pools[q][place] for place in sorted(range(size), key=lambda place: -cosines[place])]
        windows = [tuple(ranked[rank : rank + shots]) for rank in range(min(count, size - shots + 1))]
        assert [proposal.pointer for proposal in made[q]] == windows
        assert [proposal.rank for proposal in made[q]] == list(range(len(windows)))


def test_retrieval_by_hand() -> None:
    # Angles to the query of 50°, 10°, 90° and 30°: nearest first these are the ids 11, 13, 10, 12.
    query, candidates = from_angles(50, 10, 90, 30)
    asked = ProposalSettings(**NOTHING | {"retrieval": 5})
    (made,) = propose(query, candidates, [[10, 11, 12, 13]], CosineNetwork(2), asked, "seed")
    assert made == [
        Proposal((11, 13), "retrieval", rank=0),
        Proposal((13, 10), "retrieval", rank=1),
        Proposal((10, 12), "retrieval", rank=2),
    ]


def test_both_orders_of_a_pair_may_stand() -> None:
    query, candidates = from_angles(0, 60)
    asked = ProposalSettings(**NOTHING | {"beam": 5})
    (made,) = propose(query, candidates, [[7, 8]], CosineNetwork(2), asked, "seed")
    assert [proposal.pointer for proposal in made] == [(7, 8), (8, 7)]
    # The cosines 1 and 1/2 over the temperature 0.1 are the logits 10 and 5, so the first choice has the
    # log-probs -log(1 + e^-5) and -log(1 + e^5); what is left has a probability of 1.
    assert made[0].log_prob == pytest.approx(-math.log1p(math.exp(-5)), abs=1e-6)
    assert made[1].log_prob == pytest.approx(-math.log1p(math.exp(5)), rel=1e-6)


def test_of_equal_pointers_the_first_method_counts() -> None:
    # Of two candidates there are two pointers. Beam finds both; retrieval, samples and chance find them again.
    query, candidates = from_angles(0, 60)
    pools = [[7, 8]]

    def methods(**more: int) -> dict[tuple[int, ...], str]:
        asked = ProposalSettings(**NOTHING | {"retrieval": 5, "samples": 40, "random": 40} | more)
        (made,) = propose(query, candidates, pools, CosineNetwork(2), asked, "seed")
        return {proposal.pointer: proposal.method for proposal in made}

    assert methods(beam=5) == {(7, 8): "cosine-beam", (8, 7): "cosine-beam"}
    assert methods(beam=1) == {(7, 8): "cosine-beam", (8, 7): "cosine-sample"}
    assert methods() == {(7, 8): "retrieval", (8, 7): "cosine-sample"}
    assert methods(retrieval=0) == {(7, 8): "cosine-sample", (8, 7): "cosine-sample"}
    assert methods(samples=0) == {(7, 8): "retrieval", (8, 7): "random"}


def test_proposals_say_which_network_they_follow() -> None:
    query, candidates = units(1, 6), units(1, 40, 6, seed=1)
    pools = pools_of(1, 40, 0)
    by_cosine, by_policy = (
        propose(query, candidates, pools, network, ProposalSettings(samples=20), "seed")[0]
        for network in (CosineNetwork(6), policy(6))
    )
    assert {p.method for p in by_cosine} == {"cosine-beam", "cosine-sample", "retrieval", "random"}
    assert {p.method for p in by_policy} == {"policy-beam", "policy-sample", "retrieval", "random"}


def test_beams_and_samples_follow_the_policy_that_is_given() -> None:
    query, candidates = units(3, 6), units(3, 20, 6, seed=1)
    pools = [list(range(20))] * 3  # ids are places here
    network = policy(6)
    made = propose(query, candidates, pools, network, ProposalSettings(samples=10), "seed")
    for q, proposals in enumerate(made):
        followed = [proposal for proposal in proposals if proposal.log_prob is not None]
        pointers = torch.tensor([[proposal.pointer for proposal in followed]])
        beams = [proposal for proposal in followed if proposal.method == "policy-beam"]
        expected = network.log_prob(query[q : q + 1], candidates[q : q + 1], pointers)[0].tolist()
        for proposal, log_prob in zip(followed, expected, strict=True):
            if proposal.temperature in (None, 1.0):
                assert proposal.log_prob == pytest.approx(log_prob, abs=1e-4)
        assert [proposal.rank for proposal in beams] == [0, 1, 2, 3, 4]
        assert sorted((p.log_prob for p in beams), reverse=True) == [p.log_prob for p in beams]


def test_a_tempered_sample_has_its_tempered_log_prob() -> None:
    # One shot of two candidates with the logits 10 and 5: at temperature t the odds are e^(5/t).
    query, candidates = from_angles(0, 60)
    asked = ProposalSettings(**NOTHING | {"samples": 200, "shots": 1, "temperatures": (5.0,)})
    (made,) = propose(query, candidates, [[7, 8]], CosineNetwork(2), asked, "seed")
    likely = 1 / (1 + math.exp(-1))
    log_probs = {proposal.pointer: proposal.log_prob for proposal in made}
    assert log_probs == {
        (7,): pytest.approx(math.log(likely), abs=1e-6),
        (8,): pytest.approx(math.log(1 - likely), abs=1e-6),
    }
    assert {proposal.temperature for proposal in made} == {5.0}


@pytest.mark.parametrize("network", [CosineNetwork(6), policy(6)], ids=["cosine", "policy"])
def test_proposals_depend_on_the_seed_alone(network: PointerNetwork) -> None:
    query, candidates, pools = units(4, 6), units(4, 30, 6, seed=1), pools_of(4, 30, 0)

    def made(seed: str) -> list[list[Proposal]]:
        return propose(query, candidates, pools, network, ProposalSettings(random=3), seed)

    first = made("a")
    torch.manual_seed(1)
    random.seed(1)
    assert made("a") == first
    other = made("b")

    def of(kind: str, proposals: list[list[Proposal]]) -> list[list[tuple[int, ...]]]:
        return [[p.pointer for p in group if p.method.endswith(kind)] for group in proposals]

    assert of("beam", other) == of("beam", first)  # nothing in them is drawn
    assert of("sample", other) != of("sample", first)
    assert of("random", other) != of("random", first)


def test_random_pointers_of_a_unit_differ_from_query_to_query() -> None:
    pools = [list(range(50))] * 5
    asked = ProposalSettings(**NOTHING | {"random": 1})
    made = propose(units(5, 4), units(5, 50, 4, seed=1), pools, CosineNetwork(4), asked, "seed")
    assert len({group[0].pointer for group in made}) > 1
