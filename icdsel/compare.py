"""Runs and baselines side by side, paired by query, with the uncertainty of every figure. Asks no VLM."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from icdsel.errors import RunError
from icdsel.files import write_json
from icdsel.infer import predictions_dir, read_predictions
from icdsel.metrics import METRICS
from icdsel.provenance import differences, read_side_file
from icdsel.settings import Settings
from icdsel.statistics import bootstrap_mean, paired_difference

# What may differ between rows that are compared.
_MAY_DIFFER = {"selector", "checkpoint", "rl_data", "sampler_encoder"}
_OTHER_METRICS = {f"accuracy_{metric}" for metric in METRICS}
_SEED = re.compile(r"(random)-\d+|(policy-.+)_train-seed-\d+(.*)")


@dataclass(frozen=True)
class Scores:
    """Accuracies in [0, 1] by question_id, of one row at one number of shots."""

    name: str
    selector: str
    shots: int
    by_query: dict[int, float]
    by_other_metric: dict[str, dict[int, float]] = field(default_factory=dict)
    """The same by the metrics that the row is not judged by, under their names."""


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table; accuracies and differences in points, 0 to 100.

    `low` and `high` bound the 95 % interval (bootstrap over queries). The difference is to `reference` at the
    same number of shots (zero-shot: at none), paired by query; None for the reference itself.
    """

    name: str
    selector: str
    shots: int
    n: int
    accuracy: float
    low: float
    high: float
    reference: str
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    metric: str = "official"
    other_metrics: dict[str, float] = field(default_factory=dict)
    """Accuracy by the other metrics, where they differ for some row of the table."""


def compare(
    settings: Settings,
    *,
    n: int | None = None,
    subset: str | None = None,
    reference: str | None = None,
    shots: Sequence[int] = (),
    names: Mapping[Path, str] | None = None,
) -> list[ComparisonRow]:
    """The table over all predictions of this dataset, sampler and model.

    Args:
        settings: Say where the predictions lie, and the seed of the bootstrap.
        n: Compare the rows over this many queries only, where predictions over several sets exist.
        subset: Compare the rows over the set of this name only.
        reference: Name of the row that differences are taken to; by default `random`, else zero-shot.
        shots: The numbers of shots to show; all by default. Zero-shot always stands in the table.
        names: The files of predictions to compare, all those that lie there by default, and what their rows are
            called. Files of one name (the seeds of an experiment) are one row, their mean query by query.

    Raises:
        RunError: nothing to compare, different queries or settings, an unknown reference.
    """
    scores = _read(predictions_dir(settings), n, subset, names)
    scores = [row for row in scores if not shots or row.shots in shots or row.shots == 0]
    if not scores:
        raise RunError(f"no predictions at {', '.join(map(str, shots))} shots: choose others with --shots")
    if not names:
        scores += _means_over_seeds(scores)
    chosen = _reference_name(list(dict.fromkeys(row.name for row in scores)), reference)
    references = {row.shots: row for row in scores if row.name == chosen}
    ordered = sorted(scores, key=lambda row: (row.shots, -float(np.mean(list(row.by_query.values()))), row.name))
    other = _differing_metrics(scores)
    lines = [_line(row, references.get(row.shots, references.get(0)), chosen, settings.data.seed) for row in ordered]
    return [
        replace(
            line,
            metric=settings.data.metric,
            other_metrics={m: _points(float(np.mean(list(row.by_other_metric[m].values())))) for m in other},
        )
        for line, row in zip(lines, ordered, strict=True)
    ]


def _reference_name(names: Sequence[str], wanted: str | None) -> str:
    """The row that differences are taken to; `random` (the default) is the mean over its seeds where there are several.

    Raises:
        RunError: there is no such row.
    """
    if wanted in (None, "random"):
        means = [name for name in names if name.startswith("random (mean")]
        seeds = [name for name in names if name == "random" or name.startswith("random-")]
        if means or seeds:
            return (means + seeds)[0]
    chosen = wanted or "zero-shot"
    if chosen not in names:
        raise RunError(f"no row {chosen!r} to compare with: there are {', '.join(names)}. Choose one with --reference.")
    return chosen


