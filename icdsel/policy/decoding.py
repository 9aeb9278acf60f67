"""Three ways to choose pointers with a policy: the best candidate at every step, beam search, and samples.

They see a policy only through its `Steps`, never choose a candidate twice, and know nothing of gradients or dropout,
which `PointerNetwork` switches off around them.

Shapes: B queries, K candidates each, P pointers per query, S shots, hidden width h.
"""

from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from icdsel.retrieval.topk import stable_topk

__all__ = ["Steps", "beam", "greedy", "sample"]

E = TypeVar("E", contravariant=True)


class Steps(Protocol[E]):
    """What decoding needs of a policy; `E` is its encoding of queries and pools."""

    def start(self, encoded: E, rows: int) -> tuple[Tensor, Tensor]:
        """The state [B, rows, h] and the mask of chosen candidates [B, rows, K] before the first step."""
        ...

    def step(self, encoded: E, state: Tensor | None, chosen: Tensor) -> Tensor:
        """The logits [B, P, K] of one step; `state` is None for the first step."""
        ...

    def stop(self, state: Tensor, step: int) -> Tensor | None:
        """The log-odds of stopping before the choice number `step` [B, P]; None if the policy may not stop."""
        ...

    def advance(self, encoded: E, state: Tensor, chosen: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """The state and the mask of chosen candidates after `choice` [B, P]."""
        ...


def greedy(policy: Steps[E], encoded: E, shots: int, fixed: bool = False, stop_offset: float = 0.0) -> Tensor:
    """Chooses the best candidate at every step: pointers [B, S]; ties go to the lowest position.

    A policy that may stop does so where its log-odds of stopping plus `stop_offset` are above 0, unless `fixed`; then
    the rest of the pointer is -1.
    """
    state, chosen = policy.start(encoded, 1)
    choices: list[Tensor] = []
    for _ in range(shots):
        if choices:
            state, chosen = policy.advance(encoded, state, chosen, choices[-1])
        logits = policy.step(encoded, state if choices else None, chosen)  # (B, 1, K)
        choice = logits.masked_fill(chosen, -torch.inf).argmax(-1)  # (B, 1)
        stop = None if fixed else policy.stop(state, len(choices))  # (B, 1)
        if stop is not None:
            choice = choice.masked_fill(stop + stop_offset > 0, -1)
            choice = choice if not choices else choice.masked_fill(choices[-1] < 0, -1)
        choices.append(choice)
    return torch.cat(choices, dim=1)


def beam(policy: Steps[E], encoded: E, shots: int, width: int, fixed: bool = False) -> tuple[Tensor, Tensor]:
    """Finds the pointers of the highest log-prob by beam search; without `fixed` a policy may stop.

    Returns:
        Pointers [B, W, S] and their log-probs [B, W], W = `width`, best first; ties are in the order of their prefixes,
        then of the pool, STOP last. If fewer than W distinct pointers exist, the rest is -1 and -inf.
    """
    state, chosen = policy.start(encoded, 1)  # (B, W, h), (B, W, K): one beam at first
    pointers = chosen.new_full((*chosen.shape[:2], 0), -1, dtype=torch.int64)  # (B, W, t)
    log_prob = state.new_zeros(state.shape[:2])  # (B, W)
    for step in range(shots):
        if step:
            state, chosen = policy.advance(encoded, state, chosen, pointers[..., -1])
        logits = policy.step(encoded, state if step else None, chosen)
        stopped = pointers[..., -1] < 0 if step else None  # (B, W)
        steps = _log_probs(logits, None if fixed else policy.stop(state, step), stopped)
        places = chosen.shape[-1]
        steps[..., :places].masked_fill_(chosen, -torch.inf)
        size = steps.shape[-1]  # K, or K + 1 with STOP
        total = (log_prob.unsqueeze(-1) + steps).flatten(1)  # (B, W * size)
        log_prob, order = stable_topk(total, width)  # (B, W)
        lacking = width - order.shape[1]  # above 0 if the pool is smaller than the beam
        log_prob, order = F.pad(log_prob, (0, lacking), value=-torch.inf), F.pad(order, (0, lacking))
        parent, choice = order // size, order % size  # (B, W)
        choice = choice.masked_fill(choice == places, -1)  # STOP
        state, chosen, pointers = (_rows(x, parent) for x in (state, chosen, pointers))
        pointers = torch.cat([pointers, choice.unsqueeze(-1)], dim=-1)
    return pointers.masked_fill((log_prob == -torch.inf).unsqueeze(-1), -1), log_prob


def sample(
    policy: Steps[E],
    encoded: E,
    shots: int,
    count: int,
    temperature: float,
    generator: torch.Generator | None,
    fixed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draws independent samples, without replacement inside a pointer; without `fixed` a policy may stop.

    Returns:
        Pointers [B, count, S] and their log-probs [B, count] under the tempered distribution.
    """
    state, chosen = policy.start(encoded, count)
    log_prob = state.new_zeros(state.shape[:2])  # (B, count)
    choices: list[Tensor] = []
    for _ in range(shots):
        if choices:
            state, chosen = policy.advance(encoded, state, chosen, choices[-1])
            logits = policy.step(encoded, state, chosen).masked_fill(chosen, -torch.inf)  # (B, count, K)
            stop = policy.stop(state, len(choices))  # (B, count)
        else:  # the first step has the same distribution for all samples
            logits = policy.step(encoded, None, chosen[:, :1])  # (B, 1, K)
            stop = policy.stop(state[:, :1], 0)  # (B, 1)
        stop = None if fixed or stop is None else stop / temperature
        steps = _log_probs(logits / temperature, stop, choices[-1] < 0 if choices else None)
        choice = _drawn(steps, count, generator)  # (B, count)
        log_prob = log_prob + steps.expand(-1, count, -1).gather(-1, choice.unsqueeze(-1)).squeeze(-1)
        choices.append(choice.masked_fill(choice == chosen.shape[-1], -1))  # STOP
    return torch.stack(choices, dim=-1), log_prob


def _log_probs(logits: Tensor, stop: Tensor | None, stopped: Tensor | None) -> Tensor:
    """The log-probs of one step's choices [B, P, K], or with a STOP behind them [B, P, K + 1].

    Args:
        logits: The logits of the candidates [B, P, K].
        stop: The log-odds of stopping [B, P]; None if the policy may not stop.
        stopped: Pointers that ended before [B, P]: they can only stop again, with probability 1.
    """
    steps = logits.log_softmax(-1)
    if stop is None:
        return steps
    steps = torch.cat([steps + F.logsigmoid(-stop).unsqueeze(-1), F.logsigmoid(stop).unsqueeze(-1)], dim=-1)
    if stopped is not None:
        steps = steps.masked_fill(stopped.unsqueeze(-1), -torch.inf)
        steps[..., -1].masked_fill_(stopped, 0.0)
    return steps


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Takes `rows` [B, W] of `x` [B, W, n]."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _drawn(log_probs: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draws one position [B, P] from each distribution [B, P, K], or P = `count` positions from one, [B, 1, K].

    Each draw uses one uniform number, drawn on the generator's device. A position of probability 0 is never drawn: the
    result is the first position at which the cumulative distribution exceeds the number.
    """
    if log_probs.device.type == "mps":  # Apple's GPUs have no float64
        return _drawn(log_probs.cpu(), count, generator).to(log_probs.device)
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)  # (B, P, K) or (B, 1, K)
    total = cumulative[..., -1:]
    device = log_probs.device if generator is None else generator.device
    shape = (*log_probs.shape[:2], count // log_probs.shape[1])
    uniform = torch.rand(shape, dtype=torch.float64, device=device, generator=generator).to(log_probs.device)
    number = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))  # below the total
    return torch.searchsorted(cumulative, number, right=True).view(len(log_probs), count)
