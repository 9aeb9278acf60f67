"""From a scored pointer to its reward, and from a group's rewards to values that compare across queries.

A candidate is a pointer with what the VLM made of its prompt. Its reward adds up to three terms:

    hard    the prediction was right (``vqa_correct``, 0 or 1)
    graded  how right it was: the VQA accuracy (``vqa_acc_score``) or the probability that the VLM gives to
            the human answers (``vqa_gt_prob``)
    rel     how near a wrong prediction came to a human answer (``vqa_rel_score``)

The modes are Lever-Plus's, under its names.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icdsel.settings.presets import RETIRED_MODES

__all__ = ["NORMALIZATIONS", "REWARD_MODES", "fields_of", "is_correct", "normalize_rewards", "pointer_reward"]

REWARD_LIMIT = 5.0
"""Rewards are clipped to [-5, 5], as in the original."""

NORMALIZATIONS = ("z_score_clamp", "z_score", "rank", "none")
"""The methods of ``normalize_rewards``."""


class _Mode(NamedTuple):
    hard: float  # what a right prediction is worth, in units of hard_weight
    graded: str | None  # the field of the graded term
    rel: bool = False


_MODES = {
    "hard_plus_soft": _Mode(1, "vqa_acc_score"),
    "hard_plus_soft_v2": _Mode(2, "vqa_acc_score"),
    "separated": _Mode(2, "vqa_acc_score"),  # the original writes it as two cases; they come to v2
    "hard_only": _Mode(1, None),
    "soft_only": _Mode(0, "vqa_acc_score"),
    "hard01_plus_gtprob": _Mode(1, "vqa_gt_prob"),
    "hard01_plus_gtprob_separated": _Mode(2, "vqa_gt_prob"),
    "hard_plus_gtprob_plus_rel": _Mode(1, "vqa_gt_prob", rel=True),
}

REWARD_MODES = tuple(_MODES)
"""The modes of ``pointer_reward``; the first is the default of the settings."""

# Rewards that differ by less than rounding are equal: a group of them teaches nothing.
_NO_SPREAD = 1e-12


def pointer_reward(
    candidate: Mapping[str, Any],
    *,
    mode: str,
    hard_weight: float = 1.0,
    soft_weight: float = 1.0,
    rel_weight: float = 0.1,
) -> float:
    """Return the reward of one scored pointer, clipped to [-5, 5].

    With the weights w_h, w_s and w_r, and the fields' short names, the modes are:

    * ``hard_plus_soft``: w_h·correct + w_s·acc
    * ``hard_plus_soft_v2``: 2·w_h·correct + w_s·acc
    * ``separated``: the same as ``hard_plus_soft_v2``
    * ``hard_only``: w_h·correct
    * ``soft_only``: w_s·acc
    * ``hard01_plus_gtprob``: w_h·correct + w_s·prob
    * ``hard01_plus_gtprob_separated``: 2·w_h·correct + w_s·prob
    * ``hard_plus_gtprob_plus_rel``: w_h·correct + w_s·prob + w_r·(1 − correct)·rel

    Args:
        candidate: One pointer of RL data. Of its fields ``vqa_correct`` (0 or 1), ``vqa_acc_score``,
            ``vqa_gt_prob`` and ``vqa_rel_score``, those of the mode are read; None and missing count as 0.
            Only a missing ``vqa_correct`` is derived, as ``vqa_acc_score > 0``, which is its definition:
            the original takes it for 0, and so calls right answers wrong in data without the field.
        mode: One of ``REWARD_MODES``.
        hard_weight: Weight of the hard term.
        soft_weight: Weight of the graded term.
        rel_weight: Weight of the relevance of a wrong prediction.

    Raises:
        ValueError: The mode is unknown or retired, or a field that it reads is not a finite number.
    """
    terms = _mode(mode)
    correct = _correct(candidate)
    reward = terms.hard * hard_weight * correct
    if terms.graded is not None:
        reward += soft_weight * _number(candidate, terms.graded)
    if terms.rel:
        reward += rel_weight * (1 - correct) * _number(candidate, "vqa_rel_score")
    return max(-REWARD_LIMIT, min(REWARD_LIMIT, reward))


def normalize_rewards(
    rewards: Tensor, method: str = "z_score_clamp", clamp: float = 3.0, mask: Tensor | None = None
) -> Tensor:
    """Normalise the rewards of one query's pointers against one another.

    * ``z_score``: (r − mean) / std, with the unbiased std
    * ``z_score_clamp``: the same, then clamped to [−clamp, clamp]
    * ``rank``: from 1 for the best to −1 for the worst in even steps; equal rewards share their mean rank
    * ``none``: r

    A group without a signal, of one pointer or of equal rewards, passes through unnormalised whatever the
    method, as in the original's z-scores. Two departures from the original: exactly equal rewards count as
    equal even where rounding gives them a std of 1e-8 (its z-scores of six rewards of 0.3 are all 0.91), and
    ties in rank are not broken by the order of the pointers.

    Args:
        rewards: [P], the rewards of one group.
        method: One of ``NORMALIZATIONS``.
        clamp: Bound of ``z_score_clamp``.
        mask: [P] bool, True where a pointer counts. What the others hold, NaN included, plays no part, and
            they come out 0.

    Returns:
        [P], finite, in the dtype of ``rewards`` (float32 for integers).

    Raises:
        ValueError: The method is unknown, a shape is wrong, or a reward that counts is not finite.
    """
    if method not in NORMALIZATIONS:
        raise ValueError(f"unknown normalisation {method!r}; choose one of: {', '.join(NORMALIZATIONS)}")
    if rewards.ndim != 1 or (mask is not None and mask.shape != rewards.shape):
        raise ValueError(
            f"rewards and mask must both have shape [P], not {list(rewards.shape)}"
            + ("" if mask is None else f" and {list(mask.shape)}")
        )
    if not rewards.is_floating_point():
        rewards = rewards.float()
    counts = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    group = rewards[counts]
    if not group.isfinite().all():
        raise ValueError("a reward that counts is not finite; leave failed pointers out with the mask")
    normalized = torch.zeros_like(rewards)
    normalized[counts] = _normalize(group, method, clamp)
    return normalized


def _mode(name: str) -> _Mode:
    if name in RETIRED_MODES:
        raise ValueError(f"reward mode {name!r} is retired ({RETIRED_MODES[name]}); use 'hard_plus_soft'")
    if name not in _MODES:
        raise ValueError(f"unknown reward mode {name!r}; choose one of: {', '.join(REWARD_MODES)}")
    return _MODES[name]


def fields_of(mode: str) -> tuple[str, ...]:
    """The fields of a candidate that a mode reads, less `vqa_correct`, which can be derived.

    Raises:
        ValueError: The mode is unknown or retired.
    """
    terms = _mode(mode)
    return (*((terms.graded,) if terms.graded else ()), *(("vqa_rel_score",) if terms.rel else ()))


def is_correct(candidate: Mapping[str, Any]) -> bool:
    """Whether a pointer was answered correctly (`vqa_correct`, else an accuracy above 0)."""
    return _correct(candidate) > 0


def _correct(candidate: Mapping[str, Any]) -> float:
    if "vqa_correct" in candidate:
        return _number(candidate, "vqa_correct")
    return float(_number(candidate, "vqa_acc_score") > 0)


def _number(candidate: Mapping[str, Any], field: str) -> float:
    value = candidate.get(field)
    if value is None:
        return 0.0
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number, not {value!r}")
    return float(value)


def _normalize(group: Tensor, method: str, clamp: float) -> Tensor:
    """Normalise [P] finite rewards, all of which count."""
    if method == "none" or len(group) < 2:
        return group
    std = group.std()
    if std <= _NO_SPREAD or group.max() == group.min():
        return group
    if method == "rank":
        return _centred_ranks(group)
    z_scores = (group - group.mean()) / std
    return z_scores.clamp(-clamp, clamp) if method == "z_score_clamp" else z_scores


def _centred_ranks(group: Tensor) -> Tensor:
    """Return 1 − 2·rank/(P − 1), where rank 0 is the best and ties have the mean of their ranks.

    A reward with g greater, l lesser and e equal ones (itself among them) has the rank g + (e − 1)/2, so
    with g + e + l = P the value is (l − g)/(P − 1): the mean sign of its differences from the others.
    """
    signs = torch.sign(group[:, None] - group[None, :])  # (P, P)
    return signs.sum(dim=1) / (len(group) - 1)
