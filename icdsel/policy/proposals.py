"""Pointers to score for a query: from a beam search, the nearest neighbours, tempered samples, and at random."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from icdsel.policy.network import CosineNetwork, Encoded, PointerNetwork, similarities
from icdsel.records import Pointer, Proposal
from icdsel.registry import Registry
from icdsel.retrieval.topk import stable_topk
from icdsel.settings.tables import ProposalSettings


@dataclass(frozen=True, eq=False)
class Unit:
    """B queries that get their proposals together, each with a pool of K candidates.

    Attributes:
        query: Embeddings (B, d).
        candidates: Embeddings of the pools (B, K, d); (1, K, d) if all queries share one pool.
        pools: The question_ids of the K candidates of each query.
        network: The policy that beams and samples follow; a `CosineNetwork` if none has been trained yet.
        settings: How many pointers of each kind, and how long they are.
        seed: What random draws depend on, besides the query's position in the unit.
        mask: True where a candidate may be chosen (B, K); None for all.
    """

    query: Tensor
    candidates: Tensor
    pools: Sequence[Sequence[int]]
    network: PointerNetwork
    settings: ProposalSettings
    seed: str
    mask: Tensor | None = None

    @cached_property
    def encoded(self) -> Encoded:
        """What beams and samples share: the network's encoding of queries and pools."""
        return self.network.encode(self.query, self.candidates, self.mask)

    @property
    def source(self) -> str:
        """What the network is called in `Proposal.method`."""
        return "cosine" if isinstance(self.network, CosineNetwork) else "policy"

    def pointer(self, b: int, places: Iterable[int]) -> Pointer:
        """The pointer to these places in the pool of query `b`."""
        return tuple(self.pools[b][place] for place in places)


Proposals = list[list[Proposal]]
"""For each query of a unit its proposals, in the order in which they are scored."""


@dataclass(frozen=True)
class ProposalMethod:
    """A way to find pointers that are worth scoring.

    Attributes:
        name: A unique name.
        most: How many pointers a query gets at most under some settings; with 0, `propose` is not called.
        propose: Finds the pointers of a unit.
    """

    name: str
    most: Callable[[ProposalSettings], int]
    propose: Callable[[Unit], Proposals]


def _beam(unit: Unit) -> Proposals:
    """The pointers of the highest probability under the network."""
    shots, width = unit.settings.shots, unit.settings.beam
    beams, scores = unit.network.beam(  # (B, W, S), (B, W)
        unit.query, unit.candidates, shots, width, unit.mask, unit.encoded
    )
    return [
        [
            Proposal(unit.pointer(b, places), f"{unit.source}-beam", rank=rank, log_prob=log_prob)
            for rank, (places, log_prob) in enumerate(zip(beam, log_probs, strict=True))
            if places[0] >= 0  # -1 where the pool has fewer pointers than the beam is wide
        ]
        for b, (beam, log_probs) in enumerate(zip(beams.tolist(), scores.tolist(), strict=True))
    ]


def _retrieval(unit: Unit) -> Proposals:
    """Windows of the ranking by similarity to the query: ranks (1, 2), (2, 3), … for pointers of two ICDs."""
    shots = unit.settings.shots
    similar = similarities(unit.query.unsqueeze(1), unit.candidates).squeeze(1)  # (B, K)
    if unit.mask is not None:
        similar = similar.masked_fill(~unit.mask, -torch.inf)
    values, order = stable_topk(similar, unit.settings.retrieval + shots - 1)
    ranked = [row[: int((values[b] > -torch.inf).sum())] for b, row in enumerate(order.tolist())]
    return [
        [
            Proposal(unit.pointer(b, row[rank : rank + shots]), "retrieval", rank=rank)
            for rank in range(len(row) - shots + 1)
        ]
        for b, row in enumerate(ranked)
    ]


def _sample(unit: Unit) -> Proposals:
    """Pointers drawn from the network, at each of the temperatures."""
    generator = torch.Generator().manual_seed(random.Random(unit.seed).getrandbits(63))
    shots, count = unit.settings.shots, unit.settings.samples
    found: Proposals = [[] for _ in unit.pools]
    for temperature in unit.settings.temperatures:
        drawn, scores = unit.network.sample(  # (B, P, S), (B, P)
            unit.query, unit.candidates, shots, count, temperature, generator, unit.mask, unit.encoded
        )
        for b, (sample, log_probs) in enumerate(zip(drawn.tolist(), scores.tolist(), strict=True)):
            found[b] += [
                Proposal(unit.pointer(b, places), f"{unit.source}-sample", log_prob=log_prob, temperature=temperature)
                for places, log_prob in zip(sample, log_probs, strict=True)
            ]
    return found


def _random(unit: Unit) -> Proposals:
    """Pointers drawn uniformly from the pool."""

    def drawn(b: int) -> Iterable[Pointer]:
        shots, size = unit.settings.shots, len(unit.pools[b])
        hidden = set() if unit.mask is None else set((~unit.mask[b]).nonzero().flatten().tolist())
        rng = random.Random(f"{unit.seed}-random-{b}")
        for _ in range(unit.settings.random):
            places = rng.sample(range(size), min(size, shots + len(hidden)))
            yield unit.pointer(b, [place for place in places if place not in hidden][:shots])

    return [[Proposal(pointer, "random") for pointer in drawn(b)] for b in range(len(unit.pools))]


METHODS = Registry(
    "proposal method",
    (
        ProposalMethod("beam", lambda settings: settings.beam, _beam),
        ProposalMethod("retrieval", lambda settings: settings.retrieval, _retrieval),
        ProposalMethod("sample", lambda settings: settings.samples * len(settings.temperatures), _sample),
        ProposalMethod("random", lambda settings: settings.random, _random),
    ),
)
"""The methods in order of priority: of equal pointers the first method's is kept, as in Lever-Plus.

To add one, write its function and call `METHODS.add(ProposalMethod("my-method", most, propose))`; it comes last.

* `most(settings)` is how many pointers a query gets at most. To let users set it, add a field to `ProposalSettings`
  with default 0 and, so that existing RL data stay valid, leave it out of `icdsel.settings.identity` while it is 0.
* `propose(unit)` returns a list of `Proposal`s for each query. It builds pointers with `unit.pointer(b, places)`, where
  places are positions in the query's pool. A pointer has `unit.settings.shots` places, none of them twice and none
  where `unit.mask` is False. Its name in the RL data (`gen_method`) is `Proposal.method`.
* Random draws come from a generator of its own, seeded from `unit.seed`: they then depend on nothing else, and an
  interrupted run resumes with the same bytes.
"""


def propose(unit: Unit) -> Proposals:
    """The proposals of all methods for each query, without equal pointers (as ordered sequences)."""
    found = [method.propose(unit) for method in METHODS.values() if method.most(unit.settings)]
    return [_distinct(proposal for own in found for proposal in own[b]) for b in range(len(unit.pools))]


def most_pointers(settings: ProposalSettings) -> int:
    """How many pointers a query gets at most; fewer if several methods find the same one."""
    return sum(method.most(settings) for method in METHODS.values())


def _distinct(proposals: Iterable[Proposal]) -> list[Proposal]:
    first: dict[Pointer, Proposal] = {}
    for proposal in proposals:
        first.setdefault(proposal.pointer, proposal)
    return list(first.values())
