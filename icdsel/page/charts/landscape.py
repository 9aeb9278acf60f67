"""The training signal in RL data: queries whose rewards differ, and what each proposal method contributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icdsel.console import plain, shown
from icdsel.policy.rewards import is_correct, reward_of
from icdsel.records import QueryGroup
from icdsel.settings.tables import RewardSettings
from icdsel.tasks.base import TASKS, Task

_ROUNDING = 1e-9  # rewards that differ by less are equal


@dataclass(frozen=True)
class Method:
    """The pointers of one proposal method; a pointer counts for the method that proposed it first.

    Attributes:
        name: The method, as in the RL data.
        pointers: How many.
        queries: Of how many queries.
        score: Their mean score.
        correct: The share of correct ones; None if the task has no notion of correct.
        reward: Their mean reward.
        best: Of its queries with a signal the share in which it has a pointer of the query's highest reward; None
            if there is no such query.
        alone: The share in which no other method has one.
    """

    name: str
    pointers: int
    queries: int
    score: float
    correct: float | None
    reward: float
    best: float | None
    alone: float | None


@dataclass(frozen=True)
class Landscape:
    """Counts of queries, and figures by proposal method.

    Attributes:
        source: The origin of the data, as shown.
        task: The task.
        queries: How many queries.
        pointers: How many pointers.
        none_correct: Queries without a correct pointer; 0 if the task has no notion of correct, as the next two.
        some_correct: Queries with correct pointers and others.
        all_correct: Queries with only correct pointers.
        signal: Queries whose rewards differ, so that one pointer is better than another.
        mean_reward: Mean over queries of the reward of a pointer drawn at random.
        best_reward: Mean over queries of the reward of the best pointer.
        methods: The proposal methods.
        rejected: Candidates that were left out, by reason.
    """

    source: str
    task: Task
    queries: int
    pointers: int
    none_correct: int
    some_correct: int
    all_correct: int
    signal: int
    mean_reward: float
    best_reward: float
    methods: tuple[Method, ...]
    rejected: Mapping[str, int]


def landscape(
    source: str, groups: Sequence[QueryGroup], settings: RewardSettings, rejected: Mapping[str, int], metric: str = ""
) -> Landscape:
    """The landscape of `groups`, none of which is empty; methods by their mean reward, the best first.

    Args:
        source: The origin of the groups, as shown.
        groups: At least one.
        settings: How rewards are computed.
        rejected: Candidates that were left out in reading, by reason.
        metric: The metric that they were scored by, if it is known.
    """
    task = TASKS.named(groups[0].task).named_by(metric)
    rewards = [[reward_of(candidate, settings) for candidate in group.candidates] for group in groups]
    correct = [[is_correct(candidate) for candidate in group.candidates] for group in groups]
    judged = correct if task.correctness is not None else []
    return Landscape(
        source=shown(source),
        task=task,
        queries=len(groups),
        pointers=sum(map(len, rewards)),
        none_correct=sum(not any(query) for query in judged),
        some_correct=sum(any(query) and not all(query) for query in judged),
        all_correct=sum(all(query) for query in judged),
        signal=sum(map(_has_signal, rewards)),
        mean_reward=sum(sum(group) / len(group) for group in rewards) / len(groups),
        best_reward=sum(map(max, rewards)) / len(groups),
        methods=_methods(groups, rewards, correct, task),
        rejected=dict(rejected),
    )


def _methods(
    groups: Sequence[QueryGroup], rewards: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]], task: Task
) -> tuple[Method, ...]:
    proposed: dict[str, list[tuple[int, float, float, bool]]] = {}  # query, reward, score, correct
    best: dict[int, set[str]] = {}  # of the queries with a signal, the methods that reach the highest reward
    for q, group in enumerate(groups):
        highest = max(rewards[q])
        for candidate, reward, right in zip(group.candidates, rewards[q], correct[q], strict=True):
            name = plain(candidate.method or "unnamed")
            proposed.setdefault(name, []).append((q, reward, float(candidate.score or 0.0), right))
            if _has_signal(rewards[q]) and reward >= highest - _ROUNDING:
                best.setdefault(q, set()).add(name)
    found = []
    for name, pointers in proposed.items():
        queries = {q for q, *_ in pointers}
        with_signal = sorted(queries & best.keys())
        reached, alone = sum(name in best[q] for q in with_signal), sum(best[q] == {name} for q in with_signal)
        found.append(
            Method(
                name=name,
                pointers=len(pointers),
                queries=len(queries),
                score=sum(score for _, _, score, _ in pointers) / len(pointers),
                correct=None if task.correctness is None else sum(right for *_, right in pointers) / len(pointers),
                reward=sum(reward for _, reward, _, _ in pointers) / len(pointers),
                best=reached / len(with_signal) if with_signal else None,
                alone=alone / len(with_signal) if with_signal else None,
            )
        )
    return tuple(sorted(found, key=lambda method: (-method.reward, method.name)))


def _has_signal(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) > _ROUNDING
