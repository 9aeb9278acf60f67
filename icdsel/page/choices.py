"""What each selector chose: how often each training example, how alike for one query, how alike two selectors."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from icdsel.infer import predictions_dir, read_predictions
from icdsel.metrics import normalize_answer
from icdsel.provenance import read_side_file
from icdsel.records import Example, Pointer
from icdsel.settings import Settings


@dataclass(frozen=True)
class Choice:
    """One query's ICDs and what the VLM answered; where the call failed, `error` says why and nothing else counts."""

    icds: Pointer
    prediction: str = ""
    accuracy: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Chosen:
    """One selector's choices at one number of shots, by question_id.

    `name` is the row's name in the predictions, `label` the short one that the page shows, `split` the split of the
    queries, `checkpoint` the policy's, where the predictions tell it.
    """

    name: str
    label: str
    selector: str
    shots: int
    split: str
    by_query: Mapping[int, Choice]
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Usage:
    """How often training examples stand in a selector's prompts.

    Attributes:
        counts: Times chosen, by question_id.
        gini: Gini coefficient of the counts of the examples chosen at all: 0 where all are chosen equally often.
        effective: exp of the entropy of the shares: as many examples, chosen equally often, would be as varied.
        distinct_answers: Mean share of different answers among the demonstrations of a prompt; None at one shot
            and without the dataset.
        match: Share of the queries with a demonstration whose answer is one of the reference answers; None without
            the dataset.
    """

    counts: Counter[int]
    gini: float
    effective: float
    distinct_answers: float | None
    match: float | None

    @property
    def total(self) -> int:
        """All choices."""
        return self.counts.total()


def read_choices(
    settings: Settings,
    n: int | None = None,
    subset: str | None = None,
    shots: Sequence[int] = (),
    paths: Sequence[Path] = (),
) -> list[Chosen]:
    """The choices behind the comparison's rows, learned selectors first, then the most accurate.

    Args:
        settings: Say where the predictions lie.
        n: Those over this many queries only.
        subset: Those over the set of this name only.
        shots: Those at these numbers of shots only, and zero-shot.
        paths: The predictions files; by default all of this dataset, sampler and model.

    Raises:
        RunError: a predictions file or its side file is damaged.
    """
    found: list[Chosen] = []
    for path in sorted(paths or predictions_dir(settings).glob("*.jsonl")):
        side = read_side_file(path.with_suffix(".meta.json"))
        name, made_of = str(side.get("name", path.stem)), side["identity"]
        by_shots: dict[int, dict[int, Choice]] = {}
        for record in read_predictions(path):
            icds = tuple(int(i) for i in record.get("icds", ()))
            if "error" in record:
                choice = Choice(icds, error=str(record["error"]))
            else:
                choice = Choice(icds, str(record.get("prediction", "")), float(record["accuracy"]))
            by_shots.setdefault(int(record["shots"]), {})[int(record["question_id"])] = choice
        told = side.get("checkpoint")
        for count, by_query in by_shots.items():
            if n in (None, len(by_query)) and subset in (None, side.get("set")) and (count in (0, *shots) or not shots):
                found.append(
                    Chosen(
                        name=name,
                        label=short_name(name, settings.pair_name),
                        selector=str(made_of.get("selector")),
                        shots=count,
                        split=str(made_of.get("split", "validation")),
                        by_query=by_query,
                        checkpoint=Path(told) if told else None,
                    )
                )
    accuracy = _accuracy_by_name(found)
    return sorted(found, key=lambda row: (row.selector != "policy", -accuracy[row.name], row.name, row.shots))


def _accuracy_by_name(rows: Iterable[Chosen]) -> dict[str, float]:
    """Mean accuracy over all numbers of shots, 0 where nothing was answered."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        answered = (choice.accuracy for choice in row.by_query.values() if choice.accuracy is not None)
        scores.setdefault(row.name, []).extend(answered)
    return {name: sum(values) / len(values) if values else 0.0 for name, values in scores.items()}


def short_name(name: str, pair: str) -> str:
    """A row's name without what all runs of this sampler and model share: `policy: grpo-epochs-3-grpo_epoch3`."""
    return re.sub(rf"^policy-(v3_{re.escape(pair)}[_-])?", "policy: ", name)


def usage(chosen: Chosen, queries: Mapping[int, Example], train: Mapping[int, Example]) -> Usage:
    """How often `chosen` takes each training example, and how varied its prompts are.

    Args:
        chosen: A selector's choices.
        queries: The queries by question_id; those that it lacks count nowhere but in the counts.
        train: The training examples by question_id; likewise.
    """
    counts = Counter(icd for choice in chosen.by_query.values() for icd in choice.icds)
    distinct, matches = [], []
    for question_id, choice in chosen.by_query.items():
        if not choice.icds or not all(icd in train for icd in choice.icds):
            continue
        answers = [normalize_answer(train[icd].answer) for icd in choice.icds]
        distinct.append(len(set(answers)) / len(answers))
        if question_id in queries:
            matches.append(bool({normalize_answer(a) for a in queries[question_id].answers} & set(answers)))
    return Usage(
        counts=counts,
        gini=gini(list(counts.values())),
        effective=effective_number(list(counts.values())),
        distinct_answers=_mean(distinct) if chosen.shots > 1 else None,
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
    """Exponential of the Shannon entropy of the shares (Hill's number of order 1); 0 of nothing."""
    total = sum(counts)
    if not total:
        return 0.0
    return math.exp(-sum(count / total * math.log(count / total) for count in counts if count))


def overlap(one: Chosen, other: Chosen) -> float | None:
    """Mean over the queries of both of |A ∩ B| / |A ∪ B| of the ICDs; None where no query has any."""
    shared = []
    for question_id in one.by_query.keys() & other.by_query.keys():
        a, b = set(one.by_query[question_id].icds), set(other.by_query[question_id].icds)
        if a | b:
            shared.append(len(a & b) / len(a | b))
    return math.fsum(shared) / len(shared) if shared else None
