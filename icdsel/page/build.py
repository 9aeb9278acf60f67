"""Assembles the page of a comparison: one file that opens offline, in which no injected script can run."""

import base64
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icdsel import __version__
from icdsel.compare import ComparisonRow
from icdsel.console import progress
from icdsel.datasets import load_split
from icdsel.errors import DataError
from icdsel.files import write_text
from icdsel.page.choices import Chosen, Usage, overlap, read_choices, short_name, usage
from icdsel.page.gallery import Demonstration, cards, demonstration, spread
from icdsel.page.landscape import Landscape
from icdsel.page.palette import DARK, LIGHT
from icdsel.page.plots import Chart, accuracy_chart, difference_chart, landscape_charts, training_charts, usage_chart
from icdsel.page.runs import ShownRun, read_landscapes, read_runs
from icdsel.page.svg import inline_svg, save
from icdsel.page.thumbnails import Thumbnails
from icdsel.records import Example
from icdsel.settings import Settings

MOST_CHOSEN = 6
"""Training examples shown of each selector's most chosen."""


@dataclass(frozen=True)
class Content:
    """Everything that a page and its charts show, but for pictures and the time.

    `missing` has for each section the sentences that say what could not be shown.
    """

    settings: Settings
    rows: Sequence[ComparisonRow]
    chosen: Sequence[Chosen]
    usages: Sequence[tuple[Chosen, Usage]]
    runs: Sequence[ShownRun]
    landscapes: Sequence[Landscape]
    queries: Mapping[int, Example]
    train: Mapping[int, Example]
    missing: Mapping[str, Sequence[str]]

    @property
    def labels(self) -> dict[str, str]:
        """The short name of each row's name."""
        return {row.name: short_name(row.name, self.settings.pair_name) for row in self.rows}

    @property
    def order(self) -> dict[str, int]:
        """Each name's place, by which it has colour and mark."""
        names = dict.fromkeys([row.name for row in self.chosen] + [row.name for row in self.rows])
        return {name: place for place, name in enumerate(names)}

    @property
    def shots(self) -> int:
        """The number of shots that is looked at first: that of the trained pointers, else the largest."""
        there = sorted({row.shots for row in self.chosen})
        trained = self.settings.proposals.shots
        return trained if trained in there else max(there, default=0)


def collect(
    settings: Settings,
    rows: Sequence[ComparisonRow],
    n: int | None = None,
    subset: str | None = None,
    shots: Sequence[int] = (),
    paths: Sequence[Path] = (),
) -> Content:
    """Reads what stands behind the rows of a comparison: predictions, runs, RL data, dataset.

    Args:
        settings: Those of the comparison.
        rows: The comparison.
        n: As it was given to the comparison, like `subset` and `shots`.
        subset: The set's name.
        shots: Numbers of shots.
        paths: The predictions files compared; by default all of this dataset, sampler and model.

    Raises:
        RunError: predictions are damaged. Nothing else that is missing is an error.
    """
    chosen = read_choices(settings, n, subset, shots, paths)
    missing: dict[str, list[str]] = {}
    train: dict[int, Example] = {}
    queries: dict[int, Example] = {}
    try:
        train = {example.question_id: example for example in load_split(settings.data, "train")}
        for split in dict.fromkeys(row.split for row in chosen):
            queries |= {example.question_id: example for example in load_split(settings.data, split)}
    except DataError as error:
        missing["data"] = [f"The dataset is not there, so questions and images are not shown: {error}"]
    runs, missing["training"] = read_runs(chosen, settings)
    if not runs and not missing["training"]:
        missing["training"] = ["No learned selector stands in this comparison, so there are no training curves."]
    landscapes, missing["landscape"] = read_landscapes(runs, settings, sorted(train) or None)
    usages = [(row, usage(row, queries, train)) for row in chosen if row.shots]
    return Content(settings, rows, chosen, usages, runs, landscapes, queries, train, missing)


def charts(content: Content) -> dict[str, list[Chart]]:
    """The charts of each section."""
    usages = [pair for pair in content.usages if pair[0].shots == content.shots]
    difference = difference_chart(content.rows, content.shots, content.labels, content.order)
    return {
        "accuracy": [
            accuracy_chart(content.rows, content.labels, content.order),
            *([difference] if difference else []),
        ],
        "training": training_charts(content.runs),
        "landscape": landscape_charts(content.landscapes),
        "choices": [usage_chart(usages, content.order)] if usages else [],
    }


def write_plots(content: Content, folder: Path) -> list[str]:
    """Writes every chart as PNG and SVG; returns their names."""
    made = [chart for own in charts(content).values() for chart in own]
    with progress("Plots", len(made)) as advance:
        for chart in made:
            save(chart.figure, folder, chart.name)
            advance(1)
    return [chart.name for chart in made]


