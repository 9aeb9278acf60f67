"""The charts: figures of matplotlib, each with the numbers that it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icdsel.compare import ComparisonRow
from icdsel.page.choices import Chosen, Usage
from icdsel.page.landscape import Landscape
from icdsel.page.palette import TEXT, colour, dashes, marker
from icdsel.page.runs import ShownRun
from icdsel.page.svg import chart_style

WIDTH = 4.3  # inches; 310 points, which a phone shows about one to one


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in a sentence, and its numbers as a table.

    `name` is that of its files, `note` says what is measured, where the title does not. Cells of
    `table` are text, the first column names the line.
    """

    name: str
    title: str
    summary: str
    figure: Figure
    columns: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    note: str = ""


CURVES = {
    "loss": ("Training loss", "What the phase minimises, mean over the epoch's steps"),
    "val_loss": ("Loss on held-out queries", "Reward-weighted cross-entropy of training queries that were held out"),
    "expected_reward": ("Expected reward", "Reward of the scored pointers weighted by the policy, on held-out queries"),
    "oracle_share": ("Share of the oracle", "Expected reward by the reward of the best scored pointers"),
    "kl": ("KL", "Divergence from the policy that GRPO started from"),
    "std_advantage": ("Advantage spread", "Standard deviation of the advantages"),
    "no_signal_share": ("Groups without signal", "Share of the queries whose pointers are all worth the same"),
}
"""What is drawn of a run's metrics: title and meaning."""


def accuracy_chart(rows: Sequence[ComparisonRow], labels: Mapping[str, str], order: Mapping[str, int]) -> Chart:
    """Accuracy by number of shots with 95 % intervals; zero-shot as a line across.

    Args:
        rows: The comparison.
        labels: The short name of each row's name.
        order: Each name's place, which gives it colour and mark.
    """
    names = sorted({row.name for row in rows}, key=order.__getitem__)
    shown = sorted({row.shots for row in rows if row.shots}) or [0]
    figure, axes = _figure("accuracy", 2.8, [labels[name] for name in names])
    for place, name in enumerate(names):
        own = sorted((row for row in rows if row.name == name), key=lambda row: row.shots)
        look = _look(order[name], labels[name])
        if [row.shots for row in own] == [0] and shown != [0]:
            axes.axhline(own[0].accuracy, linewidth=1.2, color=look["color"], linestyle=":", label=look["label"])
            continue
        aside = (place - (len(names) - 1) / 2) * min(0.05, 0.5 / len(names))
        points = [row.shots + aside for row in own]
        errors = [[row.accuracy - row.low for row in own], [row.high - row.accuracy for row in own]]
        axes.errorbar(points, [row.accuracy for row in own], yerr=errors, capsize=3, elinewidth=1.2, **look)
    axes.set_xticks(shown)
    axes.set_xlim(shown[0] - 0.4, shown[-1] + 0.4)
    axes.set_ylim(0, 100)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("demonstrations (shots)")
    axes.set_ylabel("VQA accuracy (points)")
    _legend(figure, axes)
    best = max(rows, key=lambda row: row.accuracy)
    return Chart(
        "accuracy",
        "Accuracy by number of shots",
        f"VQA accuracy in points with 95 % intervals over {rows[0].n} queries. The highest is {labels[best.name]} at "
        f"{best.shots} shots with {best.accuracy:.1f}.",
        figure,
        ("selector", "shots", "accuracy", "interval"),
        tuple(
            (labels[row.name], str(row.shots), f"{row.accuracy:.1f}", f"{row.low:.1f} to {row.high:.1f}")
            for row in sorted(rows, key=lambda row: (order[row.name], row.shots))
        ),
    )


