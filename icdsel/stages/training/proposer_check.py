"""Compares a trained policy with the proposals that it learnt from, on the held-out queries.

The RL data know what the proposer's first choice earned. They know the same of the policy's own choice only if it
happens to be among the scored pointers, and the rest may be worse: what was learnt about the order of a dozen pointers
may be wrong about thousands of other candidates. So if the VLM may be queried, it answers the choices that were never
scored, one call each. Otherwise the comparison is restricted: the scored pointer that the policy finds most probable
against the proposer's first choice, with the share of queries for which that is the policy's own choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from scipy import special
from torch import Tensor

from icdsel.console import note, warn
from icdsel.errors import VlmError
from icdsel.policy.groups import Groups
from icdsel.policy.loop import LOW_COVERAGE
from icdsel.policy.measures import measure
from icdsel.policy.network import PointerNetwork
from icdsel.policy.references import references_needed_by
from icdsel.policy.rewards import reward_of
from icdsel.records import Pointer, PoolIds, Proposal, QueryGroup
from icdsel.settings.tables import RewardSettings
from icdsel.stages.scored_unit import UNIT, score_unit
from icdsel.stages.session import Session
from icdsel.stages.training.recommendation import paired

METHOD = "held-out-choice"
_MOSTLY = 0.5
_BEAM = "beam"  # "cosine-beam", "policy-beam"; Lever-Plus's is "beam"


@dataclass(frozen=True)
class Comparison:
    """The policy against its proposer on the held-out queries.

    Attributes:
        queries: How many queries are compared.
        policy: The mean reward of the policy's choice.
        proposer: The mean reward of the proposer's first choice.
        width: The half-width of the 95 % interval of the mean difference, Student's; infinite for a single query.
        known: The share of the held-out queries whose choice, that of the policy over its whole pool, has a score.
        failed: VLM calls that failed.
    """

    queries: int
    policy: float
    proposer: float
    width: float
    known: float
    failed: int = 0

    @property
    def is_worse(self) -> bool:
        """Whether the policy is worse by more than chance explains."""
        return self.policy - self.proposer < -self.width

    def to_json(self) -> dict[str, float]:
        """The figures for the run's metadata."""
        return {
            "queries": self.queries,
            "policy": float(f"{self.policy:.6g}"),
            "proposer": float(f"{self.proposer:.6g}"),
            "known": float(f"{self.known:.6g}"),
        }


def compare_with_proposer(
    session: Session, groups: Sequence[QueryGroup], tensors: Groups, table: Tensor, network: PointerNetwork, query: bool
) -> Comparison | None:
    """Compares the policy with its proposer, and reports the result.

    Args:
        session: The training split and the VLM.
        groups: The held-out queries.
        tensors: The same as tensors, on the device of the network.
        table: Embeddings (N, d).
        network: The policy.
        query: Whether the VLM may be queried.

    Returns:
        None if no query has a first choice of a proposer, as in RL data without beams.
    """
    proposed = _first_choices(groups, session.settings.reward)  # (Q,)
    measured = measure(network, table, tensors)
    chosen = [tuple(session.train[row].question_id for row in rows if row >= 0) for rows in measured.greedy.tolist()]
    earned, known, failed = measured.choice.clone(), measured.known.clone(), 0
    counted = ~proposed.isnan()
    if query and counted.any():
        unknown = (counted & ~known).nonzero().flatten().tolist()
        try:
            answered = _scored(session, [groups[q] for q in unknown], [chosen[q] for q in unknown])
        except VlmError as error:
            warn(f"the policy's choices on held-out queries were not scored: {error}")
        else:
            failed = sum(reward is None for reward in answered)
            for q, reward in zip(unknown, answered, strict=True):
                if reward is not None:
                    earned[q], known[q] = reward, True
            counted &= known
    if not counted.any():
        return None
    _, standard_error = paired((earned - proposed)[counted])
    queries = int(counted.sum())
    found = Comparison(
        queries=queries,
        policy=float(earned[counted].double().mean()),
        proposer=float(proposed[counted].double().mean()),
        width=standard_error * float(special.stdtrit(max(1, queries - 1), 0.975)),
        known=float(known.double().mean()),
        failed=failed,
    )
    _report(found, found.known < _MOSTLY and tensors.coverage < LOW_COVERAGE)
    return found


def _first_choices(groups: Sequence[QueryGroup], reward: RewardSettings) -> Tensor:
    """The reward of the proposer's first choice for each query (Q,), NaN where it is unknown.

    It is the first pointer of the beam. RL data of several rounds have several proposers: the best one counts.
    """
    by_method: dict[str, dict[int, float]] = {}
    for q, group in enumerate(groups):
        for candidate in group.candidates:
            if candidate.rank == 0 and candidate.method is not None and candidate.method.endswith(_BEAM):
                by_method.setdefault(candidate.method, {}).setdefault(q, reward_of(candidate, reward))
    rewards = torch.full((len(groups),), torch.nan)
    if by_method:
        best = max(by_method.values(), key=_mean)
        for q, value in best.items():
            rewards[q] = value
    return rewards


def _mean(rewards: Mapping[int, float]) -> float:
    return sum(rewards.values()) / len(rewards)


def _scored(session: Session, groups: Sequence[QueryGroup], pointers: Sequence[Pointer]) -> list[float | None]:
    """The reward of one pointer for each query; None if the call failed.

    Raises:
        VlmError: The VLM cannot be used, or too many calls failed.
    """
    scorer = session.scorer(session.train.name)

    def scored(at: int) -> list[QueryGroup]:
        unit = groups[at : at + UNIT]
        examples = [session.train.by_id(group.question_id) for group in unit]
        pools = [PoolIds(group.pool, group.excluded) for group in unit]
        proposals = [[Proposal(pointer, METHOD)] for pointer in pointers[at : at + UNIT]]
        needed = references_needed_by(session.settings) is not None  # the scores are only read here
        return score_unit(session, examples, pools, proposals, scorer, lambda _: None, needed)

    rewards: list[float | None] = []
    with session.in_order(scored, range(0, len(groups), UNIT)) as results:
        for group in chain.from_iterable(results):
            (candidate,) = group.candidates
            failed = candidate.error is not None
            rewards.append(None if failed else reward_of(candidate, session.settings.reward))
    return rewards


def _report(found: Comparison, blind: bool) -> None:
    """Logs the comparison; `blind`: the policy mostly chooses what was never scored, from a pool that hardly was."""
    figures = f"reward {found.policy:.3f}, the proposer's first choice {found.proposer:.3f}"
    interval = ""
    if found.width < torch.inf:
        interval = f" (difference {found.policy - found.proposer:+.3f}, 95 % interval ± {found.width:.3f})"
    text = f"On {found.queries} held-out queries, the policy's choice has {figures}{interval}"
    if found.known < 1:
        text += (
            f". The policy's own choice over the pool has a score for {found.known:.0%} of them; for the others, its "
            "most probable scored pointer counts"
        )
    if found.is_worse:
        warn(
            f"the policy is worse than the proposals that it learnt from. {text}. Try more RL data (--queries), a "
            "smaller --rce-lr, fewer epochs, or a second round of RL data, proposed by this policy (gen-rl-data --init)"
        )
    elif blind:
        warn(
            f"whether the policy is as good as the proposals that it learnt from cannot be told. {text}. Compare both "
            "(icdsel infer --split tuning --selector policy,nearest-both), or train without --rl-data: then the VLM is "
            "queried"
        )
    else:
        note(text)