def write_page(content: Content, path: Path, gallery: int = 200) -> int:
    """Writes the page with a gallery of at most so many queries; returns its size in bytes."""
    thumbnails = Thumbnails(content.settings.data.max_image_pixels)
    asked = sorted({question_id for row in content.chosen for question_id in row.by_query})
    gallery_cards = cards(content.chosen, spread(asked, gallery), content.queries, content.train, thumbnails)
    favourites = _favourites(content, thumbnails)
    with progress("Thumbnails", len(thumbnails)) as advance:
        images = thumbnails.encode(advance)
    sections = {
        section: [(chart, Markup(inline_svg(chart.figure, chart.name, chart.summary))) for chart in own]
        for section, own in charts(content).items()
    }
    style, script = _style(), _text("page.js")
    environment = Environment(
        loader=PackageLoader("icdsel", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("page.html.j2").render(
        content=content,
        settings=content.settings,
        rows=content.rows,
        labels=content.labels,
        names={row.name: (row.label, row.selector) for row in content.chosen},
        sections=sections,
        missing=content.missing,
        findings=findings(content.rows, content.labels),
        overlaps=_overlaps(content),
        favourites=favourites,
        cards=gallery_cards,
        asked=len(asked),
        compared=_compared(content),
        images=images,
        broken=len(thumbnails.missing),
        style=Markup(style),
        script=Markup(script),
        policy=content_policy(style, script),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M %Z").strip(),
    )
    write_text(path, page)
    return path.stat().st_size


def content_policy(style: str, script: str) -> str:
    """A content security policy under which this style sheet and this script alone take effect.

    Nothing is loaded from anywhere, and pictures come from the page itself.
    """
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: str) -> str:
    return files("icdsel.page").joinpath(name).read_text(encoding="utf-8").strip()


def _style() -> str:
    """The style sheet with the palette's colours before it."""

    def variables(colours: Iterable[str]) -> str:
        return " ".join(f"--series-{index}: {colour};" for index, colour in enumerate(colours))

    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return f":root {{ {variables(LIGHT)} }}\n{dark}\n{_text('page.css')}"


def findings(rows: Sequence[ComparisonRow], labels: Mapping[str, str]) -> list[str]:
    """What the comparison says of each learned selector at its largest number of shots, in a sentence."""
    learned: dict[str, ComparisonRow] = {}
    for row in rows:
        if row.selector == "policy" and row.shots >= learned.get(row.name, row).shots:
            learned[row.name] = row
    told = []
    for row in learned.values():
        shots = f"{row.shots} {'shot' if row.shots == 1 else 'shots'}"
        sentence = f"{labels[row.name]} reaches {row.accuracy:.1f} points at {shots}"
        if row.difference is None or row.difference_low is None or row.difference_high is None:
            told.append(f"{sentence}.")
            continue
        interval = f"95 % interval {row.difference_low:+.1f} to {row.difference_high:+.1f}"
        reference = labels.get(row.reference, row.reference)
        if row.difference_low > 0:
            verdict = f"better than {reference} by {row.difference:.1f} ({interval})"
        elif row.difference_high < 0:
            verdict = f"worse than {reference} by {-row.difference:.1f} ({interval})"
        else:
            verdict = f"not told apart from {reference} by these {row.n} queries ({row.difference:+.1f}, {interval})"
        told.append(f"{sentence}, {verdict}.")
    return told


def _overlaps(content: Content) -> list[tuple[int, list[str], list[list[float | None]]]]:
    """For each number of shots the selectors' names and the mean overlap of each pair."""
    found = []
    for shots in sorted({row.shots for row in content.chosen if row.shots}):
        own = [row for row in content.chosen if row.shots == shots]
        if len(own) > 1:
            matrix = [[overlap(one, other) for other in own] for one in own]
            found.append((shots, [row.label for row in own], matrix))
    return found


def _favourites(content: Content, thumbnails: Thumbnails) -> list[tuple[str, list[tuple[Demonstration, int]]]]:
    """Of each selector the training examples that it chose most often, if any more than once."""
    found = []
    for chosen, used in content.usages:
        if chosen.shots != content.shots:
            continue
        ordered = sorted(used.counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_CHOSEN]
        shown = [(demonstration(i, content.train, thumbnails), count) for i, count in ordered if count > 1]
        found.append((chosen.label, shown))
    return found


def _compared(content: Content) -> dict[str, int]:
    """Which two selectors the gallery sets against each other at first: the learned one and the reference."""
    names = list(dict.fromkeys(row.name for row in content.chosen))
    reference = content.rows[0].reference
    start = reference.split(" (")[0]  # of a mean over seeds the first of them
    against = [place for place, name in enumerate(names) if name == reference or name.startswith(start)]
    second = next(iter(against), len(names) - 1)
    first = next((place for place in range(len(names)) if place != second), 0)
    return {"first": first, "second": second}
