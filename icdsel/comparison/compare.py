"""Compares runs and baselines, paired by query, with the uncertainty of every figure. Uses no VLM."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from icdsel.comparison.rows import Comparable, read_comparable
from icdsel.comparison.scores import Scores, mean_over_seeds, shared_metrics, values_of
from icdsel.comparison.sources import own_files
from icdsel.comparison.statistics import (
    Floats,
    Interval,
    bootstrap_aggregate,
    bootstrap_mean,
    holm,
    mcnemar,
    permutation_pvalue,
    smallest_detectable_difference,
    swap_pvalue,
    wins_losses_ties,
)
from icdsel.console import warn
from icdsel.errors import RunError
from icdsel.records import DEFAULT_TASK, QuestionId, id_order
from icdsel.records.values import task_entry
from icdsel.selection import SELECTORS, always_shown, selector_named
from icdsel.settings.flags import infer_command
from icdsel.settings.loading import Settings
from icdsel.store.files import write_json
from icdsel.store.fingerprints import has_fingerprint
from icdsel.tasks.base import TASKS, Task, mean

MEAN = " (mean over seeds)"
RESAMPLES = 10_000
# Random p-values are at least 1/(permutations + 1). With _PERMUTATIONS_EACH for each difference of the table,
# the smallest possible p-value after Holm's correction is 0.001, whatever the size of the table.
PERMUTATIONS, _PERMUTATIONS_EACH = 10_000, 1_000
_CLEAR = 0.01  # a p-value above it is precise enough with PERMUTATIONS


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table; scores and differences in the unit of the task (of the VQA accuracy: points, 0 to 100).

    Attributes:
        name: The run and checkpoint, or the selector.
        selector: The selector.
        shots: The number of shots.
        n: Queries that count: those that every row has an answer to.
        accuracy: The score of these queries together.
        low: Lower bound of its 95 % interval (bootstrap over queries; of a mean over seeds: over these seeds).
        high: Upper bound.
        reference: The row that differences are relative to.
        difference: To the reference at the same number of shots (zero-shot: at 0 shots), paired by query; for the
            reference itself it is None, as is everything below that depends on it.
        difference_low: Lower bound of its 95 % interval.
        difference_high: Upper bound.
        metric: The metric of the score.
        other_metrics: Scores by the task's other metrics, if they differ for any row of the table.
        correct: Share of the queries with a correct prediction, in percent; None if the task has no notion of correct.
        seeds: How many seeds the row is the mean of.
        seed_low: Score of the lowest seed; None if the row is not a mean.
        seed_high: Score of the highest seed.
        part_of: The mean that the row is a seed of. Such a row is not tested separately and has no p-values.
        p_value: Of no difference to the reference, by random sign flips (two-sided).
        p_holm: The same, corrected for all the differences of the table that have a p-value (Holm).
        detectable: The smallest true difference that this number of queries shows with 80 % power at the 5 % level,
            before correction; None if the differences do not vary.
        wins: Queries on which the row is better than the reference.
        losses: Queries on which it is worse.
        ties: Queries on which it is the same.
        mcnemar_p: Of no difference in correctness, by McNemar's exact test, uncorrected. If the row or the reference
            is a mean over seeds, by the sign flips of the shares of correct seeds, which for one seed is McNemar's
            test. None if the task has no notion of correct.
        asked: Queries of every row; those whose call failed in any row are left out of `n`.
        differing: Differences between the rows of the table that were allowed.
        files: The files of predictions; of a mean those of its seeds.
        task: The task.
        pool: What the selector chose from: `64`, a candidate pool of that size, or `all`, the whole training split;
            None if it chose nothing.
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
    metric: str
    other_metrics: dict[str, float] = field(default_factory=dict)
    correct: float | None = None
    seeds: int = 1
    seed_low: float | None = None
    seed_high: float | None = None
    part_of: str | None = None
    p_value: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    wins: int | None = None
    losses: int | None = None
    ties: int | None = None
    mcnemar_p: float | None = None
    asked: int = 0
    differing: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    task: str = DEFAULT_TASK
    pool: str | None = None

    def text(self, value: float | None, sign: str = "") -> str:
        """A score or difference with the decimals of the task, with its sign if `sign` is "+"; empty for None."""
        return "" if value is None else f"{value:{sign}.{TASKS.named(self.task).digits}f}"

    def to_json(self) -> dict[str, Any]:
        """The row as plain values; the task only if it is not VQA."""
        values = asdict(self)
        task = values.pop("task")
        return values | task_entry(task)

    @property
    def learned(self) -> bool:
        """Whether a policy chose."""
        return selector_named(self.selector).needs_policy


@dataclass(frozen=True)
class Comparison(Sequence[ComparisonRow]):
    """A table: a sequence of its rows, which also has the scores behind them, to compare them in other ways.

    Attributes:
        rows: The rows, by shots and score.
        scores: The scores behind the rows by name and number of shots, query by query.
        seed: The seed of the resampling.
    """

    rows: Sequence[ComparisonRow]
    scores: Mapping[tuple[str, int], Scores]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def difference(self, row: ComparisonRow, reference: ComparisonRow) -> ComparisonRow:
        """`row` with its difference to any other row, also at another number of shots; `p_holm` is not filled in."""
        one, other = (self.scores[each.name, each.shots] for each in (row, reference))
        line = replace(row, reference=other.title, part_of=None, p_holm=None)
        return _with_difference(line, one, other, self.seed, RESAMPLES, PERMUTATIONS, PERMUTATIONS)

    @property
    def query_ids(self) -> list[QuestionId]:
        """The queries that every row has an answer to, in order."""
        return sorted(next(iter(self.scores.values())).by_query, key=id_order)

    def among(
        self, queries: Collection[QuestionId], reference: ComparisonRow, *rows: ComparisonRow
    ) -> list[ComparisonRow]:
        """`reference` and `rows` over some of the queries alone, the rows with their difference to it.

        Args:
            queries: At least one of the queries.
            reference: A row of the table.
            rows: Others.
        """
        wanted = frozenset(queries)
        scores = {(row.name, row.shots): self.scores[row.name, row.shots].among(wanted) for row in (reference, *rows)}
        lines = [_line(own, reference.name, (), None, self.seed, RESAMPLES) for own in scores.values()]
        part = Comparison(lines, scores, self.seed)
        return [lines[0], *(part.difference(line, lines[0]) for line in lines[1:])]


def compare(
    settings: Settings,
    paths: Sequence[Path] = (),
    *,
    n: int | None = None,
    subset: str | None = None,
    reference: str | None = None,
    shots: Sequence[int] = (),
    allow_different: bool = False,
    names: Mapping[Path, str] | None = None,
) -> Comparison:
    """The table of files of predictions; warns if zero-shot or the majority answer is missing.

    Args:
        settings: Where the predictions are, and the seed of the resampling.
        paths: Files of predictions or folders of them; by default all of this dataset, sampler and model, over pools
            of any size.
        n: Compare only rows over this many queries, if there are predictions over several sets.
        subset: Compare only rows over the set of this name.
        reference: Name of the row that differences are relative to; by default `random`, else zero-shot.
        shots: The numbers of shots to show; all by default. Zero-shot is always shown.
        allow_different: Also compare rows with different metrics, prompts or models. `differing` lists the
            differences. If the queries of the rows differ, those that all rows share are compared in any case.
        names: The files to compare, instead of `paths`, and the names of their rows. Files of the same name (the
            seeds of an experiment) become one row, their mean query by query.

    Raises:
        RunError: There is nothing to compare, the rows share no query, settings differ, or the reference is unknown.
    """
    files = list(names) if names else paths or own_files(settings, any_split=subset is not None)
    found = read_comparable(files, n=n, subset=subset, shots=shots, allow_different=allow_different, names=names)
    _warn_of_missing_baselines(found)
    for source in found.sources:
        policy = source.checkpoint
        if policy and policy.is_file() and not has_fingerprint(policy, source.identity.get("checkpoint")):
            warn(f"{source.path} is from another policy than {policy} is now: `icdsel infer --overwrite`")
    seed = settings.data.seed
    rows = comparison_rows(found.scores, reference, seed=seed)
    scores = {(row.title, row.shots): row for row in (*found.scores, *_means_over_seeds(found.scores))}
    return Comparison([replace(row, asked=found.asked, differing=tuple(found.differing)) for row in rows], scores, seed)


def comparison_rows(
    scores: Sequence[Scores],
    reference: str | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> list[ComparisonRow]:
    """The table of rows over the same queries, by shots and score, with means over seeds.

    Args:
        scores: The rows, with distinct titles at each number of shots.
        reference: As for `compare`; a name, with its place if there are several.
        seed: Seed of the resampling.
        resamples: Bootstrap samples for an interval.
        permutations: Sign flips for a p-value; a small p-value is computed with as many as Holm's correction needs.

    Raises:
        RunError: There is no such reference.
    """
    means = _means_over_seeds(scores)
    mean_of = {(part.title, part.shots): combined for combined in means for part in combined.seeds}
    rows = [*scores, *means]
    chosen = _reference_title(rows, reference)
    references = {row.shots: row for row in rows if row.title == chosen}
    # Where only one seed of a mean was answered, that seed replaces the mean.
    seeds = {part.title for combined in means if combined.title == chosen for part in combined.seeds}
    references |= {row.shots: row for row in rows if row.title in seeds and row.shots not in references}
    # The best first; seeds follow their mean.
    lead = {(row.title, row.shots): mean_of.get((row.title, row.shots), row) for row in rows}
    rows.sort(key=lambda row: (row.shots, *_rank(lead[row.title, row.shots]), not row.seeds, *_rank(row)))
    pairs = [(row, references.get(row.shots, references.get(0))) for row in rows]
    tested = sum(other not in (None, row) and (row.title, row.shots) not in mean_of for row, other in pairs)
    max_permutations = max(permutations, _PERMUTATIONS_EACH * tested)
    metrics = _differing_metrics(rows)
    lines = []
    for row, other in pairs:
        combined = mean_of.get((row.title, row.shots))
        line = _line(
            row, other.title if other else chosen, metrics, combined.title if combined else None, seed, resamples
        )
        if other is not None and other is not row:
            line = _with_difference(line, row, other, seed, resamples, permutations, max_permutations)
        lines.append(line)
    return _corrected(lines)


def learned_and_worse(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The learned policies that are worse than the reference: the whole interval of the difference is below 0.

    The seeds of a mean are not judged by themselves.
    """
    return [row for row in rows if row.learned and row.part_of is None and (row.difference_high or 0) < 0]


