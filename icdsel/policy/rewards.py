"""Computes the reward of a scored pointer, and normalises the rewards of a group so that queries are comparable.

The reward of a pointer is the sum of three terms:

    hard    whether the prediction is correct (``vqa_correct``, 0 or 1; 0 if the task does not define correctness)
    graded  how good it is: its score (``vqa_acc_score``), or the probability that the VLM assigns to the reference
            answers (``vqa_gt_prob``)
    rel     how similar a wrong prediction is to a reference answer (``vqa_rel_score``)

What its ICDs cost is subtracted: a price for each, or for each token of the prompt. With a price, a policy that may
stop learns to show no more than what helps.

The modes and their names are Lever-Plus's. To add one, add it to ``REWARD_MODES``; to add a normalisation, write a
function and add it to ``NORMALIZATIONS``. Importing this module does not import torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from icdsel.records import Candidate, score_of, size_of
from icdsel.records.scored_pointer import REFERENCE_SCORES
from icdsel.registry import Registry
from icdsel.settings.presets import RETIRED_MODES
from icdsel.settings.tables import RewardSettings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NORMALIZATIONS",
    "REWARD_MODES",
    "fields_of",
    "is_correct",
    "normalize_rewards",
    "pointer_reward",
    "reward_of",
]

_LEAST_PROB = 1e-30  # its logarithm is far below the limit
REWARD_LIMIT = 5.0
"""Rewards are clipped to [-5, 5], as in Lever-Plus."""
_NATS_LIMIT = 50.0  # of log-probs and margins, most of which are beyond 5


# --- rewards ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardMode:
    """The terms of a reward.

    Attributes:
        name: Its name in `--reward-mode`.
        hard: Weight of a correct prediction, in units of `hard_weight`.
        graded: The score of the graded term, an attribute of `ScoredPointer`; None if the mode has no such term.
        relevance: Whether the relevance of a wrong prediction is added.
        log: Whether the graded term is the logarithm of its score, in nats.
        limit: Rewards are clipped to its positive and negative.
    """

    name: str
    hard: float
    graded: str | None
    relevance: bool = False
    log: bool = False
    limit: float = REWARD_LIMIT

    @property
    def needs_references(self) -> bool:
        """Whether it reads the probabilities of the reference answers."""
        return self.graded in (*REFERENCE_SCORES, "margin")

    @property
    def ignores(self) -> tuple[str, ...]:
        """Settings that have no effect with this mode."""
        weighs = {"hard": self.hard, "soft": self.graded is not None, "rel": self.relevance}
        return tuple(f"reward.{term}_weight" for term, does in weighs.items() if not does)


REWARD_MODES: Registry[RewardMode] = Registry(
    "reward mode",
    [
        RewardMode("hard_plus_soft", 1, "score"),
        RewardMode("hard_plus_soft_v2", 2, "score"),
        RewardMode("separated", 2, "score"),  # two cases in Lever-Plus; together they are the same as v2
        RewardMode("hard_only", 1, None),
        RewardMode("soft_only", 0, "score"),
        RewardMode("hard01_plus_gtprob", 1, "reference_prob"),
        RewardMode("hard01_plus_gtprob_separated", 2, "reference_prob"),
        RewardMode("hard_plus_gtprob_plus_rel", 1, "reference_prob", relevance=True),
        RewardMode("log_prob", 0, "reference_prob", log=True, limit=_NATS_LIMIT),
        RewardMode("margin", 0, "margin", limit=_NATS_LIMIT),
    ],
)
"""The modes of ``pointer_reward``; the first is the default of the settings."""


def pointer_reward(
    candidate: Candidate,
    *,
    mode: str,
    hard_weight: float = 1.0,
    soft_weight: float = 1.0,
    rel_weight: float = 0.1,
) -> float:
    """Return the reward of one scored pointer, clipped to [-5, 5]; of the last two modes to [-50, 50].

    With weights w_h, w_s and w_r, and short names for the fields, the modes are:

    * ``hard_plus_soft``: w_h·correct + w_s·acc
    * ``hard_plus_soft_v2``: 2·w_h·correct + w_s·acc
    * ``separated``: the same as ``hard_plus_soft_v2``
    * ``hard_only``: w_h·correct
    * ``soft_only``: w_s·acc
    * ``hard01_plus_gtprob``: w_h·correct + w_s·prob
    * ``hard01_plus_gtprob_separated``: 2·w_h·correct + w_s·prob
    * ``hard_plus_gtprob_plus_rel``: w_h·correct + w_s·prob + w_r·(1 − correct)·rel
    * ``log_prob``: w_s·log prob, of tasks whose queries have one right answer, such as a class
    * ``margin``: w_s·(log-prob of the right option − that of the best wrong one), of tasks with options

    Args:
        candidate: A scored pointer, or a mapping with the keys ``vqa_correct`` (0 or 1), ``vqa_acc_score``,
            ``vqa_gt_prob`` and ``vqa_rel_score``; only those that the mode needs are read. None and missing values
            count as 0, except that a missing ``vqa_correct`` is derived as ``vqa_acc_score > 0``, its definition.
            (Lever-Plus counts it as 0, so in data without the field it treats correct answers as wrong.)
        mode: One of ``REWARD_MODES``.
        hard_weight: Weight of the hard term.
        soft_weight: Weight of the graded term.
        rel_weight: Weight of the relevance of a wrong prediction.

    Raises:
        ValueError: The mode is unknown or retired, a value that it reads is not a finite number, or the VLM call of
            a ``ScoredPointer`` failed.
    """
    terms = _mode(mode)
    correct = score_of(candidate, "correct")
    reward = terms.hard * hard_weight * correct
    if terms.graded is not None:
        graded = score_of(candidate, terms.graded)
        reward += soft_weight * (math.log(max(graded, _LEAST_PROB)) if terms.log else graded)
    if terms.relevance:
        reward += rel_weight * (1 - correct) * score_of(candidate, "relevance")
    return max(-terms.limit, min(terms.limit, reward))


def reward_of(candidate: Candidate, settings: RewardSettings) -> float:
    """The reward of a scored pointer under the settings, its price included.

    A prompt of unknown length costs no tokens; `icdsel.policy.groups.make_groups` rejects such data.
    """
    reward = pointer_reward(
        candidate,
        mode=settings.mode,
        hard_weight=settings.hard_weight,
        soft_weight=settings.soft_weight,
        rel_weight=settings.rel_weight,
    )
    if not (settings.price or settings.token_price):
        return reward
    shown, tokens = size_of(candidate)
    return reward - settings.price * shown - settings.token_price * (tokens or 0)


def fields_of(mode: str) -> tuple[str, ...]:
    """The scores that a mode requires, as attributes of `ScoredPointer`; without `correct`, which may be unknown.

    Raises:
        ValueError: The mode is unknown or retired.
    """
    terms = _mode(mode)
    return (*((terms.graded,) if terms.graded else ()), *(("relevance",) if terms.relevance else ()))


def is_correct(candidate: Candidate) -> bool:
    """Whether the prediction is correct."""
    return score_of(candidate, "correct") > 0


def _mode(name: str) -> RewardMode:
    if name in RETIRED_MODES:
        raise ValueError(f"reward mode {name!r} is retired ({RETIRED_MODES[name]}); use 'hard_plus_soft'")
    if name not in REWARD_MODES:
        raise ValueError(f"unknown reward mode {name!r}; choose one of: {', '.join(REWARD_MODES)}")
    return REWARD_MODES[name]


# --- normalisation ----------------------------------------------------------------------------------------

# Differences of this size are rounding errors: such rewards count as equal, and nothing can be learned from them.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Normalization:
    """A way to normalise the rewards of a group with a signal.

    Attributes:
        name: Its name in `--reward-normalization`.
        normalize: Maps the rewards [P] and the clamp, which some methods ignore, to the normalised rewards [P].
        rescales: Whether groups of any spread get the same scale, so that `std_floor` is needed.
        ignores: Settings that have no effect with this method.
    """

    name: str
    normalize: "Callable[[Tensor, float], Tensor]"
    rescales: bool = True
    ignores: tuple[str, ...] = ("reward.clamp",)


def _z_scores(group: "Tensor") -> "Tensor":
    return (group - group.mean()) / group.std()


def _centred_ranks(group: "Tensor") -> "Tensor":
    """Return 1 − 2·rank/(P − 1), where rank 0 is the best and tied rewards get the mean of their ranks.

    If g rewards are greater than a reward, l are less and e are equal (itself included), its rank is g + (e − 1)/2.
    Since g + e + l = P, the value is (l − g)/(P − 1): the mean sign of its differences from the others.
    """
    signs = (group[:, None] - group[None, :]).sign()  # (P, P)
    return signs.sum(dim=1) / (len(group) - 1)


NORMALIZATIONS: Registry[Normalization] = Registry(
    "normalization",
    [
        Normalization("z_score_clamp", lambda group, clamp: _z_scores(group).clamp(-clamp, clamp), ignores=()),
        Normalization("z_score", lambda group, _: _z_scores(group)),
        Normalization("rank", lambda group, _: _centred_ranks(group)),
        Normalization("none", lambda group, _: group.clone(), rescales=False),
    ],
)
"""The methods of ``normalize_rewards``."""


def normalize_rewards(
    rewards: "Tensor",
    method: str = "z_score_clamp",
    clamp: float = 3.0,
    mask: "Tensor | None" = None,
    std_floor: float = 0.0,
) -> "Tensor":
    """Normalise the rewards of one query's pointers.

    * ``z_score``: (r − mean) / std, with the unbiased std
    * ``z_score_clamp``: the same, then clamped to [−clamp, clamp]
    * ``rank``: from 1 for the best to −1 for the worst in even steps; equal rewards get their mean rank
    * ``none``: r

    A group without a signal (a single pointer, or equal rewards) is returned unchanged by every method, as in
    Lever-Plus's z-scores. There are two differences from Lever-Plus: exactly equal rewards count as equal even if their
    std is 1e-8 due to rounding (in Lever-Plus the z-scores of six rewards of 0.3 are all 0.91), and ties in rank are
    not broken by the order of the pointers.

    Args:
        rewards: [P], the rewards of one group.
        method: One of ``NORMALIZATIONS``.
        clamp: Bound of ``z_score_clamp``.
        mask: [P] bool, True where a pointer counts. Other values, which may be NaN, are ignored and returned as 0.
        std_floor: Rewards with a smaller standard deviation are reduced in proportion, so that differences of
            rounding do not become as large as real ones; 0 does as Lever-Plus does. ``none`` keeps the scale anyway.

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
    group = rewards if mask is None else rewards[mask.bool()]
    if not group.isfinite().all():
        raise ValueError("a reward that counts is not finite; leave failed pointers out with the mask")
    signal = len(group) > 1 and group.std() > _NO_SPREAD and group.max() != group.min()
    if signal:
        way, std = NORMALIZATIONS[method], group.std()
        group = way.normalize(group, clamp)
        if way.rescales and std < std_floor:
            group = group * (std / std_floor)
    else:
        group = group.clone()
    if mask is None:
        return group
    return rewards.new_zeros(rewards.shape).masked_scatter(mask.bool(), group)
