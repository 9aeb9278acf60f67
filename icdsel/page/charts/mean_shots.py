"""The chart of scores by the mean number of ICDs that are shown: what a policy that may stop saves or costs."""

from collections.abc import Iterable, Mapping, Sequence

from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.table_row import task_of
from icdsel.comparison.tables import mean_shots_text, tokens_text
from icdsel.page.charts.palette import PAPER
from icdsel.page.charts.plots import Chart, add_legend, look_of, new_figure
from icdsel.page.charts.score_axis import score_limits
from icdsel.records import shots_order, shots_text


def mean_shots_chart(
    rows: Iterable[ComparisonRow], labels: Mapping[str, str], order: Mapping[str, int]
) -> Chart | None:
    """Scores by the mean number of ICDs with 95 % intervals; None if no selector decides how many it shows.

    Each selector has a line for its fixed numbers of shots (dashed, hollow markers), and one for `auto` at all its
    offsets for stopping.

    Args:
        rows: The comparison.
        labels: The short name of each row's name.
        order: The index of each name, which decides colour and marker.
    """
    known = [row for row in rows if row.part_of is None and row.mean_shots is not None]
    if not any(isinstance(row.shots, str) for row in known):
        return None
    task = task_of(known)
    series: dict[tuple[str, bool], list[ComparisonRow]] = {}
    for row in sorted(known, key=lambda row: (order[row.name], row.mean_shots or 0.0)):
        series.setdefault((row.name, isinstance(row.shots, str)), []).append(row)
    names = {key: f"{labels[key[0]]}, auto" if key[1] else labels[key[0]] for key in series}
    figure, axes = new_figure("mean-shots", 2.8, list(names.values()))
    for (name, decided), line in series.items():
        look = look_of(order[name], names[name, decided])
        look |= {"linestyle": "-"} if decided else {"linestyle": "--", "markerfacecolor": PAPER}
        bounds = [row.drawn_interval for row in line]
        errors = [[abs(row.accuracy - pair[side]) for row, pair in zip(line, bounds, strict=True)] for side in (0, 1)]
        axes.errorbar(_places(line), [row.accuracy for row in line], yerr=errors, capsize=2, elinewidth=0.8, **look)
    axes.set_ylim(*score_limits(known))
    axes.set_xlim(left=-0.1)
    axes.set_xlabel("demonstrations shown, mean over the queries")
    axes.set_ylabel(f"{task.score_name} ({task.unit})" if task.unit else task.score_name)
    add_legend(figure, axes)
    best = max((row for row in known if isinstance(row.shots, str)), key=lambda row: row.accuracy)
    return Chart(
        "mean-shots",
        f"{task.heading} by the mean number of demonstrations",
        f"The best row that decides how many demonstrations it shows is {labels[best.name]} ({best.shots}): "
        f"{best.text(best.accuracy)} with {mean_shots_text(best)} on average, and none for "
        f"{best.shown_none or 0.0:.0f} % of the queries.",
        figure,
        ("selector", "shots", "demonstrations", "none shown", "prompt tokens", task.short_name, "interval"),
        tuple(
            (
                labels[row.name],
                shots_text(row.shots),
                mean_shots_text(row),
                "" if row.shown_none is None else f"{row.shown_none:.1f} %",
                tokens_text(row),
                row.text(row.accuracy),
                f"{row.text(row.low)} to {row.text(row.high)}",
            )
            for row in sorted(known, key=lambda row: (order[row.name], shots_order(row.shots)))
        ),
        "Lines: 95 % intervals; dashed: fixed numbers of demonstrations",
    )


def _places(line: Sequence[ComparisonRow]) -> list[float]:
    return [row.mean_shots or 0.0 for row in line]