def difference_chart(
    rows: Sequence[ComparisonRow], shots: int, labels: Mapping[str, str], order: Mapping[str, int]
) -> Chart | None:
    """Paired differences to the reference with their intervals at one number of shots; None where there is none."""
    own = [row for row in rows if row.shots in (shots, 0) and row.difference is not None]
    own.sort(key=lambda row: -(row.difference or 0))
    if not own:
        return None
    figure, axes = _figure("difference", 1.0 + 0.34 * len(own))
    axes.axvline(0, color=TEXT, linewidth=1)
    for place, row in enumerate(own):
        middle, low, high = row.difference or 0, row.difference_low or 0, row.difference_high or 0
        look = _look(order[row.name], labels[row.name])
        axes.errorbar([middle], [place], xerr=[[middle - low], [high - middle]], capsize=3, **look)
    axes.set_yticks(range(len(own)), [_wrapped(labels[row.name]) for row in own])
    axes.set_ylim(len(own) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    reference = labels.get(rows[0].reference, rows[0].reference)
    axes.set_xlabel(f"points above {reference}")
    above = [labels[row.name] for row in own if (row.difference_low or 0) > 0]
    named = _shots(shots)
    return Chart(
        "difference",
        f"Difference to {reference} at {named}",
        f"Paired differences in points at {named} with 95 % intervals. Wholly above 0: {', '.join(above) or 'none'}.",
        figure,
        ("selector", "shots", "difference", "interval"),
        tuple(
            (
                labels[row.name],
                str(row.shots),
                f"{row.difference:+.1f}",
                f"{row.difference_low:+.1f} to {row.difference_high:+.1f}",
            )
            for row in own
        ),
    )


def training_charts(runs: Sequence[ShownRun]) -> list[Chart]:
    """A chart for each of `CURVES` that some run has; epochs of all runs share one axis, phase by phase."""
    ticks = _epochs(runs)
    charts = []
    for metric, (title, meaning) in CURVES.items():
        curves = {run.label: _curve(run, metric) for run in runs}
        curves = {label: curve for label, curve in curves.items() if curve}
        if not curves:
            continue
        wide = [tick for tick in ticks if any(tick in curve for curve in curves.values())]
        figure, axes = _figure(f"training-{metric}", 2.1, [run.label for run in runs] if len(runs) > 1 else ())
        for index, run in enumerate(runs):
            curve = curves.get(run.label, {})
            # A phase is a curve of its own: what it minimises is another thing.
            for phase, own in groupby(curve, key=lambda tick: tick[0]):
                places = list(own)
                look = _look(index, run.label if phase == next(iter(curve))[0] else "_nolegend_")
                axes.plot([wide.index(tick) for tick in places], [curve[tick] for tick in places], **look)
        axes.set_xticks(range(len(wide)), [_tick(wide, index) for index in range(len(wide))])
        axes.set_xlim(-0.5, len(wide) - 0.5)
        axes.margins(y=0.15)
        axes.grid(axis="x", visible=False)
        if len(runs) > 1:
            _legend(figure, axes)
        lines = [(label, min(curve.values()), max(curve.values())) for label, curve in curves.items()]
        told = "; ".join(f"{label} between {least:.3g} and {most:.3g}" for label, least, most in lines)
        cells = tuple(
            (f"{phase} {epoch}", *(_number(curve.get((phase, epoch))) for curve in curves.values()))
            for phase, epoch in wide
        )
        name = f"training-{metric.replace('_', '-')}"
        charts.append(Chart(name, title, f"{meaning}: {told}.", figure, ("epoch", *curves), cells, meaning))
    return charts


def _epochs(runs: Sequence[ShownRun]) -> list[tuple[str, int]]:
    """(phase, epoch) of all runs, phases in the order in which runs go through them."""
    phases = list(dict.fromkeys(str(epoch["phase"]) for run in runs for epoch in run.epochs))
    usual = [phase for phase in ("warm", "rce", "grpo") if phase in phases]
    phases = usual + [phase for phase in phases if phase not in usual]
    found = {(str(epoch["phase"]), int(epoch["epoch"])) for run in runs for epoch in run.epochs}
    return sorted(found, key=lambda tick: (phases.index(tick[0]), tick[1]))


def _curve(run: ShownRun, metric: str) -> dict[tuple[str, int], float]:
    values = {}
    for epoch in run.epochs:
        value = epoch.get(f"{epoch['phase']}_loss" if metric == "loss" else metric)
        if isinstance(value, int | float):
            values[str(epoch["phase"]), int(epoch["epoch"])] = float(value)
    return values


def _tick(ticks: Sequence[tuple[str, int]], index: int) -> str:
    """The epoch, and below the first of a phase the phase; of many epochs about a dozen are named."""
    phase, epoch = ticks[index]
    first = index == 0 or ticks[index - 1][0] != phase
    shown = first or epoch % max(1, -(-len(ticks) // 12)) == 0
    return (str(epoch) if shown else "") + (f"\n{phase}" if first else "")


def landscape_charts(landscapes: Sequence[Landscape]) -> list[Chart]:
    """Queries by what their pointers are worth, and for each RL data the ways of proposing."""
    charts = [_signal_chart(landscapes)] if landscapes else []
    return charts + [_methods_chart(own, number) for number, own in enumerate(landscapes, 1)]


def _signal_chart(landscapes: Sequence[Landscape]) -> Chart:
    kinds = {
        "no pointer correct": "none_correct",
        "some correct": "some_correct",
        "all correct": "all_correct",
        "rewards differ (signal)": "signal",
    }
    sources = [own.source for own in landscapes]
    figure, axes = _figure("landscape", 1.75 + 0.35 * len(sources), sources if len(sources) > 1 else ())
    height = 0.7 / len(landscapes)
    for index, own in enumerate(landscapes):
        shares = [100 * getattr(own, field) / own.queries for field in kinds.values()]
        places = [place + (index - (len(landscapes) - 1) / 2) * height for place in range(len(kinds))]
        bars = axes.barh(places, shares, height=height * 0.9, color=colour(index), label=own.source)
        axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, color=TEXT)
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the queries (%)")
    if len(landscapes) > 1:
        _legend(figure, axes)
    first = landscapes[0]
    return Chart(
        "landscape",
        "Queries by what their pointers are worth",
        f"Of {first.queries} queries {first.none_correct} have no correct pointer, {first.some_correct} some, and "
        f"{first.all_correct} correct ones only; {first.signal} have a signal.",
        figure,
        ("queries", *(own.source for own in landscapes)),
        tuple((kind, *(str(getattr(own, field)) for own in landscapes)) for kind, field in kinds.items()),
    )


def _methods_chart(own: Landscape, number: int) -> Chart:
    methods = own.methods
    name = "proposals" if number == 1 else f"proposals-{number}"
    places = range(len(methods))
    shares: dict[str, list[float | None]] = {
        "pointers answered correctly": [*(method.correct for method in methods)],
        "queries where it finds the best": [*(method.best for method in methods)],
    }
    figure, axes = _figure(name, 0.8 + 0.36 * len(methods), list(shares))
    for index, (label, values) in enumerate(shares.items()):
        known = [(100 * value, place) for value, place in zip(values, places, strict=True) if value is not None]
        look = _look(index, label) | {"linestyle": "none", "markersize": 8}
        axes.plot([x for x, _ in known], [y for _, y in known], clip_on=False, **look)
    axes.set_yticks(places, [method.name for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share (%)")
    _legend(figure, axes)
    top = methods[0]
    return Chart(
        name,
        "What each way of proposing brings" + (f": {own.source}" if number > 1 else ""),
        f"Best by mean reward is {top.name}: {100 * top.correct:.0f} % of its pointers are answered correctly"
        + (f", and it finds the best of {100 * top.best:.0f} % of the queries with a signal." if top.best else "."),
        figure,
        ("proposed by", *shares),
        tuple((m.name, f"{100 * m.correct:.1f} %", _percent(m.best)) for m in methods),
    )


def usage_chart(usages: Sequence[tuple[Chosen, Usage]], order: Mapping[str, int]) -> Chart:
    """How often the most chosen training examples are chosen, by rank; for selectors at one number of shots."""
    figure, axes = _figure("usage", 2.4, [chosen.label for chosen, _ in usages])
    ranks = (1, 3, 10, 30, 100, 300)
    for chosen, used in usages:
        counts = sorted(used.counts.values(), reverse=True)
        shares = [100 * count / len(chosen.by_query) for count in counts]
        place = order[chosen.name]
        look = _look(place, chosen.label)
        look["markevery"] = [rank * (place + 1) - 1 for rank in (1, 4, 16, 64) if rank * (place + 1) <= len(shares)]
        axes.plot(range(1, len(shares) + 1), shares, drawstyle="steps-post", **look)
    most = max((len(used.counts) for _, used in usages), default=1)
    axes.set_xscale("log")
    shown = [rank for rank in ranks if rank <= most] or [1]
    axes.set_xticks(shown, list(map(str, shown)))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training examples, most chosen first (rank)")
    axes.set_ylabel("in % of the prompts")
    _legend(figure, axes)
    shots = usages[0][0].shots
    lead, used = max(usages, key=lambda pair: max(pair[1].counts.values(), default=0) / len(pair[0].by_query))
    share = 100 * max(used.counts.values(), default=0) / len(lead.by_query)
    return Chart(
        "usage",
        f"How often the most chosen examples are shown ({_shots(shots)})",
        f"{lead.label} leans most on one example: it stands in {share:.0f} % of its prompts.",
        figure,
        ("selector", *(f"rank {rank}" for rank in shown)),
        tuple((chosen.label, *(_at_rank(used, rank) for rank in shown)) for chosen, used in usages),
    )


def _at_rank(used: Usage, rank: int) -> str:
    counts = sorted(used.counts.values(), reverse=True)
    return f"{counts[rank - 1]} times" if rank <= len(counts) else "none"


def _figure(name: str, height: float, legend: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """An empty figure with room for these names in a legend below the axes."""
    with chart_style(name):
        figure = Figure(figsize=(WIDTH, height + 0.2 * -(-len(legend) // _columns(legend))), layout="constrained")
        return figure, figure.add_subplot()


def _look(index: int, label: str) -> dict[str, Any]:
    return {"color": colour(index), "marker": marker(index), "linestyle": dashes(index), "label": label}


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=_columns(labels), frameon=False, fontsize=9, handlelength=2.4
    )


def _columns(names: Sequence[str]) -> int:
    """Two where the names are short."""
    return 2 if len(names) > 1 and max(map(len, names)) <= 22 else 1


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _shots(shots: int) -> str:
    return f"{shots} {'shot' if shots == 1 else 'shots'}"


def _wrapped(label: str) -> str:
    """On two lines at most, cut at a dash, so that a long name leaves room for the axes."""
    if len(label) <= 20:
        return label
    places = [i + 1 for i, letter in enumerate(label) if letter in "-_ "]
    at = min(places, key=lambda place: abs(place - len(label) / 2), default=len(label))
    return f"{label[:at].rstrip()}\n{label[at:]}"
