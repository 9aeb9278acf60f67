"""The probabilities of a policy that may stop: of pointers of different lengths, the empty one included.

Shapes: B queries, P pointers per query, S shots at most. Log-odds of stopping are those before each of the S choices.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["restricted_log_prob", "stop_log_prob"]


def stop_log_prob(stop_logits: Tensor, pointers: Tensor) -> Tensor:
    """The log-prob [B, P] of going on at every step of `pointers` [B, P, S], and of stopping after the last.

    A pointer of the maximum length S does not stop: it ends.
    """
    padding = pointers < 0  # (B, P, S)
    first = padding & (padding.cumsum(-1) == 1)  # where the pointer stops
    decided = torch.where(first, F.logsigmoid(stop_logits), F.logsigmoid(-stop_logits))
    return decided.masked_fill(padding & ~first, 0.0).sum(-1)


def restricted_log_prob(log_prob: Tensor, stop_logits: Tensor | None, pointers: Tensor, real: Tensor) -> Tensor:
    """The policy restricted to the scored pointers of each query, as log-probs that sum to 1 over the group [B, P].

    Without STOP, it is π_i / Σ_j π_j. With it, that ratio is taken over the pointers of the same length, and multiplied
    by the probability that the policy stops at this length: otherwise the empty pointer, of which there is one, would
    count far too much beside the few scored ones of thousands of pairs.

    Args:
        log_prob: Log-probs of the candidates' choices, without those of stopping [B, P].
        stop_logits: The log-odds of stopping [B, P, S]; None if the policy may not stop.
        pointers: Positions [B, P, S]; -1 after the end.
        real: False at padding [B, P], where the result is the lowest finite number.
    """
    least = torch.finfo(log_prob.dtype).min
    if stop_logits is not None:
        lengths = (pointers >= 0).sum(-1)  # (B, P)
        together = lengths.unsqueeze(-1) == lengths.unsqueeze(-2)  # (B, P, P): of the same length
        others = log_prob.unsqueeze(-2).masked_fill(~(together & real.unsqueeze(-2)), least)  # (B, P, P)
        log_prob = torch.where(real, log_prob - others.logsumexp(-1) + stop_log_prob(stop_logits, pointers), least)
    return log_prob.masked_fill(~real, least).log_softmax(-1)
