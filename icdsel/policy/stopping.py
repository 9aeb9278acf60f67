"""A policy that may stop: the probabilities of pointers of different lengths, and the loss that teaches when to stop.

Shapes: B queries, P pointers per query, S shots at most. Log-odds of stopping are those before each of the S choices.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["restricted_log_prob", "stop_log_prob", "stop_loss"]


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


def stop_loss(log_prob: Tensor, stop_logits: Tensor, pointers: Tensor, rewards: Tensor, real: Tensor) -> Tensor:
    """Cost-sensitive logistic loss of the decision to stop after a scored pointer, rather than to continue it.

    Stopping after the pointer i is worth A_i = r_i - V_i more than going on, where V_i is the mean reward of the scored
    pointers that continue i, under the policy restricted to them. The loss is |A_i| · log(1 + exp(∓u_i)), - if A_i > 0:
    its minimum stops where that is better on average over the queries that the policy cannot tell apart, by how much it
    is better and not only how often (Elkan 2001, "The foundations of cost-sensitive learning"). V_i is what the
    policy's own choices earn, not the best: a query is not worth an ICD that the policy does not find.

    Args:
        log_prob: Log-probs of the candidates' choices [B, P]; there is no gradient with respect to them.
        stop_logits: The log-odds u of stopping [B, P, S].
        pointers: Positions [B, P, S]; -1 after the end.
        rewards: Rewards [B, P]; ignored at padding.
        real: False at padding [B, P].

    Returns:
        The loss, a scalar: the mean over the pointers of a length, summed over lengths, the mean over the queries.
    """
    shots = pointers.shape[-1]
    lengths = (pointers >= 0).sum(-1)  # (B, P)
    inside = torch.arange(shots, device=pointers.device) < lengths.unsqueeze(-1)  # (B, P, S)
    same = (pointers.unsqueeze(2) == pointers.unsqueeze(1)) | ~inside.unsqueeze(2)  # (B, P, P, S): i's part of j is i
    longer = lengths.unsqueeze(1) > lengths.unsqueeze(2)
    continues = same.all(-1) & longer & real.unsqueeze(1) & real.unsqueeze(2)  # (B, P, P): j continues i
    earned = torch.where(real, rewards, 0.0).to(log_prob.dtype)  # (B, P)
    with torch.no_grad():
        policy = restricted_log_prob(log_prob, stop_logits, pointers, real).unsqueeze(1)  # (B, 1, P)
        weights = policy.masked_fill(~continues, torch.finfo(policy.dtype).min).softmax(-1)  # (B, P, P)
        advantage = earned - (weights * earned.unsqueeze(1)).sum(-1)  # (B, P)
    odds = stop_logits.gather(-1, lengths.clamp(max=shots - 1).unsqueeze(-1)).squeeze(-1)  # (B, P): after pointer i
    loss = advantage.abs() * F.softplus(-advantage.sign() * odds)
    decided = continues.any(-1)  # (B, P)
    total = loss.new_zeros(())
    for length in range(shots):
        of_length = decided & (lengths == length)
        mean = torch.where(of_length, loss, 0.0).sum(-1) / of_length.sum(-1).clamp(min=1)  # (B,)
        total = total + mean.sum()
    return total / len(pointers)
