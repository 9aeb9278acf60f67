"""Proposes pointers to score for a query: by beam search, nearest neighbours, samples, at random, and by answers."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from icdsel.policy.encoding import Encoded, EncodedCandidates, similarities
from icdsel.policy.network import CosineNetwork, PointerNetwork
from icdsel.records import Pointer, Proposal, QueryGroup, QuestionId, score_of
from icdsel.registry import Registry
from icdsel.retrieval.shared_words import Sharing
from icdsel.retrieval.topk import stable_topk
from icdsel.settings.tables import ProposalSettings


@dataclass(frozen=True, eq=False)
class Unit:
    """A batch of B queries that proposals are computed for, each with a pool of K candidates.

    Attributes:
        query: Embeddings (B, d).
        candidates: Embeddings of the pools (B, K, d), or with their answers (B, K, d + a) as the network takes them;
            (1, …) if all queries share one pool.
        pools: The question_ids of the K candidates of each query.
        network: The policy that beams and samples follow; a `CosineNetwork` if none has been trained yet.
        settings: The number of pointers of each kind, and their length.
        seed: Random draws depend on it and on the query's position in the unit.
        mask: True where a candidate may be chosen (B, K); None for all.
        pool: The encodings of a pool that all queries share; None to encode it for this unit.
        sharing: For each query, the candidates whose answers share words with its reference answer, as positions in
            its pool; empty if no method needs them.
    """

    query: Tensor
    candidates: Tensor
    pools: Sequence[Sequence[QuestionId]]
    network: PointerNetwork
    settings: ProposalSettings
    seed: str
    mask: Tensor | None = None
    pool: EncodedCandidates | None = None
    sharing: Sequence[Sharing] = ()

    @cached_property
    def similar(self) -> Tensor:
        """Cosines of each query with its candidates (B, K); -inf for those that may not be chosen."""
        examples = self.candidates[..., : self.query.shape[-1]]  # a query has no answer to compare theirs with
        similar = similarities(self.query.unsqueeze(1), examples).squeeze(1)
        return similar if self.mask is None else similar.masked_fill(~self.mask, -torch.inf)

    @cached_property
    def encoded(self) -> Encoded:
        """The network's encoding of queries and pools, which beam search and sampling share."""
        return self.network.encode(self.query, self.candidates if self.pool is None else self.pool, self.mask)

    def of_length(self, length: int) -> "Unit":
        """The same unit, to propose pointers of `length` ICDs, with draws of their own.

        What has been computed of queries and candidates is kept: it does not depend on the length.
        """
        if length == self.settings.shots:
            return self
        settings = self.settings.model_copy(update={"shots": length, "min_shots": length})
        shorter = replace(self, settings=settings, seed=f"{self.seed}-{length}")
        vars(shorter).update({name: value for name, value in vars(self).items() if name in ("similar", "encoded")})
        return shorter

    @property
    def source(self) -> str:
        """The name of the network in `Proposal.method`."""
        return "cosine" if isinstance(self.network, CosineNetwork) else "policy"

    def pointer(self, b: int, places: Iterable[int]) -> Pointer:
        """The pointer that consists of these positions in the pool of query `b`."""
        return tuple(self.pools[b][place] for place in places)


