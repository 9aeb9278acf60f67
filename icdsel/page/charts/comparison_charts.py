"""Charts of the comparison: scores by number of shots, and paired differences to the reference."""

from collections.abc import Mapping, Sequence

from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.headline import SURE, verdict
from icdsel.comparison.table_row import task_of
from icdsel.comparison.tables import p_text
from icdsel.page.charts.palette import PAPER, TEXT
from icdsel.page.charts.plots import Chart, add_legend, folded, look_of, new_figure
from icdsel.page.charts.score_axis import score_limits
from icdsel.records import AUTO, Shots, shots_order, shots_text


def accuracy_chart(rows: Sequence[ComparisonRow], labels: Mapping[str, str], order: Mapping[str, int]) -> Chart:
    """Scores by number of shots with 95 % intervals; zero-shot as a horizontal line, seeds as the range of their mean.

    Args:
        rows: The comparison.
        labels: The short name of each row's name.
        order: The index of each name, which decides colour and marker.
    """
    task = task_of(rows)
    rows = [row for row in rows if row.part_of is None]
    # Offsets of `auto` are many; the chart of mean shots has them.
    rows = [row for row in rows if row.shots == AUTO or not isinstance(row.shots, str)] or rows
    names = sorted({row.name for row in rows}, key=order.__getitem__)
    shown = sorted({row.shots for row in rows if row.shots}, key=shots_order) or [0]
    places = _places(shown)
    figure, axes = new_figure("accuracy", 2.8, [labels[name] for name in names])
    for number, name in enumerate(names):
        series = sorted((row for row in rows if row.name == name), key=lambda row: shots_order(row.shots))
        look = look_of(order[name], labels[name])
        if [row.shots for row in series] == [0] and shown != [0]:
            axes.axhline(series[0].accuracy, linewidth=1.2, color=look["color"], linestyle=":", label=look["label"])
            continue
        offset = (number - (len(names) - 1) / 2) * min(0.05, 0.5 / len(names))
        points = [places[row.shots] + offset for row in series]
        bounds = [row.drawn_interval for row in series]
        errors = [[abs(row.accuracy - pair[side]) for row, pair in zip(series, bounds, strict=True)] for side in (0, 1)]
        axes.errorbar(points, [row.accuracy for row in series], yerr=errors, capsize=3, elinewidth=1.2, **look)
        for x, row in zip(points, series, strict=True):
            axes.plot([x, x], _range(row), color=look["color"], alpha=0.3, linewidth=6, solid_capstyle="butt")
    axes.set_xticks([places[shots] for shots in shown], list(map(str, shown)))
    axes.set_xlim(min(places.values()) - 0.4, max(places.values()) + 0.4)
    axes.set_ylim(*score_limits(rows))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("demonstrations (shots)")
    axes.set_ylabel(f"{task.score_name} ({task.unit})" if task.unit else task.score_name)
    add_legend(figure, axes)
    best = max(rows, key=lambda row: row.accuracy)
    return Chart(
        "accuracy",
        f"{task.heading} by number of shots",
        f"{task.score_name}{f' in {task.unit}' if task.unit else ''} with 95 % intervals over {rows[0].n} queries. The "
        f"highest is {labels[best.name]} at {shots_text(best.shots)} with {best.text(best.accuracy)}.",
        figure,
        ("selector", "shots", task.short_name, "interval", "over seeds"),
        tuple(
            (
                labels[row.name],
                str(row.shots),
                row.text(row.accuracy),
                f"{row.text(row.low)} to {row.text(row.high)}",
                "" if row.seeds == 1 else " to ".join(map(row.text, _range(row))),
            )
            for row in sorted(rows, key=lambda row: (order[row.name], shots_order(row.shots)))
        ),
        "Lines: 95 % intervals" + ("; pale: from the lowest seed to the highest" if _seeded(rows) else ""),
    )


def _places(shots: Sequence[Shots]) -> dict[Shots, int]:
    """The place of each number of shots on the axis; `auto` stands behind the largest number."""
    numbers = [count for count in shots if isinstance(count, int)]
    decided = [count for count in shots if isinstance(count, str)]
    last = max(numbers, default=0)
    return {0: 0} | {count: count for count in numbers} | {name: last + i for i, name in enumerate(decided, 1)}


def _range(row: ComparisonRow) -> tuple[float, float]:
    """From the lowest seed to the highest; of a single row its score."""
    if row.seed_low is None or row.seed_high is None:
        return row.accuracy, row.accuracy
    return row.seed_low, row.seed_high


def _seeded(rows: Sequence[ComparisonRow]) -> bool:
    return any(row.seeds > 1 for row in rows)


def difference_chart(
    rows: Sequence[ComparisonRow], shots: Shots, labels: Mapping[str, str], order: Mapping[str, int]
) -> Chart | None:
    """Paired differences to the reference with their intervals at one number of shots; None if there are none.

    The marker is filled if the difference is significant; those of a mean's seeds are small and pale.
    """
    judged = [row for row in rows if row.shots in (shots, 0) and row.difference is not None]
    compared = [row for row in judged if row.part_of is None]
    compared.sort(key=lambda row: -(row.difference or 0))
    if not compared:
        return None
    task = task_of(compared)
    ticks = [folded(labels[row.name], 26) for row in compared]
    figure, axes = new_figure("difference", 1.0 + 0.18 * sum(2 + tick.count("\n") for tick in ticks))
    axes.axvline(0, color=TEXT, linewidth=1)
    for place, row in enumerate(compared):
        middle, low, high = row.difference or 0, row.difference_low or 0, row.difference_high or 0
        look = look_of(order[row.name], labels[row.name])
        filled = {} if verdict(row) else {"markerfacecolor": PAPER}
        axes.errorbar([middle], [place], xerr=[[middle - low], [high - middle]], capsize=3, **look | filled)
        for seed in judged:
            if (seed.part_of, seed.shots) == (row.name, row.shots):
                axes.plot(
                    [seed.difference or 0], [place + 0.3], marker=".", color=look["color"], alpha=0.6, markersize=5
                )
    axes.set_yticks(range(len(compared)), ticks)
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    reference = labels.get(compared[0].reference, compared[0].reference)
    axes.set_xlabel(folded(f"{task.unit or task.short_name} above {reference}", 30))
    better = [labels[row.name] for row in compared if verdict(row) == "better"]
    named = shots_text(shots)
    return Chart(
        "difference",
        f"Difference to {reference} at {named}",
        f"Paired differences{f' in {task.unit}' if task.unit else ''} at {named} with 95 % intervals. Significantly "
        f"better, with p < {SURE} after correction and an interval above 0: {', '.join(better) or 'none'}.",
        figure,
        ("selector", "shots", "difference", "interval", "p (Holm)"),
        tuple(
            (
                labels[row.name],
                str(row.shots),
                row.text(row.difference, "+"),
                f"{row.text(row.difference_low, '+')} to {row.text(row.difference_high, '+')}",
                p_text(row.p_holm),
            )
            for row in compared
        ),
        f"Filled: p < {SURE} after correction" + ("; small and pale: single seeds" if _seeded(compared) else ""),
    )
