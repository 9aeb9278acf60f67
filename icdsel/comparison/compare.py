"""Runs and baselines side by side, paired by query, with the uncertainty of every figure. Asks no VLM."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icdsel.artefacts.predictions import predictions_dir
from icdsel.comparison.rows import Comparable, read_comparable
from icdsel.comparison.scores import Scores, mean_over_seeds, shared_metrics
from icdsel.comparison.statistics import (
    bootstrap_mean,
    holm,
    mcnemar,
    permutation_pvalue,
    smallest_detectable_difference,
    wins_losses_ties,
)
from icdsel.console import warn
from icdsel.errors import RunError
from icdsel.selection import SELECTORS, always_shown, selector_named
from icdsel.settings.flags import infer_command
from icdsel.settings.loading import Settings
from icdsel.store.files import write_json
from icdsel.store.fingerprints import has_fingerprint

MEAN = " (mean over seeds)"
RESAMPLES = 10_000
# Random p-values are at least 1/(permutations + 1). With so many for each difference of the table, those that no
# flip reaches come out of Holm's correction at 0.001 whatever the size of the table.
PERMUTATIONS, _PERMUTATIONS_EACH = 10_000, 1_000
_CLEAR = 0.01  # a p-value above it is known well enough from PERMUTATIONS


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table; accuracies and differences in points, 0 to 100.

    `low` and `high` bound the 95 % interval (bootstrap over queries; of a mean over seeds: of these seeds). The
    difference is to `reference` at the same number of shots (zero-shot: at none), paired by query; None for the
    reference itself, and all that follows from it too.
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
    correct: float = 0.0
    """Hard correctness: the share of queries whose accuracy is above 0, in percent."""
    seeds: int = 1
    """How many seeds the row is the mean of."""
    seed_low: float | None = None
    """Accuracy of the lowest seed; None where the row is no mean."""
    seed_high: float | None = None
    part_of: str | None = None
    """The mean that the row is a seed of. Such a row is no question of its own and has no p-values."""
    p_value: float | None = None
    """Of no difference to the reference, by random sign flips (two-sided)."""
    p_holm: float | None = None
    """The same, corrected for all the differences of the table that have a p-value (Holm)."""
    detectable: float | None = None
    """The smallest true difference that as many queries show with 80 % power at the 5 % level, before correction;
    None where the differences do not vary."""
    wins: int | None = None
    """Queries on which the row is better than the reference, worse, and the same."""
    losses: int | None = None
    ties: int | None = None
    mcnemar_p: float | None = None
    """Of no difference in hard correctness: McNemar's exact test, uncorrected. Where the row or the reference is a
    mean over seeds, the sign flips of the shares of seeds that are right, of which McNemar's is the case of one."""
    asked: int = 0
    """Queries that every row was asked; those that failed in some row are left out of `n`."""
    differing: tuple[str, ...] = ()
    """What differs between the rows of the table and was allowed to."""
    files: tuple[str, ...] = ()
    """The predictions files that the row was made from: of a mean those of its seeds."""

    @property
    def learned(self) -> bool:
        """Whether a policy chose."""
        return selector_named(self.selector).needs_policy


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
) -> list[ComparisonRow]:
    """The table over predictions files; warns where zero-shot or the majority answer are missing.

    Args:
        settings: Say where the predictions lie, and the seed of the resampling.
        paths: Predictions files or folders of them; by default all of this dataset, sampler and model.
        n: Compare the rows over this many queries only, where predictions over several sets exist.
        subset: Compare the rows over the set of this name only.
        reference: Name of the row that differences are taken to; by default `random`, else zero-shot.
        shots: The numbers of shots to show; all by default. Zero-shot always stands in the table.
        allow_different: Compare different metrics, prompts and models too, and of different queries those that
            all rows share. The rows say so in `differing`.
        names: The files to compare, instead of `paths`, and what their rows are called. Files of one name (the
            seeds of an experiment) are one row, their mean query by query.

    Raises:
        RunError: nothing to compare, different queries or settings, an unknown reference.
    """
    files = list(names) if names else paths or [predictions_dir(settings)]
    found = read_comparable(files, n=n, subset=subset, shots=shots, allow_different=allow_different, names=names)
    _warn_of_missing_baselines(found)
    for source in found.sources:
        policy = source.checkpoint
        if policy and policy.is_file() and not has_fingerprint(policy, source.identity.get("checkpoint")):
            warn(f"{source.path} was answered by another policy than {policy} is now: `icdsel infer --overwrite`")
    rows = comparison_rows(found.scores, reference, seed=settings.data.seed)
    return [replace(row, asked=found.asked, differing=tuple(found.differing)) for row in rows]


