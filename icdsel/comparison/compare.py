"""Compares runs and baselines, paired by query, with the uncertainty of every figure. Uses no VLM."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from icdsel.comparison.estimates import PERMUTATIONS, RESAMPLES, Estimator
from icdsel.comparison.labels import row_labels
from icdsel.comparison.rows import Comparable, read_comparable
from icdsel.comparison.scores import Scores, mean_over_seeds, shared_metrics
from icdsel.comparison.sources import own_files
from icdsel.comparison.statistics import holm
from icdsel.comparison.table_row import ComparisonRow
from icdsel.console import warn
from icdsel.errors import RunError
from icdsel.records import QuestionId, Shots, id_order, shots_order
from icdsel.selection import SELECTORS, always_shown, selector_named
from icdsel.settings.flags import infer_command
from icdsel.settings.loading import Settings
from icdsel.store.files import write_json
from icdsel.store.fingerprints import has_fingerprint

__all__ = ["MEAN", "Comparison", "ComparisonRow", "compare", "comparison_rows", "learned_and_worse", "write_rows"]

MEAN = " (mean over seeds)"
# Random p-values are at least 1/(permutations + 1). With _PERMUTATIONS_EACH for each difference of the table,
# the smallest possible p-value after Holm's correction is 0.001, whatever the size of the table.
_PERMUTATIONS_EACH = 1_000


@dataclass(frozen=True)
class Comparison(Sequence[ComparisonRow]):
    """A table: a sequence of its rows, which also has the scores behind them, to compare them in other ways.

    Attributes:
        rows: The rows, by shots and score.
        scores: The scores behind the rows by name and number of shots, query by query.
        seed: The seed of the resampling.
    """

    rows: Sequence[ComparisonRow]
    scores: Mapping[tuple[str, Shots], Scores]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def difference(self, row: ComparisonRow, reference: ComparisonRow) -> ComparisonRow:
        """`row` with its difference to any other row, also at another number of shots; `p_holm` is not filled in."""
        one, other = (self.scores[each.name, each.shots] for each in (row, reference))
        line = replace(row, reference=other.title, part_of=None, p_holm=None)
        return Estimator.of(self.scores.values(), self.seed).with_difference(line, one, other)

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
        estimator = Estimator.of(scores.values(), self.seed)
        lines = [estimator.line(own, reference.name, (), None) for own in scores.values()]
        part = Comparison(lines, scores, self.seed)
        return [lines[0], *(part.difference(line, lines[0]) for line in lines[1:])]


def compare(
    settings: Settings,
    paths: Sequence[Path] = (),
    *,
    n: int | None = None,
    subset: str | None = None,
    reference: str | None = None,
    shots: Sequence[Shots] = (),
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
    every = (*found.scores, *_means_over_seeds(found.scores))
    labels = row_labels(every, found.sources)
    rows = comparison_rows(found.scores, _title_of(reference, labels), seed=seed)
    scores = {(row.title, row.shots): row for row in every}
    asked, differing = found.asked, tuple(found.differing)
    return Comparison(
        [replace(row, label=labels[row.name], asked=asked, differing=differing) for row in rows], scores, seed
    )


def _title_of(reference: str | None, labels: Mapping[str, str]) -> str | None:
    """The title of the row with this short name, if there is just one; else `reference` as it is."""
    titles = [title for title, label in labels.items() if label == reference]
    return titles[0] if len(titles) == 1 else reference


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
        resamples: Bootstrap samples for an interval of a score that is no mean.
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
    rows.sort(key=lambda row: (shots_order(row.shots), *_rank(lead[row.title, row.shots]), not row.seeds, *_rank(row)))
    nothing = next((row for row in rows if row.shots == 0), None)
    pairs = [(row, _reference_of(row, references, nothing)) for row in rows]
    tested = sum(other not in (None, row) and (row.title, row.shots) not in mean_of for row, other in pairs)
    max_permutations = max(permutations, _PERMUTATIONS_EACH * tested)
    estimator = Estimator.of(
        scores, seed, resamples=resamples, permutations=permutations, max_permutations=max_permutations
    )
    metrics = _differing_metrics(rows)
    lines = []
    for row, other in pairs:
        combined = mean_of.get((row.title, row.shots))
        line = estimator.line(row, other.title if other else chosen, metrics, combined.title if combined else None)
        if other is not None and other is not row:
            line = estimator.with_difference(line, row, other)
        lines.append(estimator.with_corpus_scores(line, row, None if other is row else other))
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
    counts = sorted({row.shots for row in found.scores if row.shots}, key=shots_order)
    present = {(row.selector, row.shots) for row in found.scores}
    wanted = [(name, shots) for name in always_shown() for shots in SELECTORS[name].shot_counts(counts)]
    missing = [row for row in wanted if row not in present]
    if missing:
        names, shots = dict.fromkeys(name for name, _ in missing), {shots for _, shots in missing if shots}
        command = infer_command(found.sources[0].settings, names, sorted(shots, key=shots_order))
        warn(f"{' and '.join(names)} should be in the table, to show what a gain is worth. Answer them: {command}")


def _reference_of(row: Scores, references: Mapping[Shots, Scores], nothing: Scores | None) -> Scores | None:
    """The row that a row is compared with; None for none.

    That is the reference at the same number of shots, or where it shows nothing. A row whose selector decides how many
    ICDs to show is compared with showing none, unless the reference decides it too.
    """
    return references.get(row.shots, references.get(0)) or (nothing if isinstance(row.shots, str) else None)


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
    """The mean over seeds, query by query, of every selector that has several.

    The recommended epoch may differ between the seeds of a training: where each has one of the same phase in the table,
    these are averaged, else those of the same epoch.
    """
    families: dict[tuple[str, str, Shots], list[Scores]] = {}
    for row in rows:
        selector = selector_named(row.selector)
        name = selector.without_seed(selector.without_epoch(row.name))
        families.setdefault((name, row.place, row.shots), []).append(row)
    means = []
    for (family, _, _), members in families.items():
        selector = selector_named(members[0].selector)
        by_name: dict[str, list[Scores]] = {}
        for row in members:
            by_name.setdefault(selector.without_seed(row.name), []).append(row)
        if len(by_name) > 1 and len({selector.without_epoch(row.name) for row in members}) == len(members):
            by_name = {family: members}
        means += [mean_over_seeds(f"{name}{MEAN}", same) for name, same in by_name.items() if len(same) > 1]
    return means


def _differing_metrics(rows: Sequence[Scores]) -> list[str]:
    """The metrics that all rows have, and that score some answer differently from the row's own metric."""
    return [metric for metric in shared_metrics(rows) if any(r.by_query != r.by_other_metric[metric] for r in rows)]


def _corrected(lines: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The lines with p-values corrected for one another."""
    adjusted = iter(holm([line.p_value for line in lines if line.p_value is not None]))
    return [line if line.p_value is None else replace(line, p_holm=float(next(adjusted))) for line in lines]


def _rank(row: Scores) -> tuple[float, str]:
    return -row.score, row.title
