"""The training objectives: reward-weighted cross-entropy (RCE) and GRPO, on plain tensors.

Groups differ in size, so they are padded. In `rce_loss` a pointer of -1s is padding; in `grpo_loss` and
`advantages`, which take no pointers, **a reward of NaN marks padding**. Padding affects neither losses nor
normalisations nor gradients.

Sources: GRPO and its advantage are from Shao et al. 2024 (arXiv 2402.03300, section 4.1), the clipped surrogate is
from Schulman et al. 2017 (arXiv 1707.06347, equation 7), the k3 estimator from Schulman 2020 ("Approximating KL
divergence"). The docstrings state where Lever-Plus differs from these.

Shapes: B queries, P pointers per query (a *group*), S shots, K candidates.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from icdsel.policy.stopping import stop_log_prob, stop_loss
from icdsel.settings.presets import STD_FLOOR

__all__ = [
    "adapt_kl_beta",
    "advantages",
    "grpo_loss",
    "rce_loss",
    "rce_temperature",
    "signal_strength",
]

BEST_TEMPERATURE = 0.05
"""Pointers whose reward is this much below the best of their query count 1 / e as much in RCE over the best ones."""

ROBUSTNESS = 0.7
"""The exponent q of the generalised cross-entropy of Zhang and Sabuncu 2018 (arXiv 1805.07836), and their default.

