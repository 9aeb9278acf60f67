"""Greedy choice from a pool that all queries share, such as the whole training set, in bounded memory."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from icdsel.policy.encoding import TEMPERATURE, EncodedCandidates
from icdsel.policy.scan import RunningLogSum, RunningTop, cosines

__all__ = ["QUERIES", "SharedChoice", "choose"]

QUERIES = 128
"""Queries that choose together. With more, a query takes no less time; with 32 it takes half as much again."""


class SharedChoice(NamedTuple):
    """Pointers that were chosen greedily.

    Attributes:
        positions: int64 [B, S], -1 after the policy stopped; ties go to the lowest position.
        step_log_probs: The log-prob of each step under the policy [B, S], which stopping is part of: of the decision to
            go on and the choice, or of the decision to stop; 0 after it. None if they were not asked for.
    """

    positions: Tensor
    step_log_probs: Tensor | None

    @property
    def log_probs(self) -> Tensor | None:
        """The log-probs of the pointers [B]; None if they were not asked for."""
        return None if self.step_log_probs is None else self.step_log_probs.sum(-1)


class _Policy(Protocol):
    """What the choice needs of a policy."""

    def shared_state(self, query: Tensor, pool: EncodedCandidates, mask: Tensor | None) -> Tensor: ...

    def moved(self, state: Tensor, icd: Tensor) -> Tensor: ...

    def stop(self, state: Tensor, step: int) -> Tensor | None: ...


def choose(
    policy: _Policy,
    query: Tensor,
    pool: EncodedCandidates,
    shots: int,
    mask: Tensor | None,
    scored: bool = False,
    fixed: bool = False,
    stop_offset: float = 0.0,
) -> SharedChoice:
    """Chooses the best candidate at every step, or stops as `decoding.greedy` does.

    Args:
        policy: Encodes queries and moves their state.
        query: Query embeddings [B, d].
        pool: N encoded candidates.
        shots: ICDs per pointer, S; at most the number of candidates that may be chosen.
        mask: True where a candidate may be chosen, bool [B, N]; None for all.
        scored: Whether to compute log-probs.
        fixed: Whether a policy that may stop must not.
        stop_offset: Added to the log-odds of stopping.
    """
    parts = [
        _choose(policy, query[at], pool, shots, None if mask is None else mask[at], scored, fixed, stop_offset)
        for at in (slice(start, start + QUERIES) for start in range(0, len(query), QUERIES))
    ]
    positions, log_probs = zip(*parts, strict=True)
    return SharedChoice(torch.cat(positions), torch.cat(log_probs) if scored else None)


def _choose(
    policy: _Policy,
    query: Tensor,
    pool: EncodedCandidates,
    shots: int,
    mask: Tensor | None,
    scored: bool,
    fixed: bool,
    stop_offset: float,
) -> tuple[Tensor, Tensor]:
    state = policy.shared_state(query, pool, mask)  # (B, h)
    taken = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    ended = torch.zeros(len(query), dtype=torch.bool, device=query.device)
    shown: list[Tensor] = []
    log_probs: list[Tensor] = []
    for step in range(shots):
        if step:
            state = policy.moved(state, pool.unit[taken[:, -1]])
        stop = None if fixed else policy.stop(state, step)  # (B,)
        best, gained = _best(state, pool, mask, taken, scored)  # (B,), (B,)
        taken = torch.cat([taken, best.unsqueeze(1)], dim=1)
        if stop is not None:
            stops = ~ended & (stop + stop_offset > 0)
            gained = torch.where(stops, F.logsigmoid(stop), gained + F.logsigmoid(-stop)).masked_fill(ended, 0.0)
            ended = ended | stops
        log_probs.append(gained)
        shown.append(best.masked_fill(ended, -1))
    return torch.stack(shown, dim=1), torch.stack(log_probs, dim=1)


def _best(
    state: Tensor, pool: EncodedCandidates, mask: Tensor | None, taken: Tensor, scored: bool
) -> tuple[Tensor, Tensor]:
    """The positions of the best candidates [B], and their log-probs [B]; zeros if they are not `scored`."""
    best, normaliser = RunningTop(1), RunningLogSum()
    for start, logits in cosines(state, pool.unit, mask, taken):
        best.add(start, logits.div_(TEMPERATURE))
        if scored:
            normaliser.add(logits)
    gained = best.values[:, 0] - normaliser.value if scored else state.new_zeros(len(state))
    return best.positions[:, 0], gained
