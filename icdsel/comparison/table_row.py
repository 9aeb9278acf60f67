"""One line of a comparison: everything that its tables, files and the page show of a row."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from icdsel.comparison.corpus import CorpusFigure
from icdsel.records import DEFAULT_TASK, Shots
from icdsel.records.values import task_entry
from icdsel.selection import selector_named
from icdsel.tasks.base import TASKS, Task


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table; scores and differences in the unit of the task (of the VQA accuracy: points, 0 to 100).

    Attributes:
        name: The run and checkpoint, or the selector.
        selector: The selector.
        shots: The number of shots, or `auto` where the selector decided it for each query.
        n: Queries that count: those that every row has an answer to.
        accuracy: The score of these queries together.
        low: Lower bound of its 95 % interval, over other queries (by image) and, of a mean over seeds, other seeds.
            None if the data say nothing about it.
        high: Upper bound.
        reference: The row that differences are relative to.
        difference: To the reference at the same number of shots (zero-shot: at 0 shots), paired by query; for the
            reference itself it is None, as is everything below that depends on it.
        difference_low: Lower bound of its 95 % interval, over the same sources of chance as `low`, with the seeds that
            both rows have in pairs.
        difference_high: Upper bound.
        metric: The metric of the score.
        other_metrics: Scores by the task's other metrics, if they differ for any row of the table.
        correct: Share of the queries with a correct prediction, in percent; None if the task has no notion of correct.
        seeds: How many seeds the row is the mean of.
        seed_low: Score of the lowest seed; None if the row is not a mean.
        seed_high: Score of the highest seed.
        part_of: The mean that the row is a seed of. Such a row is not tested separately and has no p-values.
        p_value: Of no difference to the reference, two-sided: by random sign flips over the queries (by image); if the
            row or the reference is a mean over seeds, by Student's t over queries and seeds.
        p_holm: The same, corrected for all the differences of the table that have a p-value (Holm).
        detectable: The smallest true difference that this number of queries shows with 80 % power at the 5 % level,
            before correction; None if it cannot be known: too few queries or images, a score that is no mean, or a mean
            over fewer than 10 training seeds, whose spread is known too poorly.
        wins: Queries on which the row is better than the reference.
        losses: Queries on which it is worse.
        ties: Queries on which it is the same.
        mcnemar_p: Of no difference in correctness, uncorrected: by McNemar's exact test; if queries share images, by
            sign flips by image; if the row or the reference is a mean over seeds, as `p_value`. None if the task has no
            notion of correct.
        asked: Queries of every row; those whose call failed in any row are left out of `n`.
        differing: Differences between the rows of the table that were allowed.
        files: The files of predictions; of a mean those of its seeds.
        task: The task.
        pool: What the selector chose from: `64`, a candidate pool of that size, or `all`, the whole training split;
            None if it chose nothing.
        label: The short name that tables show; empty if it is the name.
        images: How many images the queries are on; None if that is unknown for some of them, which then count as
            independent.
        seed_share: The share of the variance of `difference` that comes from the choice of seeds, 0 to 1; None if
            neither row is a mean over seeds. More queries reduce the rest of the variance, more seeds reduce all of it
            but the queries' own.
        mean_shots: The mean number of ICDs that were shown, which is `shots` unless that is `auto`. Of `majority`, the
            neighbours whose answers count. None if it is not known.
        shown_none: The share of the queries with which no ICD was shown, in percent; None if it is not known.
        mean_prompt_tokens: The mean length of the prompts in tokens of the VLM, those of images included; None if the
            predictions do not say it for every query, as those from before it was recorded, or if no VLM was asked.
        corpus: Scores of all queries together that are no means over them, such as macro-F1.
    """

    name: str
    selector: str
    shots: Shots
    n: int
    accuracy: float
    low: float | None
    high: float | None
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
    label: str = ""
    images: int | None = None
    seed_share: float | None = None
    mean_shots: float | None = None
    shown_none: float | None = None
    mean_prompt_tokens: float | None = None
    corpus: tuple[CorpusFigure, ...] = ()

    @property
    def shown(self) -> str:
        """What tables call the row."""
        return self.label or self.name

    def text(self, value: float | None, sign: str = "") -> str:
        """A score or difference with the decimals of the task, with its sign if `sign` is "+"; empty for None."""
        return "" if value is None else f"{value:{sign}.{TASKS.named(self.task).digits}f}"

    @property
    def drawn_interval(self) -> tuple[float, float]:
        """The interval as charts draw it: without width if it is not known."""
        low, high = (self.accuracy if bound is None else bound for bound in (self.low, self.high))
        return low, high

    def to_json(self) -> dict[str, Any]:
        """The row as plain values; the task only if it is not VQA, corpus scores only if there are any."""
        values = asdict(self)
        task = values.pop("task")
        if not values["corpus"]:
            del values["corpus"]
        return values | task_entry(task)

    @property
    def learned(self) -> bool:
        """Whether a policy chose."""
        return selector_named(self.selector).needs_policy

    @property
    def chooses_nothing(self) -> bool:
        """Whether the selector shows no ICDs, so that its pool does not matter."""
        return not selector_named(self.selector).shows_icds


def task_of(rows: Sequence[ComparisonRow]) -> Task:
    """The task of a table's rows, with the name that their metric gives the score, unless they differ in it."""
    task, metrics = TASKS.named(rows[0].task), {row.metric for row in rows}
    return task.named_by(*metrics) if len(metrics) == 1 else task
