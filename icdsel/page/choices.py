"""What each selector chose: how often each training example, how varied for one query, how similar to others."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from icdsel.artefacts.predictions import read_predictions
from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.sources import Source
from icdsel.page.names import seeds_of
from icdsel.records import Example, Prediction, QuestionId, Shots, shots_order
from icdsel.selection import selector_named
from icdsel.tasks.base import Task


@dataclass(frozen=True)
class Chosen:
    """One selector's choices at one number of shots.

    Attributes:
        name: The row's name in the comparison.
        label: The short name that the page shows.
        shots: The number of shots, or `auto`.
        source: The file of predictions.
        by_query: The predictions, by question_id.
        part_of: The name of the mean that the row is a seed of.
    """

    name: str
    label: str
    shots: Shots
    source: Source
    by_query: Mapping[QuestionId, Prediction]
    part_of: str | None = None

    @property
    def learned(self) -> bool:
        """Whether a policy chose."""
        return selector_named(self.source.selector).needs_policy

    @property
    def mean_shots(self) -> float:
        """The mean number of ICDs that are shown."""
        return _mean([prediction.shown for prediction in self.by_query.values()]) or 0.0

    @property
    def split(self) -> str:
        """The split of the queries."""
        return str(self.source.identity.get("split", "validation"))

    @property
    def lead(self) -> str:
        """The row that represents this one and its other seeds: their mean, or itself."""
        return self.part_of or self.name


@dataclass(frozen=True)
class Usage:
    """How often training examples are in a selector's prompts.

    Attributes:
        counts: Times chosen, by question_id.
        gini: Gini coefficient of the counts of the examples chosen at all: 0 if all are chosen equally often.
        effective: exp of the entropy of the shares: this many examples, chosen equally often, would be as varied.
        distinct_answers: Mean share of different answers among the demonstrations of a prompt with several; None
            without such prompts and without the dataset.
        match: Share of the queries with a demonstration whose answer is one of the reference answers; None without
            the dataset.
    """

    counts: Counter[QuestionId]
    gini: float
    effective: float
    distinct_answers: float | None
    match: float | None

    @property
    def total(self) -> int:
        """All choices."""
        return self.counts.total()


def read_choices(
    rows: Sequence[ComparisonRow], labels: Mapping[str, str], sources: Mapping[str, Source]
) -> list[Chosen]:
    """The choices of the rows of a comparison, learned selectors first, then those with the highest score.

    They cover the queries that all rows have. If the seeds of a mean are not rows, each of its files counts as a seed.

    Args:
        rows: The comparison.
        labels: The short name of each row's name.
        sources: The files that the rows name.

    Raises:
        RunError: A file of predictions is damaged.
    """
    read = {file: _read(Path(file)) for file in sources}
    shown_by_seeds = {(row.part_of, row.shots) for row in rows}
    found = []
    for row in rows:
        if (row.name, row.shots) in shown_by_seeds:
            continue
        for number, file in enumerate(row.files, 1):
            chosen = Chosen(row.name, labels[row.name], row.shots, sources[file], read[file][row.shots], row.part_of)
            if (count := len(row.files)) > 1:
                name, label = f"{row.name}, seed {number}", labels[row.name].removesuffix(seeds_of(count))
                chosen = replace(chosen, name=name, label=f"{label} (seed {number} of {count})", part_of=row.name)
            found.append(chosen)
    shared = set[QuestionId]().union(*(row.by_query for row in found)).intersection(*(row.by_query for row in found))
    found = [
        replace(row, by_query={i: prediction for i, prediction in row.by_query.items() if i in shared}) for row in found
    ]
    score = _score_by_lead(found)
    return sorted(
        found, key=lambda row: (not row.learned, -score[row.lead], row.lead, row.name, shots_order(row.shots))
    )


def one_each(chosen: Iterable[Chosen]) -> list[Chosen]:
    """Of selectors with several seeds only the first seed, by name."""
    rows = list(chosen)
    first: dict[str, str] = {}
    for row in rows:
        first[row.lead] = min(row.name, first.get(row.lead, row.name))
    return [row for row in rows if row.name == first[row.lead]]


def _read(path: Path) -> dict[Shots, dict[QuestionId, Prediction]]:
    """The predictions of a file by number of shots and question_id, as `comparison.sources.read_answers` has them."""
    by_shots: dict[Shots, dict[QuestionId, Prediction]] = {}
    for prediction in read_predictions(path):
        if not prediction.unscored:
            by_shots.setdefault(prediction.shots, {})[prediction.question_id] = prediction
    return by_shots


def _score_by_lead(rows: Iterable[Chosen]) -> dict[str, float]:
    """Mean score over all seeds and numbers of shots; 0 without any."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        known = (prediction.score for prediction in row.by_query.values() if prediction.score is not None)
        scores.setdefault(row.lead, []).extend(known)
    return {name: sum(values) / len(values) if values else 0.0 for name, values in scores.items()}


def usage(
    chosen: Chosen, queries: Mapping[QuestionId, Example], train: Mapping[QuestionId, Example], task: Task
) -> Usage:
    """How often a selector chooses each training example, and how varied its prompts are.

    Args:
        chosen: The selector's choices.
        queries: The queries by question_id; missing ones count only in the counts.
        train: The training examples by question_id; missing ones count only in the counts.
        task: Decides which answers are the same.
    """
    counts = Counter(icd for prediction in chosen.by_query.values() for icd in prediction.icds)
    distinct, matches = [], []
    for question_id, prediction in chosen.by_query.items():
        if not prediction.icds or not all(icd in train for icd in prediction.icds):
            continue
        shown = (train[icd] for icd in prediction.icds)
        answers = [task.normalize(task.read(task.demonstration(example), example)) for example in shown]
        if len(answers) > 1:
            distinct.append(len(set(answers)) / len(answers))
        if question_id in queries:
            query = queries[question_id]
            matches.append(any(task.normalize(text) in answers for text in (*query.answers, *query.raw_answers)))
    return Usage(
        counts=counts,
        gini=gini(list(counts.values())),
        effective=effective_number(list(counts.values())),
        distinct_answers=_mean(distinct),
        match=_mean(matches),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def gini(counts: Sequence[int]) -> float:
    """Mean absolute difference of two counts over twice their mean: 0 if all are equal, near 1 if one has all."""
    total, n = sum(counts), len(counts)
    if not total:
        return 0.0
    return sum((2 * rank - n - 1) * count for rank, count in enumerate(sorted(counts), 1)) / (n * total)


def effective_number(counts: Sequence[int]) -> float:
    """Exponential of the Shannon entropy of the shares (Hill's number of order 1); 0 without any."""
    total = sum(counts)
    if not total:
        return 0.0
    return math.exp(-sum(count / total * math.log(count / total) for count in counts if count))


def overlap(one: Chosen, other: Chosen) -> float | None:
    """Mean over the queries of both of |A ∩ B| / |A ∪ B| of the ICDs; None if no query has any."""
    shared = []
    for question_id in one.by_query.keys() & other.by_query.keys():
        a, b = set(one.by_query[question_id].icds), set(other.by_query[question_id].icds)
        if a | b:
            shared.append(len(a & b) / len(a | b))
    return math.fsum(shared) / len(shared) if shared else None
