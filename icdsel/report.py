"""Tables for the screen."""

from collections.abc import Sequence

from rich.table import Table

from icdsel.compare import ComparisonRow
from icdsel.infer import Row


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Accuracies with 95 % intervals and paired differences to the reference, by number of shots."""
    reference = rows[0].reference
    table = Table(
        title=f"VQA accuracy ({rows[0].metric}) in points, 95 % intervals over n = {rows[0].n} queries; "
        f"Δ is paired, to {reference}",
        title_justify="left",
    )
    table.add_column("shots", justify="right")
    table.add_column("selector", overflow="fold")
    table.add_column("accuracy", justify="right")
    table.add_column("interval", justify="right")
    table.add_column("Δ", justify="right")
    table.add_column("interval of Δ", justify="right")
    for metric in rows[0].other_metrics:
        table.add_column(metric, justify="right")
    before = None
    for row in rows:
        if before not in (None, row.shots):
            table.add_section()
        shown = str(row.shots) if row.shots != before else ""
        before = row.shots
        cells = [f"{row.accuracy:.1f}", f"{row.low:.1f} … {row.high:.1f}", "", ""]
        if row.difference is not None:
            cells[2:] = [f"{row.difference:+.1f}", f"{row.difference_low:+.1f} … {row.difference_high:+.1f}"]
        cells += [f"{accuracy:.1f}" for accuracy in row.other_metrics.values()]
        sure = row.difference_low is not None and row.difference_low > 0
        table.add_row(shown, row.name, *cells, style="bold" if row.selector == "policy" and sure else None)
    return table


def inference_table(rows: Sequence[Row]) -> Table:
    """Mean accuracies by number of shots; `icdsel compare` adds the intervals."""
    shots = sorted({count for row in rows for count in row.accuracy})
    table = Table(title="VQA accuracy in points by number of shots", title_justify="left")
    table.add_column("selector", overflow="fold")
    for count in shots:
        table.add_column(str(count), justify="right")
    for row in rows:
        cells = [f"{100 * row.accuracy[count]:.1f}" if count in row.accuracy else "" for count in shots]
        table.add_row(row.name + (f" ({row.failed} failed)" if row.failed else ""), *cells)
    return table
