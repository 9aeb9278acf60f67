"""What a comparison says of each learned selector, in sentences that claim no more than the figures do."""

from collections.abc import Mapping, Sequence

from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.tables import p_text

SURE = 0.05
"""The corrected p-value below which a difference counts as found."""


def verdict(row: ComparisonRow) -> str:
    """`better` or `worse` than the reference, where interval and corrected p-value agree on it; else nothing."""
    if row.p_holm is None or row.p_holm >= SURE or row.difference_low is None or row.difference_high is None:
        return ""
    return "better" if row.difference_low > 0 else "worse" if row.difference_high < 0 else ""


def findings(rows: Sequence[ComparisonRow], labels: Mapping[str, str]) -> list[str]:
    """A sentence for each learned selector (the mean, where it has seeds) at its largest number of shots.

    Args:
        rows: The comparison.
        labels: The short name of each row's name.
    """
    learned: dict[str, ComparisonRow] = {}
    for row in rows:
        if row.learned and row.part_of is None and row.shots >= learned.get(row.name, row).shots:
            learned[row.name] = row
    return [f"{_reached(row, labels[row.name])}{_compared(row, labels)}." for row in learned.values()]


def _reached(row: ComparisonRow, label: str) -> str:
    over = ""
    if row.seed_low is not None and row.seed_high is not None:
        over = f" (its seeds {row.seed_low:.1f} to {row.seed_high:.1f})"
    return f"{label} reaches {row.accuracy:.1f} points at {row.shots} {'shot' if row.shots == 1 else 'shots'}{over}"


def _compared(row: ComparisonRow, labels: Mapping[str, str]) -> str:
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return ""
    reference = labels.get(row.reference, row.reference)
    sure = [f"95 % interval {row.difference_low:+.1f} to {row.difference_high:+.1f}"]
    if row.p_holm is not None:
        sure.append(f"corrected p {'' if row.p_holm < 0.001 else '= '}{p_text(row.p_holm).replace('<', '< ')}")
    told = "; ".join(sure)
    if known := verdict(row):
        return f", {known} than {reference} by {abs(row.difference):.1f} ({told})"
    sentence = f", not told apart from {reference} by these {row.n} queries ({row.difference:+.1f}; {told})"
    if row.detectable is not None:
        sentence += f": with 80 % power they show differences from {row.detectable:.1f} points on"
    return sentence
