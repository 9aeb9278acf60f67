"""What a comparison says about each learned selector, in sentences that claim no more than the figures show."""

from collections.abc import Mapping, Sequence

from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.headline import verdict
from icdsel.comparison.tables import p_text
from icdsel.records import shots_order, shots_text
from icdsel.tasks.base import TASKS


def findings(rows: Sequence[ComparisonRow], labels: Mapping[str, str]) -> list[str]:
    """A sentence about each learned selector (the mean, if it has seeds) at its largest number of shots.

    Args:
        rows: The comparison.
        labels: The short name of each row's name.
    """
    learned: dict[str, ComparisonRow] = {}
    for row in rows:
        if row.learned and row.part_of is None and _later(row, learned.get(row.name, row)):
            learned[row.name] = row
    return [f"{_score(row, labels[row.name])}{_comparison(row, labels)}." for row in learned.values()]


def _later(row: ComparisonRow, other: ComparisonRow) -> bool:
    return shots_order(row.shots) >= shots_order(other.shots)


def _score(row: ComparisonRow, label: str) -> str:
    task, seeds = TASKS.named(row.task), ""
    if row.seed_low is not None and row.seed_high is not None:
        seeds = f" (its seeds {row.text(row.seed_low)} to {row.text(row.seed_high)})"
    score = f"{row.text(row.accuracy)} {task.unit}" if task.unit else f"a {task.short_name} of {row.text(row.accuracy)}"
    return f"{label} reaches {score} at {shots_text(row.shots)}{seeds}"


def _comparison(row: ComparisonRow, labels: Mapping[str, str]) -> str:
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return ""
    reference = labels.get(row.reference, row.reference)
    evidence = f"95 % interval {row.text(row.difference_low, '+')} to {row.text(row.difference_high, '+')}"
    if row.p_holm is not None:
        evidence += f"; corrected p {'' if row.p_holm < 0.001 else '= '}{p_text(row.p_holm).replace('<', '< ')}"
    if known := verdict(row):
        return f", {known} than {reference} by {row.text(abs(row.difference))} ({evidence})"
    difference = row.text(row.difference, "+")
    sentence = f", not distinguishable from {reference} with these {row.n} queries ({difference}; {evidence})"
    if row.detectable is not None:
        unit = TASKS.named(row.task).unit
        detectable = row.text(row.detectable) + (f" {unit}" if unit else "")
        sentence += f": with 80 % power they detect differences of {detectable} or more"
    return sentence
