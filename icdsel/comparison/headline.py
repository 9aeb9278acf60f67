"""The headline of a comparison: the strongest method that learns nothing, and whether a learned policy beats it.

A table invites comparing a policy with whatever row stands beside it. The comparison that decides is with the best
that can be had without learning, whatever it chooses from: an advantage within random pools of 64 is worth little if
nearest neighbours over the whole training set do better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from icdsel.comparison.compare import Comparison, ComparisonRow
from icdsel.comparison.statistics import holm
from icdsel.comparison.tables import p_text, signed, span
from icdsel.records import shots_order, shots_text
from icdsel.selection import selector_named
from icdsel.tasks.base import TASKS

SURE = 0.05
"""The corrected p-value below which a difference is established, if its interval is on one side of 0 too."""

_SAYS = {"better": "beats it", "worse": "is worse", "": "is not shown to beat it"}


@dataclass(frozen=True)
class Headline:
    """The best learned policy against the strongest row that learns nothing.

    The rows may have different numbers of shots and choose from different pools: each is the best of its kind. A mean
    over seeds stands for its seeds, so no lucky seed is picked.

    Attributes:
        baseline: The strongest row that learns nothing.
        policy: The best learned row, with its difference to `baseline` (`difference`, `difference_low`,
            `difference_high`, `p_value`, `wins`, …, in the unit of the task); None if no row is learned. Its `p_holm`
            is corrected for the number of learned rows that it is the best of; if it scores lower than the baseline,
            also for the number of rows that this one is the best of, since the best of many is best by luck too.
        pool: The pool that both are restricted to, such as `64`; None for all rows of the table.
    """

    baseline: ComparisonRow
    policy: ComparisonRow | None
    pool: str | None = None

    @property
    def verdict(self) -> Literal["better", "worse", ""]:
        """Whether the policy is better or worse than the baseline; empty if neither is established."""
        return verdict(self.policy) if self.policy else ""

    def same_rows(self, other: "Headline") -> bool:
        """Whether two headlines compare the same rows."""
        one, two = ([(r.name, r.shots) for r in (h.baseline, h.policy) if r] for h in (self, other))
        return one == two

    def __str__(self) -> str:
        """The headline in two sentences."""
        baseline, policy = self.baseline, self.policy
        where = {None: "The", "all": "Over the whole training set, the"}.get(self.pool, f"In pools of {self.pool}, the")
        score = baseline.text(baseline.accuracy)
        first = f"{where} strongest method that learns nothing is {_described(baseline)}: {score}."
        if policy is None:
            return f"{first} There is no learned policy to compare with it."
        unit = TASKS.named(policy.task).unit
        difference = f"{signed(policy, policy.difference)}{f' {unit}' if unit else ''}"
        interval = span(policy, policy.difference_low, policy.difference_high, signs=True)
        p = "" if policy.p_holm is None else f", p {p_text(policy.p_holm)}"
        return (
            f"{first} The best learned policy, {_described(policy)}, has {policy.text(policy.accuracy)} and "
            f"{_SAYS[self.verdict]}: {difference} ({interval}){p}."
        )


def headlines(comparison: Comparison) -> list[Headline]:
    """The headline of a table; then, if its rows choose from several pools, one for each pool with a learned policy.

    Rows that choose nothing, such as zero-shot, compete in every pool; rows of an unknown pool only in the first
    headline. Upper bounds such as the oracle do not compete.

    Args:
        comparison: The table.

    Returns:
        The headline over all rows, first; empty if every row is learned or an upper bound.
    """
    rows = [row for row in comparison if row.part_of is None and not selector_named(row.selector).upper_bound]
    found = [headline] if (headline := _headline(comparison, rows)) else []
    pools = {row.pool for row in rows if row.pool}
    for pool in sorted({row.pool for row in rows if row.learned and row.pool}, key=_by_size):
        within = _headline(comparison, [row for row in rows if row.pool == pool or row.chooses_nothing], pool)
        if len(pools) > 1 and within and not any(within.same_rows(other) for other in found):
            found.append(within)
    return found


def verdict(row: ComparisonRow) -> Literal["better", "worse", ""]:
    """`better` or `worse` than the reference, if interval and corrected p-value agree on it; else empty."""
    if row.p_holm is None or row.p_holm >= SURE or row.difference_low is None or row.difference_high is None:
        return ""
    return "better" if row.difference_low > 0 else "worse" if row.difference_high < 0 else ""


def _headline(comparison: Comparison, rows: Sequence[ComparisonRow], pool: str | None = None) -> Headline | None:
    learned = [row for row in rows if row.learned]
    baselines = [row for row in rows if not row.learned]
    if not baselines:
        return None
    baseline = _best(baselines)
    if not learned:
        return Headline(baseline, None, pool)
    compared = [comparison.difference(row, baseline) for row in learned]
    corrected = iter(holm([_p_value(row, len(baselines)) for row in compared if row.p_value is not None]))
    return Headline(
        baseline,
        _best([row if row.p_value is None else replace(row, p_holm=float(next(corrected))) for row in compared]),
        pool,
    )


def _p_value(row: ComparisonRow, baselines: int) -> float:
    """The p-value of the difference to the best of so many baselines; what beats the best of them beats each."""
    p_value, difference = row.p_value or 0.0, row.difference or 0.0
    return min(1.0, p_value * baselines) if difference < 0 else p_value


def _best(rows: Sequence[ComparisonRow]) -> ComparisonRow:
    """The row with the highest score; of equals the one with the fewest shots, then one whose answers are the VLM's."""
    return min(
        rows,
        key=lambda row: (
            -row.accuracy,
            shots_order(row.shots),
            not selector_named(row.selector).needs_vlm,
            row.name,
        ),
    )


def _by_size(pool: str) -> tuple[bool, int]:
    return (True, 0) if pool == "all" else (False, int(pool))


def _described(row: ComparisonRow) -> str:
    pool = f"pool {row.pool}, " if row.pool else ""
    return f"{row.shown} ({pool}{shots_text(row.shots)})"
