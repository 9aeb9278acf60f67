"""The scores of a row, query by query, and the mean over several rows."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from icdsel.comparison.statistics import Floats, SeedScores, mean_by_query
from icdsel.records import DEFAULT_TASK, QuestionId, Shots, id_order
from icdsel.selection import selector_named
from icdsel.tasks.base import TASKS
from icdsel.tasks.corpus import Statistic


@dataclass(frozen=True)
class Scores:
    """The scores of one row at one number of shots (or at `auto`), by question_id.

    Attributes:
        name: The row's name.
        selector: The selector.
        shots: The number of shots.
        by_query: The scores.
        metric: The metric of these scores.
        by_other_metric: Scores by the task's other metrics, by the metric's name.
        place: What distinguishes the row from others of its name, such as the model.
        pool: What the selector chose from, such as `64` or `all` (`Selector.pool`); None if it chose nothing.
        seeds: The rows of which this one is the mean, if it is a mean over seeds.
        seed: What identifies the row's own seed: rows of one selector with the same one share it. By default it is
            taken from the name.
        images: The image of each query, as far as it is known.
        shown: How many ICDs were shown with each query; by default the number of shots.
        prompt_tokens: The length of each query's prompt, as far as it is known.
        statistics: What each query contributes to scores of all queries together, by their names.
        path: The file of predictions; None for a mean.
        task: The task.
    """

    name: str
    selector: str
    shots: Shots
    by_query: Mapping[QuestionId, float]
    metric: str
    by_other_metric: Mapping[str, Mapping[QuestionId, float]] = field(default_factory=dict)
    place: str = ""
    pool: str | None = None
    seeds: tuple["Scores", ...] = ()
    seed: str | None = None
    images: Mapping[QuestionId, QuestionId] = field(default_factory=dict)
    shown: Mapping[QuestionId, float] = field(default_factory=dict)
    prompt_tokens: Mapping[QuestionId, float] = field(default_factory=dict)
    statistics: Mapping[str, Mapping[QuestionId, Statistic]] = field(default_factory=dict)
    path: Path | None = None
    task: str = DEFAULT_TASK

    @property
    def title(self) -> str:
        """The row's name in a table: `name`, or `name @ place`."""
        return f"{self.name} @ {self.place}" if self.place else self.name

    @property
    def parts(self) -> tuple["Scores", ...]:
        """The rows of which it is the mean, or the row itself."""
        return self.seeds or (self,)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of predictions; of a mean those of its seeds."""
        if self.seeds:
            return tuple(path for row in self.seeds for path in row.files)
        return (self.path,) if self.path else ()

    @cached_property
    def values(self) -> Floats:
        """The scores [n], by ascending question_id."""
        return values_of(self.by_query)

    @cached_property
    def score(self) -> float:
        """The score of all queries together; of a mean, the mean of its seeds' scores."""
        if self.seeds:
            return float(np.mean([row.score for row in self.seeds]))
        return float(TASKS.named(self.task).aggregate(self.values))

    def other_score(self, metric: str) -> float:
        """The same by another metric."""
        if self.seeds:
            return float(np.mean([row.other_score(metric) for row in self.seeds]))
        return float(TASKS.named(self.task).aggregate(values_of(self.by_other_metric[metric])))

    @property
    def mean_shots(self) -> float | None:
        """The mean number of ICDs that were shown; None if a selector decided it, and it is not known."""
        if not self.shown:
            return None if isinstance(self.shots, str) else float(self.shots)
        return _mean_of_all(self.shown, self.by_query)

    @property
    def shown_none(self) -> float | None:
        """The share of the queries with which no ICD was shown, 0 to 1; of a mean, its seeds' mean; None if unknown."""
        if self.seeds:
            shares = [row.shown_none for row in self.seeds]
            return None if None in shares else float(np.mean([share for share in shares if share is not None]))
        if not self.shown:
            return None if isinstance(self.shots, str) else float(self.shots == 0)
        return _mean_of_all({i: float(count == 0) for i, count in self.shown.items()}, self.by_query)

    @property
    def mean_prompt_tokens(self) -> float | None:
        """The mean length of the prompts; None if that of a query is not known."""
        return _mean_of_all(self.prompt_tokens, self.by_query)

    @property
    def seed_label(self) -> str:
        """What identifies the row's own seed, such as `43`; empty if it has none, or the default."""
        return selector_named(self.selector).seed_of(self.name) if self.seed is None else self.seed

    @cached_property
    def correct(self) -> dict[QuestionId, float] | None:
        """1 for correct predictions, else 0, by question_id; None if the task has no notion of correct.

        Of a mean it is the share of its seeds.
        """
        correctness = TASKS.named(self.task).correctness
        if correctness is None:
            return None
        if self.seeds:
            return mean_by_query([row.correct for row in self.seeds if row.correct is not None])
        return {i: float(correctness.is_correct(score)) for i, score in self.by_query.items()}

    def among(self, queries: Collection[QuestionId]) -> "Scores":
        """The same row over some of its queries alone."""

        def kept(values: Mapping[QuestionId, float]) -> dict[QuestionId, float]:
            return {i: value for i, value in values.items() if i in queries}

        return replace(
            self,
            by_query=kept(self.by_query),
            by_other_metric={metric: kept(scores) for metric, scores in self.by_other_metric.items()},
            seeds=tuple(seed.among(queries) for seed in self.seeds),
            shown=kept(self.shown),
            prompt_tokens=kept(self.prompt_tokens),
        )


def values_of(scores: Mapping[QuestionId, float]) -> Floats:
    """The scores [n], by ascending question_id."""
    return np.array([scores[i] for i in sorted(scores, key=id_order)])


def mean_over_seeds(name: str, seeds: Sequence[Scores]) -> Scores:
    """The mean of `seeds`, query by query, as a row of this name; all must have the same queries."""
    return replace(
        seeds[0],
        name=name,
        by_query=mean_by_query([row.by_query for row in seeds]),
        by_other_metric={m: mean_by_query([row.by_other_metric[m] for row in seeds]) for m in shared_metrics(seeds)},
        seeds=tuple(seeds),
        shown=_mean_of_known([row.shown for row in seeds]),
        prompt_tokens=_mean_of_known([row.prompt_tokens for row in seeds]),
        path=None,
    )


def _mean_of_all(values: Mapping[QuestionId, float], queries: Collection[QuestionId]) -> float | None:
    """The mean over the queries, None if one has no value."""
    return float(np.mean([values[i] for i in queries])) if queries and values.keys() >= set(queries) else None


def _mean_of_known(values: Sequence[Mapping[QuestionId, float]]) -> dict[QuestionId, float]:
    """The mean of several rows for the queries that all have a value for."""
    shared = set.intersection(*(set(own) for own in values))
    return mean_by_query([{i: own[i] for i in own if i in shared} for own in values]) if shared else {}


def shared_metrics(rows: Sequence[Scores]) -> list[str]:
    """The other metrics that all rows have, by name."""
    return sorted(set.intersection(*(set(row.by_other_metric) for row in rows)))


def seed_scores(row: Scores, values: Callable[[Scores], Floats] = lambda part: part.values) -> SeedScores:
    """A row's values by seed and query; seeds have the same label in every row.

    Args:
        row: The row.
        values: Gives the values [n] of the row itself, or of each seed that it is the mean of; by default the scores.
    """
    parts = row.parts
    labels: list[Hashable] = [(part.selector, part.seed_label) for part in parts]
    if len(set(labels)) < len(labels):  # rows that were given one name, and are no seeds of each other
        labels = [(row.title, i) for i in range(len(parts))]
    return SeedScores([values(part) for part in parts], labels)