def _read(folder: Path, n: int | None, subset: str | None, names: Mapping[Path, str] | None = None) -> list[Scores]:
    files = sorted(names or folder.glob("*.jsonl"))
    if not files:
        raise RunError(f"{folder} holds no predictions. Make them with `icdsel infer`.")
    rows: list[Scores] = []
    sets: dict[frozenset[int], list[str]] = {}
    identities: dict[str, Mapping[str, Any]] = {}
    for path in files:
        side = read_side_file(path.with_suffix(".meta.json"))
        name = names[path] if names else str(side.get("name", path.stem))
        own = str(side.get("set", "unnamed"))
        asked: dict[int, set[int]] = {}
        answered: dict[int, dict[int, float]] = {}
        others: dict[int, dict[str, dict[int, float]]] = {}
        for record in read_predictions(path):
            shots, question_id = int(record["shots"]), int(record["question_id"])
            asked.setdefault(shots, set()).add(question_id)
            if "error" not in record:
                answered.setdefault(shots, {})[question_id] = float(record["accuracy"])
                for key in record.keys() & _OTHER_METRICS:
                    by_metric = others.setdefault(shots, {}).setdefault(key.removeprefix("accuracy_"), {})
                    by_metric[question_id] = float(record[key])
        for shots, questions in asked.items():
            if n in (None, len(questions)) and subset in (None, own):
                selector = str(side["identity"].get("selector"))
                rows.append(Scores(name, selector, shots, answered.get(shots, {}), others.get(shots, {})))
                sets.setdefault(frozenset(questions), []).append(f"{name} [{own}]")
                identities[name] = {k: v for k, v in side["identity"].items() if k not in _MAY_DIFFER}
    if not rows:
        chosen = [f"over {n} queries"] * (n is not None) + [f"of the set {subset!r}"] * (subset is not None)
        raise RunError(f"{folder} holds no predictions {' '.join(chosen)}")
    if len(sets) > 1:
        told = [f"{len(questions)} queries: {', '.join(dict.fromkeys(names))}" for questions, names in sets.items()]
        raise RunError(
            "these rows answer different queries and cannot be compared:\n  "
            + "\n  ".join(told)
            + "\nChoose with --n or --set (in brackets), or answer the same queries with `icdsel infer`."
        )
    first = next(iter(identities))
    for name, made_of in identities.items():
        differing = differences(identities[first], made_of)
        if differing:
            raise RunError(f"{first} and {name} were made under different settings:\n  " + "\n  ".join(differing))
    rows = _without_failures(rows)
    return _united(rows) if names else rows


def _united(rows: Sequence[Scores]) -> list[Scores]:
    """Rows of one name as one: the mean, query by query."""
    same: dict[tuple[str, int], list[Scores]] = {}
    for row in rows:
        same.setdefault((row.name, row.shots), []).append(row)
    return [
        replace(
            own[0],
            by_query=_mean([row.by_query for row in own]),
            by_other_metric={m: _mean([row.by_other_metric[m] for row in own]) for m in _shared_metrics(own)},
        )
        for own in same.values()
    ]


def _without_failures(rows: Sequence[Scores]) -> list[Scores]:
    """Only the queries that every row has an answer to: a failed VLM call is no wrong answer."""
    common = set.intersection(*(set(row.by_query) for row in rows))
    if not common:
        raise RunError("no query was answered by every row: some of them failed; answer them again with --overwrite")

    def kept(scores: dict[int, float]) -> dict[int, float]:
        return {i: score for i, score in scores.items() if i in common}

    return [
        replace(row, by_query=kept(row.by_query), by_other_metric={m: kept(v) for m, v in row.by_other_metric.items()})
        for row in rows
    ]


def _means_over_seeds(rows: Sequence[Scores]) -> list[Scores]:
    """A row for every selector that was run with several seeds: the mean over seeds, query by query."""
    grouped: dict[tuple[str, int], list[Scores]] = {}
    for row in rows:
        match = _SEED.fullmatch(row.name)
        name = (match[1] or f"{match[2]}{match[3]}") if match else row.name
        grouped.setdefault((name, row.shots), []).append(row)
    return [
        Scores(
            f"{name} (mean over seeds)",
            same[0].selector,
            shots,
            _mean([row.by_query for row in same]),
            {metric: _mean([row.by_other_metric[metric] for row in same]) for metric in _shared_metrics(same)},
        )
        for (name, shots), same in grouped.items()
        if len(same) > 1
    ]


def _mean(scores: Sequence[dict[int, float]]) -> dict[int, float]:
    """Query by query."""
    return {i: float(np.mean([own[i] for own in scores])) for i in scores[0]}


def _shared_metrics(rows: Sequence[Scores]) -> list[str]:
    return sorted(set.intersection(*(set(row.by_other_metric) for row in rows)))


def _differing_metrics(rows: Sequence[Scores]) -> list[str]:
    """The metrics that all rows have and that count some answer otherwise than the one they are judged by."""
    return [metric for metric in _shared_metrics(rows) if any(r.by_query != r.by_other_metric[metric] for r in rows)]


def _line(row: Scores, reference: Scores | None, reference_name: str, seed: int) -> ComparisonRow:
    queries = sorted(row.by_query)
    values = np.array([row.by_query[i] for i in queries])
    mean = bootstrap_mean(values, seed=seed)
    difference = None
    if reference is not None and reference is not row:
        difference = paired_difference(values, np.array([reference.by_query[i] for i in queries]), seed=seed)
    return ComparisonRow(
        name=row.name,
        selector=row.selector,
        shots=row.shots,
        n=len(values),
        accuracy=_points(mean.mean),
        low=_points(mean.low),
        high=_points(mean.high),
        reference=reference_name,
        difference=None if difference is None else _points(difference.mean),
        difference_low=None if difference is None else _points(difference.low),
        difference_high=None if difference is None else _points(difference.high),
    )


def _points(share: float) -> float:
    return round(100 * share, 4)


def write_rows(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Writes the table as a JSON list."""
    write_json(path, [asdict(row) for row in rows], indent=1)
