"""The figures of one row of a comparison: its score, and its difference to the reference."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from icdsel.comparison.corpus import CorpusEstimator
from icdsel.comparison.scores import Scores, seed_scores, values_of
from icdsel.comparison.statistics import (
    Clusters,
    Floats,
    Interval,
    PairedDifference,
    SeedScores,
    aggregate_difference,
    aggregate_score,
    mcnemar,
    permutation_pvalue,
    score_interval,
    swap_pvalue,
    wins_losses_ties,
)
from icdsel.comparison.table_row import ComparisonRow
from icdsel.records import QuestionId, id_order
from icdsel.selection import selector_named
from icdsel.tasks.base import TASKS, Task, mean

RESAMPLES, PERMUTATIONS = 10_000, 10_000
_CLEAR = 0.01  # a p-value above it is precise enough with PERMUTATIONS
_ENOUGH_SEEDS = 10  # training seeds from which their spread is known well enough to plan with


@dataclass(frozen=True)
class Estimator:
    """Computes the figures of a table.

    Attributes:
        clusters: Of the queries, by ascending question_id: those on one image.
        images: How many images there are; None if that is unknown for some queries.
        seed: Seed of the resampling.
        resamples: Bootstrap samples, for scores that are no means.
        permutations: Sign flips for a p-value.
        max_permutations: Sign flips for a small p-value.
    """

    clusters: Clusters
    images: int | None
    seed: int
    resamples: int = RESAMPLES
    permutations: int = PERMUTATIONS
    max_permutations: int = PERMUTATIONS

    @classmethod
    def of(cls, rows: Iterable[Scores], seed: int, **draws: int) -> "Estimator":
        """For rows over the same queries; the image of a query may be known from any of them."""
        image_of: dict[QuestionId, QuestionId] = {}
        queries: Iterable[QuestionId] = ()
        for row in rows:
            queries = row.by_query
            image_of |= row.images
        labels = [(i in image_of, image_of.get(i, i)) for i in sorted(queries, key=id_order)]
        clusters = Clusters(labels)
        return cls(clusters, clusters.count if all(known for known, _ in labels) else None, seed, **draws)

    def line(self, row: Scores, reference: str, metrics: Sequence[str], part_of: str | None) -> ComparisonRow:
        """The row without its difference to the reference."""
        task, correct = TASKS.named(row.task), row.correct
        score = self._score(task, seed_scores(row))
        by_seed = [part.score for part in row.seeds]
        return ComparisonRow(
            name=row.title,
            selector=row.selector,
            shots=row.shots,
            n=len(row.by_query),
            accuracy=task.in_unit(score.mean),
            low=_known(task, score.low),
            high=_known(task, score.high),
            reference=reference,
            difference=None,
            difference_low=None,
            difference_high=None,
            metric=row.metric,
            other_metrics={metric: task.in_unit(row.other_score(metric)) for metric in metrics},
            correct=None if correct is None else round(100 * float(values_of(correct).mean()), 4),
            seeds=len(row.seeds) or 1,
            seed_low=task.in_unit(min(by_seed)) if by_seed else None,
            seed_high=task.in_unit(max(by_seed)) if by_seed else None,
            part_of=part_of,
            files=tuple(map(str, row.files)),
            task=row.task,
            pool=row.pool,
            images=self.images,
            mean_shots=_rounded(row.mean_shots),
            shown_none=_rounded(None if row.shown_none is None else 100 * row.shown_none),
            mean_prompt_tokens=_rounded(row.mean_prompt_tokens),
        )

    def with_difference(self, line: ComparisonRow, row: Scores, reference: Scores) -> ComparisonRow:
        """The line with the difference between the row and the reference, paired by query and seed."""
        task = TASKS.named(row.task)
        one, other = seed_scores(row), seed_scores(reference)
        tally = wins_losses_ties(one.by_query, other.by_query)
        found = PairedDifference.of(one, other, clusters=self.clusters, bounds=task.bounds)
        seeded = max(one.seeds, other.seeds) > 1
        if task.aggregate is mean:
            difference, p_value = found.interval(), found.p_value() if seeded else None
            detectable = found.smallest_detectable() if not _few_training_seeds(row, reference) else math.inf
        else:
            detectable = math.inf
            difference, p_value = aggregate_difference(
                task.aggregate,
                one,
                other,
                clusters=self.clusters,
                bounds=task.bounds,
                seed=self.seed,
                resamples=self.resamples,
            )
        line = replace(
            line,
            difference=task.in_unit(difference.mean),
            difference_low=_known(task, difference.low),
            difference_high=_known(task, difference.high),
            detectable=_known(task, detectable),
            wins=tally.wins,
            losses=tally.losses,
            ties=tally.ties,
            seed_share=round(found.variance.share_of_seeds, 4) if seeded else None,
        )
        if line.part_of is not None:
            return line
        if p_value is None:
            p_value = self._exact_p_value(task, one.by_query, other.by_query)
        return replace(line, p_value=p_value, mcnemar_p=self._correctness_p_value(row, reference))

    def with_corpus_scores(self, line: ComparisonRow, row: Scores, reference: Scores | None) -> ComparisonRow:
        """The line with the row's corpus scores, compared with those of the reference."""
        corpus = CorpusEstimator(self.clusters, self.seed, self.resamples, self.permutations)
        return replace(line, corpus=corpus.figures(row, reference))

    def _score(self, task: Task, row: SeedScores) -> Interval:
        if task.aggregate is mean:
            return score_interval(row, clusters=self.clusters, bounds=task.bounds)
        return aggregate_score(
            task.aggregate,
            row,
            clusters=self.clusters,
            bounds=task.bounds,
            seed=self.seed,
            resamples=self.resamples,
        )

    def _exact_p_value(self, task: Task, scores: Floats, baseline: Floats) -> float:
        """Without several seeds: by random flips or swaps, more of them if the p-value is small."""

        def drawn(seed: int, permutations: int) -> float:
            how = {"seed": seed, "permutations": permutations}
            if task.aggregate is mean:
                return permutation_pvalue(scores - baseline, clusters=self.clusters, **how)
            return swap_pvalue(task.aggregate, scores, baseline, clusters=self.clusters, **how)

        p_value = drawn(self.seed, self.permutations)
        # Each draw gives a valid p-value; the second one makes a small p-value more precise.
        if p_value < _CLEAR and self.max_permutations > self.permutations:
            return drawn(self.seed + 1, self.max_permutations)
        return p_value

    def _correctness_p_value(self, row: Scores, reference: Scores) -> float | None:
        if row.correct is None or reference.correct is None:
            return None
        if row.seeds or reference.seeds:
            one, other = (seed_scores(each, lambda part: values_of(part.correct or {})) for each in (row, reference))
            return PairedDifference.of(one, other, clusters=self.clusters).p_value()
        correct, baseline = values_of(row.correct), values_of(reference.correct)
        if self.clusters.singletons:
            return mcnemar(correct, baseline)
        return permutation_pvalue(
            correct - baseline, seed=self.seed, permutations=self.permutations, clusters=self.clusters
        )


def _few_training_seeds(*rows: Scores) -> bool:
    """Whether a row is a mean over training seeds, but of few."""
    return any(1 < len(row.seeds) < _ENOUGH_SEEDS and selector_named(row.selector).needs_policy for row in rows)


def _rounded(mean: float | None) -> float | None:
    return None if mean is None else round(mean, 4)


def _known(task: Task, score: float) -> float | None:
    """In the unit of the task; None for a figure that is not known."""
    return task.in_unit(score) if math.isfinite(score) else None
