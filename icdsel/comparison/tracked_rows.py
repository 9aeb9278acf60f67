"""The rows of a comparison as trackers show them."""

from collections.abc import Sequence

from icdsel.comparison.table_row import ComparisonRow
from icdsel.trackers import Row

_COLUMNS = (
    *("name", "selector", "shots", "mean_shots", "pool", "n", "seeds", "metric"),
    *("accuracy", "low", "high"),
    *("reference", "difference", "difference_low", "difference_high", "p_value", "p_holm"),
)


def tracked_rows(rows: Sequence[ComparisonRow]) -> list[Row]:
    """The score of each row with its interval, and its difference from the reference with its interval and p-values.

    The columns are fields of `ComparisonRow`; those of single seeds, which the mean over them covers, have `part_of`.
    """
    return [{"label": row.shown, **{name: getattr(row, name) for name in (*_COLUMNS, "part_of")}} for row in rows]