def comparison_rows(
    scores: Sequence[Scores],
    reference: str | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> list[ComparisonRow]:
    """The table over rows that answer the same queries, by shots and accuracy, with means over seeds.

    Args:
        scores: The rows, their titles distinct at each number of shots.
        reference: As for `compare`; a name, with its place where there are several.
        seed: Of the resampling.
        resamples: Bootstrap samples behind an interval.
        permutations: Sign flips behind a p-value; more behind a small one, as many as Holm's correction needs.

    Raises:
        RunError: there is no such reference.
    """
    means = _means_over_seeds(scores)
    whole = {(part.title, part.shots): mean for mean in means for part in mean.seeds}
    rows = [*scores, *means]
    chosen = _reference_title(rows, reference)
    references = {row.shots: row for row in rows if row.title == chosen}
    # Where only one seed of a mean was answered, it stands for the mean.
    seeds = {part.title for mean in means if mean.title == chosen for part in mean.seeds}
    references |= {row.shots: row for row in rows if row.title in seeds and row.shots not in references}
    # The best first; seeds follow their mean.
    led = {(row.title, row.shots): whole.get((row.title, row.shots), row) for row in rows}
    rows.sort(key=lambda row: (row.shots, *_rank(led[row.title, row.shots]), not row.seeds, *_rank(row)))
    pairs = [(row, references.get(row.shots, references.get(0))) for row in rows]
    questions = sum(other not in (None, row) and (row.title, row.shots) not in whole for row, other in pairs)
    most = max(permutations, _PERMUTATIONS_EACH * questions)
    metrics = _differing_metrics(rows)
    lines = []
    for row, other in pairs:
        mean = whole.get((row.title, row.shots))
        named = other.title if other else chosen
        line = _line(row, named, metrics, mean.title if mean else None, seed, resamples)
        if other is not None and other is not row:
            line = _with_difference(line, row, other, seed, resamples, permutations, most)
        lines.append(line)
    return _corrected(lines)


def learned_and_worse(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The learned policies that are surely worse than the reference: the difference's whole interval is below 0.

    A seed of a mean is not judged by itself.
    """
    return [row for row in rows if row.learned and row.part_of is None and (row.difference_high or 0) < 0]


def write_rows(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Writes the table as a JSON list."""
    write_json(path, [asdict(row) for row in rows], indent=1)


def _warn_of_missing_baselines(found: Comparable) -> None:
    """Some baselines belong in every table: without them nobody knows what a gain is worth."""
    counts = sorted({row.shots for row in found.scores if row.shots})
    present = {(row.selector, row.shots) for row in found.scores}
    wanted = [(name, shots) for name in always_shown() for shots in SELECTORS[name].shot_counts(counts)]
    missing = [row for row in wanted if row not in present]
    if missing:
        names, shots = dict.fromkeys(name for name, _ in missing), {shots for _, shots in missing if shots}
        command = infer_command(found.sources[0].settings, names, sorted(shots))
        warn(f"{' and '.join(names)} should stand in the table, to say what a gain is worth. Answer them: {command}")


def _reference_title(rows: Sequence[Scores], wanted: str | None) -> str:
    """The row that differences are taken to; `random` (the default) is the mean over its seeds where there are several.

    Raises:
        RunError: there is no such row, or several.
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
    """A row for every selector that was run with several seeds: the mean over seeds, query by query."""
    grouped: dict[tuple[str, str, int], list[Scores]] = {}
    for row in rows:
        name = selector_named(row.selector).without_seed(row.name)
        grouped.setdefault((name, row.place, row.shots), []).append(row)
    return [mean_over_seeds(f"{name}{MEAN}", same) for (name, _, _), same in grouped.items() if len(same) > 1]


def _differing_metrics(rows: Sequence[Scores]) -> list[str]:
    """The metrics that all rows have and that count some answer otherwise than the one they are judged by."""
    return [metric for metric in shared_metrics(rows) if any(r.by_query != r.by_other_metric[metric] for r in rows)]


def _line(
    row: Scores, reference: str, metrics: Sequence[str], part_of: str | None, seed: int, resamples: int
) -> ComparisonRow:
    """The row without its difference to the reference."""
    mean = bootstrap_mean(_values(row.by_query), seed=seed, resamples=resamples)
    by_seed = [_accuracy(part) for part in row.seeds]
    return ComparisonRow(
        name=row.title,
        selector=row.selector,
        shots=row.shots,
        n=len(row.by_query),
        accuracy=_points(mean.mean),
        low=_points(mean.low),
        high=_points(mean.high),
        reference=reference,
        difference=None,
        difference_low=None,
        difference_high=None,
        metric=row.metric,
        other_metrics={metric: _points(float(_values(row.by_other_metric[metric]).mean())) for metric in metrics},
        correct=_points(float(_values(row.correct).mean())),
        seeds=len(row.seeds) or 1,
        seed_low=_points(min(by_seed)) if by_seed else None,
        seed_high=_points(max(by_seed)) if by_seed else None,
        part_of=part_of,
        files=tuple(map(str, row.files)),
    )


def _with_difference(
    line: ComparisonRow, row: Scores, reference: Scores, seed: int, resamples: int, permutations: int, most: int
) -> ComparisonRow:
    """The line with what the row and the reference differ in, query by query."""
    mine, theirs = _values(row.by_query), _values(reference.by_query)
    differences = mine - theirs
    mean = bootstrap_mean(differences, seed=seed, resamples=resamples)
    tally = wins_losses_ties(mine, theirs)
    detectable = smallest_detectable_difference(differences)
    line = replace(
        line,
        difference=_points(mean.mean),
        difference_low=_points(mean.low),
        difference_high=_points(mean.high),
        detectable=_points(detectable) if 0 < detectable < math.inf else None,
        wins=tally.wins,
        losses=tally.losses,
        ties=tally.ties,
    )
    if line.part_of is not None:
        return line
    right, other_right = _values(row.correct), _values(reference.correct)
    if row.seeds or reference.seeds:
        hard = permutation_pvalue(right - other_right, seed=seed, permutations=permutations)
    else:
        hard = mcnemar(right, other_right)
    p_value = permutation_pvalue(differences, seed=seed, permutations=permutations)
    # Each draw gives a valid p-value, and the second can only take back what the first calls small.
    if p_value < _CLEAR and most > permutations:
        p_value = permutation_pvalue(differences, seed=seed + 1, permutations=most)
    return replace(line, p_value=p_value, mcnemar_p=hard)


def _corrected(lines: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The lines with p-values corrected for one another."""
    asked = [line.p_value for line in lines if line.p_value is not None]
    adjusted = iter(holm(asked))
    return [line if line.p_value is None else replace(line, p_holm=float(next(adjusted))) for line in lines]


def _values(scores: Mapping[int, float]) -> NDArray[np.float64]:
    """By question_id, ascending."""
    return np.array([scores[i] for i in sorted(scores)])


def _rank(row: Scores) -> tuple[float, str]:
    return -_accuracy(row), row.title


def _accuracy(row: Scores) -> float:
    return float(_values(row.by_query).mean())


def _points(share: float) -> float:
    return round(100 * share, 4)
