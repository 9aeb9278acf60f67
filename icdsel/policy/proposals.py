"""Which pointers are tried for a query: beam, tempered samples, nearest neighbours, chance."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from icdsel.policy.network import CosineNetwork, PointerNetwork, similarities
from icdsel.records import Proposal
from icdsel.retrieval.topk import stable_topk
from icdsel.settings.tables import ProposalSettings

# Of equal pointers the one of the first method in this order is kept, as in the original.
_PRIORITY = ("beam", "retrieval", "sample", "random")


def propose(
    query: Tensor,
    candidates: Tensor,
    pools: Sequence[Sequence[int]],
    network: PointerNetwork,
    settings: ProposalSettings,
    seed: str,
    mask: Tensor | None = None,
) -> list[list[Proposal]]:
    """Proposals for a unit of B queries, without repetition among a query's ordered sequences.

    Args:
        query: Embeddings [B, d].
        candidates: Embeddings of the pools [B, K, d]; [1, K, d] where all queries share one pool.
        pools: The question_ids of the K candidates of each query.
        network: The policy that beams and samples follow; a `CosineNetwork` where there is none yet.
        settings: How many of each kind.
        seed: What the draws depend on, besides the place in the unit.
        mask: True where a candidate may be chosen [B, K]; None for all.

    Returns:
        For each query its proposals, in the order beam, retrieval, samples, random.
    """
    source = "cosine" if isinstance(network, CosineNetwork) else "policy"
    shots, generator = settings.shots, torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
    found: list[dict[str, list[Proposal]]] = [{method: [] for method in _PRIORITY} for _ in pools]

    def pointer(b: int, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(pools[b][place] for place in places)

    encoded = network.encode(query, candidates, mask)
    if settings.beam:
        beams, scores = network.beam(query, candidates, shots, settings.beam, mask, encoded)  # (B, W, S), (B, W)
        for b, (rows, values) in enumerate(zip(beams.tolist(), scores.tolist(), strict=True)):
            found[b]["beam"] = [
                Proposal(pointer(b, row), f"{source}-beam", rank=rank, log_prob=value)
                for rank, (row, value) in enumerate(zip(rows, values, strict=True))
                if row[0] >= 0
            ]
    if settings.samples:
        for temperature in settings.temperatures:
            drawn, scores = network.sample(
                query, candidates, shots, settings.samples, temperature, generator, mask, encoded
            )
            for b, (rows, values) in enumerate(zip(drawn.tolist(), scores.tolist(), strict=True)):
                found[b]["sample"] += [
                    Proposal(pointer(b, row), f"{source}-sample", log_prob=value, temperature=temperature)
                    for row, value in zip(rows, values, strict=True)
                ]
    if settings.retrieval:
        similar = similarities(query.unsqueeze(1), candidates).squeeze(1)  # (B, K)
        if mask is not None:
            similar = similar.masked_fill(~mask, -torch.inf)
        values, order = stable_topk(similar, settings.retrieval + shots - 1)
        for b, row in enumerate(order.tolist()):  # consecutive ranks: (1, 2), (2, 3), …
            ranked = row[: int((values[b] > -torch.inf).sum())]
            found[b]["retrieval"] = [
                Proposal(pointer(b, ranked[rank : rank + shots]), "retrieval", rank=rank)
                for rank in range(min(settings.retrieval, len(ranked) - shots + 1))
            ]
    for b, pool in enumerate(pools):
        hidden = set() if mask is None else set((~mask[b]).nonzero().flatten().tolist())
        rng = random.Random(f"{seed}-random-{b}")
        for _ in range(settings.random):
            places = rng.sample(range(len(pool)), min(len(pool), shots + len(hidden)))
            free = [place for place in places if place not in hidden][:shots]
            found[b]["random"].append(Proposal(pointer(b, free), "random"))
    return [_distinct([p for method in _PRIORITY for p in by_method[method]]) for by_method in found]


def _distinct(proposals: Sequence[Proposal]) -> list[Proposal]:
    first: dict[tuple[int, ...], Proposal] = {}
    for proposal in proposals:
        first.setdefault(proposal.pointer, proposal)
    return list(first.values())
