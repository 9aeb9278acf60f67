"""Charts of runs, RL data and choices: figures of matplotlib with the numbers that they show."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icdsel.console import plain
from icdsel.page.charts.landscape import Landscape
from icdsel.page.charts.palette import TEXT, colour, dashes, marker
from icdsel.page.charts.svg import chart_style
from icdsel.page.choices import Chosen, Usage
from icdsel.page.runs import ShownRun
from icdsel.records import shots_text

Curve = dict[tuple[str, int], float]
"""Values by phase and epoch."""

WIDTH = 4.3  # inches; 310 points, about the width of a phone


@dataclass(frozen=True)
class Chart:
    """A figure with its numbers.

    Attributes:
        name: The name of its files.
        title: Its title.
        summary: What it shows, in a sentence.
        figure: The figure.
        columns: Headings of the table.
        table: Its numbers as text; the first column names the row.
        note: What is measured, unless the title says it.
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
    "oracle_share": ("Share of the best reward", "Expected reward divided by that of each query's best scored pointer"),
    "kl": ("Distance from the start of GRPO", "Kullback-Leibler divergence (KL) from the policy at the start of GRPO"),
    "std_advantage": ("Spread of the advantages", "Standard deviation of the advantages, which GRPO learns from"),
    "no_signal_share": (
        "Queries with equal rewards",
        "Share of the queries that teach nothing: all pointers have the same reward",
    ),
}
"""The metrics of a run that are drawn, with title and meaning."""


def training_charts(runs: Sequence[ShownRun], labels: Mapping[str, str], order: Mapping[str, int]) -> list[Chart]:
    """A chart for each of `CURVES` that any run has; the epochs of all runs share one axis, phase by phase.

    Runs that are seeds of one row become one curve, their mean, in a band from the lowest to the highest.

    Args:
        runs: The runs.
        labels: The short name of each row's name.
        order: The index of each name, which decides colour and marker.
    """
    ticks = _epochs(runs)
    groups: dict[str, list[ShownRun]] = {}
    for run in runs:
        groups.setdefault(run.lead, []).append(run)
    names = {lead: group[0].label if len(group) == 1 else labels.get(lead, lead) for lead, group in groups.items()}
    charts = []
    for metric, (title, meaning) in CURVES.items():
        bands = {lead: _band([_curve(run, metric) for run in group]) for lead, group in groups.items()}
        bands = {lead: band for lead, band in bands.items() if band}
        if not bands:
            continue
        wide = [tick for tick in ticks if any(tick in band for band in bands.values())]
        figure, axes = new_figure(f"training-{metric}", 2.1, list(names.values()) if len(groups) > 1 else ())
        for lead, name in names.items():
            band = bands.get(lead, {})
            # Each phase is a separate curve, because it minimises something else.
            for phase, in_phase in groupby(band, key=lambda tick: tick[0]):
                places = list(in_phase)
                look = look_of(order[lead], name if phase == next(iter(band))[0] else "_nolegend_")
                x = [wide.index(tick) for tick in places]
                low, mean, high = zip(*(band[tick] for tick in places), strict=True)
                axes.plot(x, mean, **look)
                if len(groups[lead]) > 1:
                    axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.set_xticks(range(len(wide)), [_tick(wide, index) for index in range(len(wide))])
        axes.set_xlim(-0.5, len(wide) - 0.5)
        axes.margins(y=0.15)
        axes.grid(axis="x", visible=False)
        if len(groups) > 1:
            add_legend(figure, axes)
        means = {lead: [mean for _, mean, _ in band.values()] for lead, band in bands.items()}
        ranges = "; ".join(
            f"{names[lead]} between {min(values):.3g} and {max(values):.3g}" for lead, values in means.items()
        )
        cells = tuple(
            (f"{phase} {epoch}", *(_banded(band.get((phase, epoch))) for band in bands.values()))
            for phase, epoch in wide
        )
        columns = ("epoch", *(names[lead] for lead in bands))
        name = f"training-{metric.replace('_', '-')}"
        charts.append(Chart(name, title, f"{meaning}: {ranges}.", figure, columns, cells, meaning))
    return charts