def write_rows(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Writes the table as a JSON list."""
    write_json(path, [row.to_json() for row in rows], indent=1)


def _warn_of_missing_baselines(found: Comparable) -> None:
    """Warns if the table lacks a baseline that every table needs, since a gain means little without it."""
    counts = sorted({row.shots for row in found.scores if row.shots})
    present = {(row.selector, row.shots) for row in found.scores}
    wanted = [(name, shots) for name in always_shown() for shots in SELECTORS[name].shot_counts(counts)]
    missing = [row for row in wanted if row not in present]
    if missing:
        names, shots = dict.fromkeys(name for name, _ in missing), {shots for _, shots in missing if shots}
        command = infer_command(found.sources[0].settings, names, sorted(shots))
        warn(f"{' and '.join(names)} should be in the table: they show what a gain is worth. Create them: {command}")


def _reference_title(rows: Sequence[Scores], wanted: str | None) -> str:
    """The row that differences are relative to; `random` (the default) is the mean over its seeds if there are several.

    Raises:
        RunError: There is no such row, or several.
    """
    titles = list(dict.fromkeys(row.title for row in rows))
    if wanted is None:
        return max(rows, key=_as_reference).title  # the first of equals
    if wanted in titles:
        return wanted
    seeds = [row for row in rows if row.name != wanted == selector_named(row.selector).without_seed(row.name)]
    if seeds:
        return next((row.title for row in rows if row.name == f"{wanted}{MEAN}"), seeds[0].title)
    named = list(dict.fromkeys(row.title for row in rows if row.name == wanted))
    if len(named) == 1:
        return named[0]
    count = "several rows are called" if named else "no row"
    raise RunError(
        f"{count} {wanted!r} to compare with: there are {', '.join(named or titles)}. Choose one with --reference."
    )


def _as_reference(row: Scores) -> tuple[int, bool]:
    """How well a row serves as the reference: by its selector, then means over seeds before single seeds."""
    rank = selector_named(row.selector).reference_rank
    return rank, bool(rank and row.seeds)


def _means_over_seeds(rows: Sequence[Scores]) -> list[Scores]:
    """The mean over seeds, query by query, of every selector that has several."""
    grouped: dict[tuple[str, str, int], list[Scores]] = {}
    for row in rows:
        name = selector_named(row.selector).without_seed(row.name)
        grouped.setdefault((name, row.place, row.shots), []).append(row)
    return [mean_over_seeds(f"{name}{MEAN}", same) for (name, _, _), same in grouped.items() if len(same) > 1]


def _differing_metrics(rows: Sequence[Scores]) -> list[str]:
    """The metrics that all rows have, and that score some answer differently from the row's own metric."""
    return [metric for metric in shared_metrics(rows) if any(r.by_query != r.by_other_metric[metric] for r in rows)]


def _line(
    row: Scores, reference: str, metrics: Sequence[str], part_of: str | None, seed: int, resamples: int
) -> ComparisonRow:
    """The row without its difference to the reference."""
    task, correct = TASKS.named(row.task), row.correct
    score = _interval(task, values_of(row.by_query), seed=seed, resamples=resamples)
    by_seed = [part.score for part in row.seeds]
    others = {metric: task.aggregate(values_of(row.by_other_metric[metric])) for metric in metrics}
    return ComparisonRow(
        name=row.title,
        selector=row.selector,
        shots=row.shots,
        n=len(row.by_query),
        accuracy=_in_unit(task, score.mean),
        low=_in_unit(task, score.low),
        high=_in_unit(task, score.high),
        reference=reference,
        difference=None,
        difference_low=None,
        difference_high=None,
        metric=row.metric,
        other_metrics={metric: _in_unit(task, float(value)) for metric, value in others.items()},
        correct=None if correct is None else round(100 * float(values_of(correct).mean()), 4),
        seeds=len(row.seeds) or 1,
        seed_low=_in_unit(task, min(by_seed)) if by_seed else None,
        seed_high=_in_unit(task, max(by_seed)) if by_seed else None,
        part_of=part_of,
        files=tuple(map(str, row.files)),
        task=row.task,
        pool=row.pool,
    )


def _with_difference(
    line: ComparisonRow,
    row: Scores,
    reference: Scores,
    seed: int,
    resamples: int,
    permutations: int,
    max_permutations: int,
) -> ComparisonRow:
    """The line with the difference between the row and the reference, paired by query."""
    task = TASKS.named(row.task)
    scores, baseline = values_of(row.by_query), values_of(reference.by_query)
    difference = _interval(task, scores, baseline, seed=seed, resamples=resamples)
    tally = wins_losses_ties(scores, baseline)
    detectable = smallest_detectable_difference(scores - baseline) if task.aggregate is mean else math.inf
    line = replace(
        line,
        difference=_in_unit(task, difference.mean),
        difference_low=_in_unit(task, difference.low),
        difference_high=_in_unit(task, difference.high),
        detectable=_in_unit(task, detectable) if 0 < detectable < math.inf else None,
        wins=tally.wins,
        losses=tally.losses,
        ties=tally.ties,
    )
    if line.part_of is not None:
        return line
    p_value = _p_value(task, scores, baseline, seed=seed, permutations=permutations)
    # Each draw gives a valid p-value; the second one makes a small p-value more precise.
    if p_value < _CLEAR and max_permutations > permutations:
        p_value = _p_value(task, scores, baseline, seed=seed + 1, permutations=max_permutations)
    line = replace(line, p_value=p_value)
    if row.correct is None or reference.correct is None:
        return line
    correct, other = values_of(row.correct), values_of(reference.correct)
    if row.seeds or reference.seeds:
        return replace(line, mcnemar_p=permutation_pvalue(correct - other, seed=seed, permutations=permutations))
    return replace(line, mcnemar_p=mcnemar(correct, other))


def _interval(task: Task, scores: Floats, baseline: Floats | None = None, *, seed: int, resamples: int) -> Interval:
    """The score of a row, or its difference to another one, with the interval."""
    if task.aggregate is mean:
        return bootstrap_mean(scores if baseline is None else scores - baseline, seed=seed, resamples=resamples)
    samples = (scores,) if baseline is None else (scores, baseline)
    return bootstrap_aggregate(task.aggregate, *samples, seed=seed, resamples=resamples)


def _p_value(task: Task, scores: Floats, baseline: Floats, *, seed: int, permutations: int) -> float:
    if task.aggregate is mean:
        return permutation_pvalue(scores - baseline, seed=seed, permutations=permutations)
    return swap_pvalue(task.aggregate, scores, baseline, seed=seed, permutations=permutations)


def _corrected(lines: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The lines with p-values corrected for one another."""
    adjusted = iter(holm([line.p_value for line in lines if line.p_value is not None]))
    return [line if line.p_value is None else replace(line, p_holm=float(next(adjusted))) for line in lines]


def _rank(row: Scores) -> tuple[float, str]:
    return -row.score, row.title


def _in_unit(task: Task, score: float) -> float:
    return round(task.factor * score, 4)
