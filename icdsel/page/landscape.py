"""What there is to learn in RL data: queries with a signal, and what each way of proposing pointers brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icdsel.console import plain, shown
from icdsel.policy.groups import reward_of
from icdsel.policy.rewards import is_correct
from icdsel.records import QueryGroup
from icdsel.settings.tables import RewardSettings

_ROUNDING = 1e-9  # rewards that differ by less are equal


@dataclass(frozen=True)
class Method:
    """The pointers that one way of proposing brought; a pointer counts for the way that proposed it first.

    Attributes:
        name: The way: `gen_method` of the RL data.
        pointers: How many.
        queries: Of how many queries.
        accuracy: Their mean VQA accuracy, in [0, 1].
        correct: The share that is answered correctly.
        reward: Their mean reward.
        best: Of its queries with a signal the share in which it has a pointer of the query's highest reward; None
            where there is no such query.
        alone: The share in which no other way has one.
    """

    name: str
    pointers: int
    queries: int
    accuracy: float
    correct: float
    reward: float
    best: float | None
    alone: float | None


@dataclass(frozen=True)
class Landscape:
    """Counts of queries, and figures by way of proposing.

    `none_correct`, `some_correct` and `all_correct` add up to `queries`. A query has a signal where its rewards
    differ: then one pointer can be told from another. `mean_reward` is that of a pointer drawn at random from a
    query's, `best_reward` that of its best; both means over queries.
    """

    source: str
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
    source: str, groups: Sequence[QueryGroup], settings: RewardSettings, rejected: Mapping[str, int]
) -> Landscape:
    """The landscape of `groups`, of which none is empty; ways in the order of their mean reward, the best first.

    Args:
        source: Where the groups come from, as it is shown.
        groups: At least one.
        settings: How rewards are made.
        rejected: What was left out in reading, by reason.
    """
    rewards = [[reward_of(candidate, settings) for candidate in group.candidates] for group in groups]
    correct = [[is_correct(candidate) for candidate in group.candidates] for group in groups]
    return Landscape(
        source=shown(source),
        queries=len(groups),
        pointers=sum(map(len, rewards)),
        none_correct=sum(not any(own) for own in correct),
        some_correct=sum(any(own) and not all(own) for own in correct),
        all_correct=sum(all(own) for own in correct),
        signal=sum(map(_has_signal, rewards)),
        mean_reward=sum(sum(own) / len(own) for own in rewards) / len(groups),
        best_reward=sum(map(max, rewards)) / len(groups),
        methods=_methods(groups, rewards, correct),
        rejected=dict(rejected),
    )


def _methods(
    groups: Sequence[QueryGroup], rewards: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]]
) -> tuple[Method, ...]:
    made: dict[str, list[tuple[int, float, float, bool]]] = {}  # query, reward, accuracy, correct
    best: dict[int, set[str]] = {}  # of the queries with a signal, the ways that reach the highest reward
    for q, group in enumerate(groups):
        highest = max(rewards[q])
        for candidate, reward, right in zip(group.candidates, rewards[q], correct[q], strict=True):
            name = plain(candidate.get("gen_method") or "unnamed")
            made.setdefault(name, []).append((q, reward, float(candidate["vqa_acc_score"]), right))
            if _has_signal(rewards[q]) and reward >= highest - _ROUNDING:
                best.setdefault(q, set()).add(name)
    found = []
    for name, own in made.items():
        queries = {q for q, *_ in own}
        telling = sorted(queries & best.keys())
        reached, alone = (sum(name in best[q] for q in telling), sum(best[q] == {name} for q in telling))
        found.append(
            Method(
                name=name,
                pointers=len(own),
                queries=len(queries),
                accuracy=sum(accuracy for _, _, accuracy, _ in own) / len(own),
                correct=sum(right for *_, right in own) / len(own),
                reward=sum(reward for _, reward, _, _ in own) / len(own),
                best=reached / len(telling) if telling else None,
                alone=alone / len(telling) if telling else None,
            )
        )
    return tuple(sorted(found, key=lambda method: (-method.reward, method.name)))


def _has_signal(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) > _ROUNDING