def _band(curves: Sequence[Curve]) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Lowest, mean and highest value at each epoch, of the curves that have one there."""
    found = {}
    for tick in dict.fromkeys(tick for curve in curves for tick in curve):
        values = [curve[tick] for curve in curves if tick in curve]
        found[tick] = (min(values), math.fsum(values) / len(values), max(values))
    return found


def _banded(point: tuple[float, float, float] | None) -> str:
    """The mean, with its range if there is one."""
    if point is None:
        return ""
    low, mean, high = point
    return f"{mean:.4g}" if low == high else f"{mean:.4g} ({low:.4g} to {high:.4g})"


def _epochs(runs: Sequence[ShownRun]) -> list[tuple[str, int]]:
    """(phase, epoch) of all runs, phases in the order of training."""
    phases = list(dict.fromkeys(epoch.phase for run in runs for epoch in run.epochs))
    usual = [phase for phase in ("warm", "rce", "grpo") if phase in phases]
    phases = usual + [phase for phase in phases if phase not in usual]
    found = {(epoch.phase, epoch.epoch) for run in runs for epoch in run.epochs}
    return sorted(found, key=lambda tick: (phases.index(tick[0]), tick[1]))


def _curve(run: ShownRun, metric: str) -> Curve:
    values: Curve = {}
    for epoch in run.epochs:
        value = epoch.values.get(f"{epoch.phase}_loss" if metric == "loss" else metric)
        if value is not None:
            values[epoch.phase, epoch.epoch] = float(value)
    return values


def _tick(ticks: Sequence[tuple[str, int]], index: int) -> str:
    """The epoch, with the phase below its first one; of many epochs about a dozen are labelled."""
    phase, epoch = ticks[index]
    first = index == 0 or ticks[index - 1][0] != phase
    named = first or epoch % max(1, -(-len(ticks) // 12)) == 0
    return (str(epoch) if named else "") + (f"\n{plain(phase)}" if first else "")


def landscape_charts(landscapes: Sequence[Landscape]) -> list[Chart]:
    """Queries by the quality of their pointers, and the proposal methods of each RL data."""
    charts = [_signal_chart(landscapes)] if landscapes else []
    return charts + [_methods_chart(landscape, number) for number, landscape in enumerate(landscapes, 1)]


def _signal_chart(landscapes: Sequence[Landscape]) -> Chart:
    judged = all(landscape.task.correctness is not None for landscape in landscapes)
    kinds = {"no pointer correct": "none_correct", "some correct": "some_correct", "all correct": "all_correct"}
    kinds = (kinds if judged else {}) | {"rewards differ": "signal"}
    sources = [landscape.source for landscape in landscapes]
    figure, axes = new_figure("landscape", 1.75 + 0.35 * len(sources), sources if len(sources) > 1 else ())
    height = 0.7 / len(landscapes)
    for index, landscape in enumerate(landscapes):
        shares = [100 * getattr(landscape, field) / landscape.queries for field in kinds.values()]
        places = [place + (index - (len(landscapes) - 1) / 2) * height for place in range(len(kinds))]
        bars = axes.barh(places, shares, height=height * 0.9, color=colour(index), label=landscape.source)
        axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, color=TEXT)
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the queries (%)")
    if len(landscapes) > 1:
        add_legend(figure, axes)
    first = landscapes[0]
    counts = f"{first.signal} have pointers that differ in reward."
    if judged:
        counts = (
            f"{first.none_correct} have no correct pointer, {first.some_correct} some, and {first.all_correct} only "
            f"correct ones; {counts}"
        )
    return Chart(
        "landscape",
        "Queries by the quality of their pointers",
        f"Of {first.queries} queries {counts}",
        figure,
        ("queries", *(landscape.source for landscape in landscapes)),
        tuple((kind, *(str(getattr(landscape, field)) for landscape in landscapes)) for kind, field in kinds.items()),
    )


def _methods_chart(landscape: Landscape, number: int) -> Chart:
    methods = landscape.methods
    name = "proposals" if number == 1 else f"proposals-{number}"
    places = range(len(methods))
    judged = landscape.task.correctness is not None
    shares: dict[str, list[float | None]] = {}
    if judged:
        shares["pointers answered correctly"] = [method.correct for method in methods]
    shares["queries for which it finds a best pointer"] = [method.best for method in methods]
    figure, axes = new_figure(name, 0.8 + 0.36 * len(methods), list(shares))
    for index, (label, values) in enumerate(shares.items()):
        known = [(100 * value, place) for value, place in zip(values, places, strict=True) if value is not None]
        look = look_of(index, label) | {"linestyle": "none", "markersize": 8}
        axes.plot([x for x, _ in known], [y for _, y in known], clip_on=False, **look)
    axes.set_yticks(places, [method.name for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share (%)")
    add_legend(figure, axes)
    top = methods[0]
    facts = [] if top.correct is None else [f"{100 * top.correct:.0f} % of its pointers are answered correctly"]
    facts += (
        [f"it finds a best pointer of {100 * top.best:.0f} % of the queries whose rewards differ"] if top.best else []
    )
    return Chart(
        name,
        "What each proposal method contributes" + (f": {landscape.source}" if number > 1 else ""),
        f"Best by mean reward is {top.name}{': ' if facts else ''}{', and '.join(facts)}.",
        figure,
        ("proposed by", *shares),
        tuple((m.name, *map(_percent, values)) for m, *values in zip(methods, *shares.values(), strict=True)),
    )


def usage_chart(usages: Sequence[tuple[Chosen, Usage]], order: Mapping[str, int]) -> Chart:
    """How often the most chosen training examples are chosen, by rank, at one number of shots."""
    figure, axes = new_figure("usage", 2.4, [chosen.label for chosen, _ in usages])
    ranks = (1, 3, 10, 30, 100, 300)
    for chosen, used in usages:
        counts = sorted(used.counts.values(), reverse=True)
        shares = [100 * count / len(chosen.by_query) for count in counts]
        place = order[chosen.name]
        look = look_of(place, chosen.label)
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
    add_legend(figure, axes)
    shots = usages[0][0].shots
    lead, used = max(usages, key=lambda pair: max(pair[1].counts.values(), default=0) / len(pair[0].by_query))
    share = 100 * max(used.counts.values(), default=0) / len(lead.by_query)
    return Chart(
        "usage",
        f"How often the most chosen examples are shown ({shots_text(shots)})",
        f"{lead.label} relies most on one example: it is in {share:.0f} % of its prompts.",
        figure,
        ("selector", *(f"rank {rank}" for rank in shown)),
        tuple((chosen.label, *(_at_rank(used, rank) for rank in shown)) for chosen, used in usages),
    )


def _at_rank(used: Usage, rank: int) -> str:
    counts = sorted(used.counts.values(), reverse=True)
    return f"{counts[rank - 1]} times" if rank <= len(counts) else "none"


def new_figure(name: str, height: float, legend: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """An empty figure with space for a legend of these names below the axes."""
    lines = -(-len(legend) // 2) if _columns(legend) == 2 else sum(1 + folded(label).count("\n") for label in legend)
    with chart_style(name):
        figure = Figure(figsize=(WIDTH, height + 0.2 * lines), layout="constrained")
        return figure, figure.add_subplot()


def look_of(index: int, label: str) -> dict[str, Any]:
    """The style of the line of the selector or run of this index."""
    return {"color": colour(index), "marker": marker(index), "linestyle": dashes(index), "label": label}


def add_legend(figure: Figure, axes: Axes) -> None:
    """Adds a legend below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        [*map(folded, labels)],
        loc="outside lower center",
        ncols=_columns(labels),
        frameon=False,
        fontsize=9,
        handlelength=2.4,
    )


def _columns(names: Sequence[str]) -> int:
    """Two if the names are short."""
    return 2 if len(names) > 1 and max(map(len, names)) <= 22 else 1


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def folded(label: str, width: int = 46) -> str:
    """A label in lines of at most `width` characters, so that a long name leaves space for the axes."""
    return textwrap.fill(label, width)