Proposals = list[list[Proposal]]
"""The proposals for each query of a unit, in the order in which they are scored."""


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
    """Beam search for the most probable pointers under the network."""
    shots, width = unit.settings.shots, unit.settings.beam
    beams, scores = unit.network.beam(  # (B, W, S), (B, W)
        unit.query, unit.candidates, shots, width, unit.mask, unit.encoded, fixed=True
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
    values, order = stable_topk(unit.similar, unit.settings.retrieval + shots - 1)
    ranked = [row[: int((values[b] > -torch.inf).sum())] for b, row in enumerate(order.tolist())]
    return [
        [
            Proposal(unit.pointer(b, row[rank : rank + shots]), "retrieval", rank=rank)
            for rank in range(len(row) - shots + 1)
        ]
        for b, row in enumerate(ranked)
    ]


def _sample(unit: Unit) -> Proposals:
    """Pointers sampled from the network, at each of the temperatures."""
    generator = torch.Generator().manual_seed(random.Random(unit.seed).getrandbits(63))
    shots, count = unit.settings.shots, unit.settings.samples
    found: Proposals = [[] for _ in unit.pools]
    for temperature in unit.settings.temperatures:
        drawn, scores = unit.network.sample(  # (B, P, S), (B, P)
            unit.query, unit.candidates, shots, count, temperature, generator, unit.mask, unit.encoded, fixed=True
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


def _answers(unit: Unit) -> Proposals:
    """ICDs whose answers share words with the query's reference answer, the most similar to the query first.

    If the reference has several words, there is an ICD for each, in their order, and ICDs with all of them for the
    rest of the pointer. EPR finds its candidates by the reference too: Rubin et al., "Learning to retrieve prompts for
    in-context learning", NAACL 2022.
    """
    return [list(_with_words(unit, b, sharing)) for b, sharing in enumerate(unit.sharing)]


def _with_words(unit: Unit, b: int, sharing: Sharing) -> Iterable[Proposal]:
    shots, similar = unit.settings.shots, unit.similar[b]  # (K,)

    def ranked(places: list[int]) -> list[int]:
        cosines, order = similar[places].sort(descending=True, stable=True)
        return [places[i] for i in order[cosines > -torch.inf].tolist()]

    whole = ranked(sharing.whole)
    each = [ranked(places) for places in sharing.each[:shots]] if 1 < len(sharing.each) <= shots else []
    for rank in range(unit.settings.answers):
        places = [own[rank] for own in each if rank < len(own)]
        rest = [place for place in whole[rank * (shots - len(each)) :] if place not in places]
        if len(places) == len(each) and len(places) + len(rest) >= shots and len({*places}) == len(places):
            yield Proposal(unit.pointer(b, [*places, *rest[: shots - len(places)]]), "answers", rank=rank)


METHODS = Registry(
    "proposal method",
    (
        ProposalMethod("beam", lambda settings: settings.beam, _beam),
        ProposalMethod("retrieval", lambda settings: settings.retrieval, _retrieval),
        ProposalMethod("sample", lambda settings: settings.samples * len(settings.temperatures), _sample),
        ProposalMethod("random", lambda settings: settings.random, _random),
        ProposalMethod("answers", lambda settings: settings.answers, _answers),
    ),
)
"""The methods in order of priority: if several propose the same pointer, the first one's is kept, as in Lever-Plus.

To add one, write its function and call `METHODS.add(ProposalMethod("my-method", most, propose))`; it comes last.

* `most(settings)` returns the maximum number of pointers per query. To let users set it, add a field to
  `ProposalSettings` with default 0. So that existing RL data stay valid, leave it out of `icdsel.settings.identity`
  while it is 0.
* `propose(unit)` returns a list of `Proposal`s for each query. It builds pointers with `unit.pointer(b, places)`, where
  places are positions in the query's pool. A pointer has `unit.settings.shots` distinct positions, and `unit.mask` must
  be True at all of them; for shorter pointers `propose` is called again, with fewer shots. `Proposal.method` is written
  to the RL data as `gen_method`.
* Draw random numbers from a new generator that is seeded from `unit.seed` only, so that an interrupted run resumes with
  the same bytes.
"""


def propose(unit: Unit) -> Proposals:
    """Runs all methods, for each number of ICDs that the settings allow, the largest first.

    Each query's pointers are distinct as ordered sequences. The empty one, of which there is one, comes last.
    """
    settings = unit.settings
    found = [
        method.propose(shorter)
        for shorter in map(unit.of_length, _lengths(settings))
        for method in METHODS.values()
        if method.most(settings)
    ]
    empty = [Proposal((), "zero-shot")] if settings.min_shots == 0 else []
    return [_distinct([*(p for own in found for p in own[b]), *empty]) for b in range(len(unit.pools))]


def pruned(group: QueryGroup, count: int, least: int) -> list[Proposal]:
    """Pointers that lack one ICD of a right pointer, to tell the ICDs that helped from those beside them.

    They are proposed for a query's shortest right pointers, if these have more than the fewest ICDs.

    Args:
        group: A query's scored pointers.
        count: For how many right pointers.
        least: The fewest ICDs in a pointer, above 0.
    """
    known = {candidate.pointer for candidate in group.candidates}
    right = [c.pointer for c in group.candidates if c.error is None and score_of(c, "correct") > 0]
    shortest = min(map(len, right), default=0)
    if shortest <= least:
        return []
    kept = [pointer for pointer in right if len(pointer) == shortest][:count]
    shorter = (pointer[:k] + pointer[k + 1 :] for pointer in kept for k in range(shortest))
    return [Proposal(pointer, "pruned") for pointer in dict.fromkeys(shorter) if pointer not in known]


def most_pointers(settings: ProposalSettings) -> int:
    """The maximum number of pointers per query. There are fewer if several methods propose the same pointer."""
    of_a_length = sum(method.most(settings) for method in METHODS.values())
    return of_a_length * len(_lengths(settings)) + (settings.min_shots == 0) + settings.prune * settings.shots


def _lengths(settings: ProposalSettings) -> range:
    """The numbers of ICDs above 0, the largest first."""
    return range(settings.shots, max(settings.min_shots, 1) - 1, -1)


def _distinct(proposals: Iterable[Proposal]) -> list[Proposal]:
    first: dict[Pointer, Proposal] = {}
    for proposal in proposals:
        first.setdefault(proposal.pointer, proposal)
    return list(first.values())