With 0 it is -log P, which dwells on queries whose best pointers stay improbable. Many of these have a wrong reference
answer, so that a pointer was right by accident; with 1 it is 1 - P, which learns slowly at first
(docs/selectors.md)."""

_LARGEST_LOG_RATIO = 20.0
"""Above it, ratios of probabilities grow linearly: exp overflows in float32 at 88.7, and inf · 0 is NaN."""


def rce_loss(
    step_logits: Tensor,
    pointers: Tensor,
    rewards: Tensor,
    temperature: float | Tensor,
    label_smoothing: float = 0.0,
    over: Literal["pool", "group", "best"] = "pool",
    pool_weight: float = 0.0,
    stop_logits: Tensor | None = None,
) -> Tensor:
    """Reward-weighted cross-entropy: mean_B Σ_i w_i · -log q_i, w = softmax(r / τ) over a query's pointers.

    Over the *pool*, log q_i = Σ_t log softmax(logits_it)[label_it], the log-prob of the whole pointer. That is
    Lever-Plus's loss: every pointer of a query is imitated to some degree, even one without reward.

    Over the *group*, q is the policy restricted to the query's scored pointers, q_i = π_i / Σ_j π_j: a better pointer
    only has to be more likely than a worse one (ListNet's top-one loss: Cao et al. 2007, "Learning to rank: from
    pairwise approach to listwise approach"). A group of equal rewards carries no information and is left out; one whose
    rewards hardly differ counts little, by min(1, std / `STD_FLOOR`).

    The order within the group says nothing about the rest of the pool. `pool_weight` adds, for each group, that much of
    -log Σ_i v_i π_i with v = (r - min) / (max - min): the policy's expected reward over its pool, if pointers without a
    score are worth no more than the group's worst. It keeps the policy near what was scored and good.

    A policy that may stop (`stop_logits`) learns from pointers of different lengths. Over the pool, log q_i includes
    the log-prob of stopping after the pointer. Over the group, pointers of the same length are ordered as above, for
    each length; when to stop is learnt from -log Σ_i v_i q_i, the policy's expected reward over the group, with the
    `restricted_log_prob` q: it stops where its own choices earn less than stopping does.

    Over the *best*, the loss is (1 - P^q) / q with q = `ROBUSTNESS`, P = Σ_i v_i π_i, v = exp((r - max r) /
    `BEST_TEMPERATURE`), and π the probability of the whole pointer in the pool, stopping included. The policy has to
    find one of the best scored pointers: of equally right ones the likeliest, and with a price the shortest. A pointer
    without a score counts as wrong. Queries of which no pointer earned anything are left out: with a price, they would
    only teach to stop. A policy that may stop also learns the best of each length above 0 by itself, without STOP, so
    that it knows what to show where it must show as many.

    Args:
        step_logits: Teacher-forced logits [B, P, S, K]; -inf where a candidate may not be chosen.
        pointers: Positions in the pool [B, P, S]; -1 is padding.
        rewards: Rewards [B, P]; ignored at padding, where they may be NaN. With `stop_logits` NaN marks padding, since
            a pointer of -1s is the empty one.
        temperature: τ; the lower it is, the more weight the best pointers of a group have.
        label_smoothing: Share of the target that is spread evenly over the candidates that may be chosen, as in
            `torch.nn.functional.cross_entropy`. As in Lever-Plus, candidates chosen earlier (whose logit is -100) are
            included. With `over="group"` it is spread over the group's pointers.
        over: What the policy is normalised over: the pool or the group; `best` is over the pool too.
        pool_weight: With `over="group"`, the weight of the expected reward over the pool.
        stop_logits: The log-odds of stopping [B, P, S], if the policy may stop.

    Returns:
        The loss, a scalar: the mean over the queries that have a pointer, or, with `over="group"`, over those with a
        signal.

    Raises:
        ValueError: The shapes do not match.
    """
    if step_logits.shape[:3] != pointers.shape or pointers.shape[:2] != rewards.shape:
        raise ValueError(
            "step_logits, pointers and rewards must be [B, P, S, K], [B, P, S] and [B, P], not "
            f"{list(step_logits.shape)}, {list(pointers.shape)} and {list(rewards.shape)}"
        )
    padding = pointers < 0  # (B, P, S)
    real = ~padding.all(-1) if stop_logits is None else ~rewards.isnan()  # (B, P)
    # Padding is replaced before the softmax: in a step without any candidate all logits are -inf, and the gradient
    # would be NaN.
    logits = step_logits.masked_fill(padding.unsqueeze(-1), 0.0)
    log_probs = logits.log_softmax(-1)  # (B, P, S, K)
    cross_entropy = -log_probs.gather(-1, pointers.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, P, S)
    if over == "group":
        log_prob = -cross_entropy.masked_fill(padding, 0.0).sum(-1)  # (B, P)
        order = partial(
            _rce_over_group,
            log_prob,
            rewards,
            temperature=temperature,
            label_smoothing=label_smoothing,
            pool_weight=pool_weight,
        )
        if stop_logits is None:
            return order(real)
        stopping = stop_loss(log_prob, stop_logits, pointers, rewards, real)
        return sum((order(own) for own in _by_length(pointers, real)), stopping)
    if over == "best":
        log_prob = -cross_entropy.masked_fill(padding, 0.0).sum(-1)  # (B, P)
        if stop_logits is None:
            return _best_loss(log_prob, rewards, real)
        of_all = _best_loss(log_prob + stop_log_prob(stop_logits, pointers), rewards, real)
        return sum((_best_loss(log_prob, rewards, own) for own in _by_length(pointers, real)), of_all)
    if label_smoothing:
        allowed = logits > -torch.inf
        spread = -torch.where(allowed, log_probs, 0.0).sum(-1) / allowed.sum(-1)  # (B, P, S)
        cross_entropy = (1 - label_smoothing) * cross_entropy + label_smoothing * spread
    cross_entropy = cross_entropy.masked_fill(padding, 0.0).sum(-1)  # (B, P)
    if stop_logits is not None:
        cross_entropy = cross_entropy - stop_log_prob(stop_logits, pointers)
    weights = _softmax(rewards.to(logits.dtype) / temperature, real)  # (B, P)
    return (weights * cross_entropy).sum() / real.any(-1).sum().clamp(min=1)


def _by_length(pointers: Tensor, real: Tensor) -> list[Tensor]:
    """For each number of ICDs from 1 on, the pointers (B, P) of `real` that have as many."""
    lengths = (pointers >= 0).sum(-1)  # (B, P)
    return [real & (lengths == length) for length in range(1, pointers.shape[-1] + 1)]


def _rce_over_group(
    log_prob: Tensor,
    rewards: Tensor,
    real: Tensor,
    temperature: float | Tensor,
    label_smoothing: float,
    pool_weight: float,
) -> Tensor:
    """The mean cross-entropy within the groups (B, P) that have a signal; 0 if none has."""
    target = _softmax(rewards.to(log_prob.dtype) / temperature, real)  # (B, P)
    target = (1 - label_smoothing) * target + label_smoothing * _softmax(torch.zeros_like(log_prob), real)
    restricted = log_prob.masked_fill(~real, torch.finfo(log_prob.dtype).min).log_softmax(-1)  # (B, P)
    cross_entropy = -(target * restricted.masked_fill(~real, 0.0)).sum(-1)  # (B,)
    if pool_weight:
        cross_entropy = cross_entropy - pool_weight * _log_expected_reward(log_prob, rewards, real)
    signal = _has_signal(torch.where(real, rewards, 0.0), real)  # (B,)
    strength = _strength(rewards.to(log_prob.dtype), real).squeeze(-1)  # (B,)
    return (cross_entropy * strength * signal).sum() / signal.sum().clamp(min=1)


def _best_loss(log_prob: Tensor, rewards: Tensor, real: Tensor) -> Tensor:
    """(1 - P^q) / q, P = Σ_i v_i π_i: the mean over the groups (B, P) with a signal that earned something, else 0."""
    best = torch.where(real, rewards, -torch.inf).amax(-1, keepdim=True)  # (B, 1)
    # At padding, the lowest finite number: the logsumexp of a row of -inf has NaN as its gradient.
    weighted = torch.where(real, log_prob + (rewards - best) / BEST_TEMPERATURE, torch.finfo(log_prob.dtype).min)
    learnt = _has_signal(torch.where(real, rewards, 0.0), real) & (best.squeeze(-1) > 0)  # (B,)
    missed = -torch.expm1(ROBUSTNESS * weighted.logsumexp(-1)) / ROBUSTNESS  # (B,)
    return torch.where(learnt, missed, 0.0).sum() / learnt.sum().clamp(min=1)


def _log_expected_reward(log_prob: Tensor, rewards: Tensor, real: Tensor) -> Tensor:
    """The log of Σ_i v_i π_i for each group [B], with rewards scaled to v in [0, 1]; finite even without a signal."""
    tiny = torch.finfo(log_prob.dtype).tiny
    least = torch.where(real, rewards, torch.inf).amin(-1, keepdim=True)
    most = torch.where(real, rewards, -torch.inf).amax(-1, keepdim=True)
    value = torch.where(real, (rewards - least) / (most - least).clamp(min=tiny), 0.0).to(log_prob.dtype)  # (B, P)
    weighted = log_prob + value.clamp(min=tiny).log()
    return torch.where(value > 0, weighted, torch.finfo(log_prob.dtype).min).logsumexp(-1)


def _softmax(scores: Tensor, real: Tensor) -> Tensor:
    """The softmax [B, P] over real entries; 0 at padding. A row of padding yields no NaN in value or gradient."""
    # Padding gets the lowest finite number instead of -inf, because the softmax of a row of -inf is NaN.
    kept = torch.where(real, scores, torch.finfo(scores.dtype).min)
    return torch.where(real, kept.softmax(-1), 0.0)


def advantages(
    rewards: Tensor, *, std_floor: float = STD_FLOOR, clamp: float = 5.0, raw_rewards: Tensor | None = None
) -> Tensor:
    """Computes how much better than its group a pointer is: (r - mean) / max(std, std_floor), within ±clamp.

    The floor of the (unbiased) standard deviation and the clamp are Lever-Plus's. There the floor has no effect on
    rewards that were normalized before, whose std is 1 even if the raw ones differ by rounding errors. With
    `raw_rewards` the floor applies to these: (r - mean) / std · std_raw / max(std_raw, std_floor).

    Args:
        rewards: Rewards [B, P]; NaN is padding.
        std_floor: Minimum of the divisor.
        clamp: Largest magnitude of an advantage.
        raw_rewards: The rewards before they were normalized [B, P], or None.

    Returns:
        Advantages [B, P]; exactly 0 at padding and in a group without a signal, that is, one with fewer than two
        rewards or with exactly equal rewards.

    Raises:
        ValueError: `rewards` is not [B, P].
    """
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [B, P], not {list(rewards.shape)}")
    real = ~rewards.isnan()
    centred = torch.where(real, rewards - _mean(rewards, real).unsqueeze(-1), 0.0)  # (B, P)
    std = _std(rewards, real)  # (B, 1)
    if raw_rewards is None:
        scaled = (centred / std.clamp(min=std_floor)).clamp(-clamp, clamp)
    else:
        least = torch.finfo(std.dtype).tiny
        scaled = (centred / std.clamp(min=least) * _strength(raw_rewards, real, std_floor)).clamp(-clamp, clamp)
    # Because the mean is rounded, equal rewards would not become exact zeros.
    return torch.where(_has_signal(rewards, real).unsqueeze(-1), scaled, 0.0)


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    rewards: Tensor,
    *,
    clip_epsilon: float = 0.2,
    kl_beta: float | Tensor,
    top_k: int | None = None,
    kl: Literal["seed", "k3"] = "seed",
    ref_log_prob: Tensor | None = None,
    raw_rewards: Tensor | None = None,
    by_old_policy: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes GRPO's loss on scored pointers: the clipped policy term plus `kl_beta` times a KL penalty.

    The policy term is the mean of -min(ρA, clip(ρ, 1 ± ε)A), where ρ = π_new / π_old of whole pointers and A is
    computed by `advantages`. It is averaged over the pointers of each group, then over the groups **with a signal**,
    so that the others do not dilute it. The KL term is averaged over the pointers of each group, then over all groups.
    With one query per step, as in Lever-Plus, both terms equal Lever-Plus's.

    With `by_old_policy`, a pointer counts in proportion to its probability under π_old instead of as one of P. The mean
    over distinct pointers, of which some are samples of π_old and some are not, then is an expectation under π_old
    restricted to them, and its gradient at ρ = 1 is close to that of the expected reward (docs/selectors.md). The ratio
    is that of a whole pointer; in the paper, it is that of a token.

    The pointers are not samples from the policy, so neither KL term is an unbiased estimate here. Both are 0 if the two
    policies agree on the set, and positive otherwise:

    * ``seed``: x - 1 - log x with x = π_new / π_ref, as in Lever-Plus. It grows exponentially with the log-ratio of
      pointers that the policy comes to favour; on samples from π_ref it would be unbiased for KL(π_ref ‖ π_new).
    * ``k3``: the same with x = π_ref / π_new; on samples from π_new it would be unbiased for KL(π_new ‖ π_ref).

    Args:
        log_prob: Log-probs of the pointers under the policy being trained [B, P], with gradients.
        old_log_prob: Log-probs under π_old, the policy that ρ is relative to [B, P].
        rewards: Rewards [B, P]; NaN is padding.
        clip_epsilon: ε.
        kl_beta: Weight of the KL term.
        top_k: Use only this many pointers of the highest reward, as Lever-Plus does (3, later 5); None for the whole
            group. With it, most groups have no signal. Ties are broken as by `torch.topk` on the CPU for the row
            without its padding; for that the rewards are copied to the host.
        kl: The KL term to use.
        ref_log_prob: Log-probs under the reference policy [B, P]; None uses `old_log_prob`, as Lever-Plus does.
        raw_rewards: The rewards before they were normalized [B, P], see `advantages`; None does as Lever-Plus does.
        by_old_policy: Weigh pointers by π_old within their group, for groups that hold samples of it.

    Returns:
        The loss, a scalar, and detached scalars: `ppo_loss` and `kl_loss` (its two terms), `kl` (unweighted),
        `mean_ratio`, `clipped_share` (share of ratios outside 1 ± ε), `mean_advantage`, `std_advantage`,
        `max_advantage` (the largest magnitude), and `no_signal_share` (among the groups that have a pointer, the share
        without a signal).

    Raises:
        ValueError: The shapes differ, `kl` is unknown or `top_k` is below 1.
    """
    reference = old_log_prob if ref_log_prob is None else ref_log_prob
    if not log_prob.shape == old_log_prob.shape == reference.shape == rewards.shape:
        raise ValueError(
            "log_prob, old_log_prob, ref_log_prob and rewards must have the same shape [B, P], not "
            f"{[list(x.shape) for x in (log_prob, old_log_prob, reference, rewards)]}"
        )
    if kl not in ("seed", "k3"):
        raise ValueError(f"kl must be 'seed' or 'k3', not {kl!r}")
    if top_k is not None:
        best, rewards = _best(rewards, top_k)  # (B, k) each; from here on P = k
        log_prob, old_log_prob, reference = (x.gather(1, best) for x in (log_prob, old_log_prob, reference))
        raw_rewards = None if raw_rewards is None else raw_rewards.gather(1, best)
    real = ~rewards.isnan()  # (B, P)
    groups = real.any(-1)  # (B,)
    signal = _has_signal(rewards, real)  # (B,)
    advantage = advantages(rewards, raw_rewards=raw_rewards).to(log_prob.dtype)  # (B, P)

    ratio = _exp(torch.where(real, log_prob - old_log_prob, 0.0))  # (B, P)
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    weights = _softmax(old_log_prob.detach(), real) if by_old_policy else None  # (B, P)
    ppo_loss = -_mean(_mean(surrogate, real, weights), signal)

    penalised = isinstance(kl_beta, Tensor) or kl_beta != 0
    drift = torch.where(real, log_prob - reference, 0.0)  # (B, P)
    drift = drift if penalised else drift.detach()  # measured all the same
    drift = drift if kl == "seed" else -drift
    divergence = _mean(_mean(_exp(drift) - 1 - drift, real, weights), groups)
    kl_loss = kl_beta * divergence

    with torch.no_grad():
        flat = real.flatten()
        mean_advantage = _mean(advantage.flatten(), flat)
        spread = torch.where(real, advantage - mean_advantage, 0.0).square().sum()
        report = {
            "ppo_loss": ppo_loss.detach(),
            "kl_loss": kl_loss.detach(),
            "kl": divergence.detach(),
            "mean_ratio": _mean(ratio.flatten(), flat),
            "clipped_share": _mean((ratio != clipped).to(ratio.dtype).flatten(), flat),
            "mean_advantage": mean_advantage,
            "std_advantage": (spread / (flat.sum() - 1).clamp(min=1)).sqrt(),
            "max_advantage": advantage.abs().amax(),
            "no_signal_share": _mean((~signal).to(ratio.dtype), groups),
        }
    return (ppo_loss + kl_loss if penalised else ppo_loss), report


def rce_temperature(step: int, total: int, start: float = 2.0, end: float = 0.5) -> float:
    """The temperature of RCE at `step` of `total` steps: linear from `start` to `end`, as in Lever-Plus."""
    if total <= 1:
        return end
    return start + (end - start) * step / (total - 1)


def signal_strength(rewards: Tensor) -> Tensor:
    """How much there is to learn from each group [B]: min(1, std / `STD_FLOOR`) of its rewards [B, P]; NaN is padding.

    Exactly 0 for fewer than two rewards, and for equal ones.
    """
    real = ~rewards.isnan()
    return _strength(rewards, real).squeeze(-1) * _has_signal(rewards, real)


def adapt_kl_beta(
    beta: float,
    kl: float,
    *,
    low: float = 0.01,
    high: float = 0.1,
    factor: float = 1.5,
    least: float = 1e-3,
    most: float = 10.0,
) -> float:
    """Adapts the weight of the KL term to the measured KL, with Lever-Plus's rule and constants.

    If `kl` is above `high` the weight is multiplied by `factor`, below `low` it is divided by it. The result is kept
    within [least, most].
    """
    if kl > high:
        beta *= factor
    elif kl < low:
        beta /= factor
    return min(max(beta, least), most)


def _exp(x: Tensor) -> Tensor:
    """e^x, continued by its tangent above `_LARGEST_LOG_RATIO`, so that neither it nor its gradient overflows."""
    limit = _LARGEST_LOG_RATIO
    return torch.where(x > limit, math.exp(limit) * (1 + x - limit), x.clamp(max=limit).exp())


def _best(rewards: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The positions of the top k rewards of every row, and these rewards [B, k]; NaN if a row has fewer."""
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    # How topk breaks ties depends on the length of the row and on the device. Row by row, without padding, on the CPU
    # it chooses the same ones as in Lever-Plus.
    best = torch.full((len(rewards), min(top_k, rewards.shape[1])), -1)  # (B, k)
    for row, places in zip(rewards.detach().cpu(), best, strict=True):
        real = (~row.isnan()).nonzero().squeeze(-1)
        taken = real if len(real) <= top_k else real[row[real].topk(top_k).indices]
        places[: len(taken)] = taken
    best = best.to(rewards.device)
    found = rewards.gather(1, best.clamp(min=0)).masked_fill(best < 0, torch.nan)
    return best.clamp(min=0), found


def _std(rewards: Tensor, real: Tensor) -> Tensor:
    """The unbiased standard deviation [B, 1] of each group."""
    centred = torch.where(real, rewards - _mean(rewards, real).unsqueeze(-1), 0.0)  # (B, P)
    degrees = (real.sum(-1, keepdim=True) - 1).clamp(min=1)
    return (centred.square().sum(-1, keepdim=True) / degrees).sqrt()


def _strength(rewards: Tensor, real: Tensor, std_floor: float = STD_FLOOR) -> Tensor:
    """How much a group counts [B, 1]: min(1, std / std_floor) of its raw rewards."""
    std = _std(rewards, real)
    return std / std.clamp(min=std_floor)


def _has_signal(rewards: Tensor, real: Tensor) -> Tensor:
    """Whether the rewards of each group differ at all, by exact comparison; bool [B]."""
    least = torch.where(real, rewards, torch.inf).amin(-1)
    return torch.where(real, rewards, -torch.inf).amax(-1) > least


def _mean(values: Tensor, counted: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over the counted entries of the last dimension; 0 if there are none. The sum of `weights` must be 1."""
    if weights is not None:
        return torch.where(counted, values * weights, 0.0).sum(-1)
    return torch.where(counted, values, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)
