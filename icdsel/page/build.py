"""Builds the page of a comparison: one file that opens offline, in which no injected script can run."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icdsel import __version__
from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.headline import verdict
from icdsel.comparison.tables import (
    cautions,
    corpus_cells,
    explanations,
    mean_shots_text,
    p_text,
    signed,
    stars,
    tokens_text,
)
from icdsel.console import progress
from icdsel.page.charts.comparison_charts import accuracy_chart, difference_chart
from icdsel.page.charts.mean_shots import mean_shots_chart
from icdsel.page.charts.palette import DARK, LIGHT, SYMBOLS, marker
from icdsel.page.charts.plots import Chart, landscape_charts, training_charts, usage_chart
from icdsel.page.charts.score_axis import score_limits
from icdsel.page.charts.svg import chart_style, inline_svg, save
from icdsel.page.choices import overlap
from icdsel.page.content import Content
from icdsel.page.findings import findings
from icdsel.page.gallery import Demonstration, cards, demonstration, spread
from icdsel.page.origin import costs, prompts, seeds, steps
from icdsel.page.question_types import by_type, deciding_row
from icdsel.page.thumbnails import Thumbnails
from icdsel.records import DEFAULT_TASK, Example, Shots, id_order, shots_order, shots_text
from icdsel.store.files import write_bytes

MOST_CHOSEN = 6
"""How many of each selector's most chosen training examples are shown."""
CARDS = 20
"""How many queries the gallery shows at once."""


@chart_style("charts")
def charts(content: Content) -> dict[str, list[Chart]]:
    """The charts of each section."""
    shown = {row.name for row in content.shown}
    usages = [pair for pair in content.usages if pair[0].shots == content.shots and pair[0].name in shown]
    by_mean = mean_shots_chart(content.rows, content.pooled_labels, content.order)
    difference = difference_chart(content.rows, content.shots, content.pooled_labels, content.order)
    return {
        "accuracy": [
            accuracy_chart(content.rows, content.pooled_labels, content.order),
            *(chart for chart in (by_mean, difference) if chart),
        ],
        "training": training_charts(content.runs, content.labels, content.order),
        "landscape": landscape_charts(content.landscapes),
        "choices": [usage_chart(usages, content.order)] if usages else [],
    }


def write_plots(content: Content, folder: Path) -> list[str]:
    """Writes every chart as PNG and SVG; returns their names."""
    every = [chart for section in charts(content).values() for chart in section]
    with progress("Plots", len(every)) as advance:
        for chart in every:
            save(chart.figure, folder, chart.name)
            advance(1)
    return [chart.name for chart in every]


def write_page(content: Content, path: Path, gallery: int = 200) -> int:
    """Writes the page with at most `gallery` queries in its gallery; returns its size in bytes."""
    thumbnails = Thumbnails(content.own.data.max_image_pixels)
    asked = sorted({question_id for row in content.chosen for question_id in row.by_query}, key=id_order)
    shown = spread(asked, gallery)
    gallery_cards = cards(content.shown, shown, content.queries, content.train, content.task, thumbnails)
    favourites = _favourites(content, thumbnails)
    asked_with = prompts(content.chosen, content.origin.prompter, _example(content))
    parts = [part for prompt in asked_with for _, turn in prompt.turns for part in turn]
    pictures = {part: thumbnails.place(part) for part in parts if isinstance(part, Path)}
    with progress("Thumbnails", len(thumbnails)) as advance:
        images = thumbnails.encode(advance)
    sections = {
        section: [(chart, Markup(inline_svg(chart.figure, chart.name, chart.summary))) for chart in section_charts]
        for section, section_charts in charts(content).items()
    }
    style, script = _style(), _text("page.js")
    environment = Environment(
        loader=PackageLoader("icdsel.page", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    lead = content.headlines[0] if content.headlines else None
    page = environment.get_template("page.html.j2").render(
        content=content,
        task=content.task,
        position=_position(content.rows),
        settings=content.settings,
        rows=content.rows,
        by_shots=[(shots, list(rows)) for shots, rows in groupby(content.rows, key=lambda row: row.shots)],
        shot_counts=sorted({row.shots for row in content.chosen if row.shots}, key=shots_order),
        shots_name=shots_text,
        labels=content.labels,
        names={row.name: row.label for row in content.shown},
        folded=any(row.part_of for row in content.chosen),
        header=_header(content),
        cautions=cautions(content.rows),
        explanations=explanations(content.rows),
        verdict=verdict,
        p_text=p_text,
        corpus=corpus_cells(content.rows),
        mean_shots_text=mean_shots_text,
        tokens_text=tokens_text,
        signed=signed,
        stars=stars,
        symbol=lambda place: _symbols()[marker(place)],
        symbols=[(name, SYMBOLS[own]) for own, name in _symbols().items()],
        colours=len(LIGHT),
        sections=sections,
        missing=content.missing,
        headlines=content.headline_texts,
        findings=_findings(content),
        lead=lead,
        types=by_type(content.rows, lead, content.queries) if lead else [],
        deciding=deciding_row(content.rows, lead) if lead else None,
        overlaps=_overlaps(content),
        favourites=favourites,
        steps=steps(content.chosen, content.runs, content.pointers),
        seeds=seeds(content.chosen, content.runs, content.rows.seed),
        costs=costs(content.chosen, content.runs, content.pointers),
        prompts=asked_with,
        pictures=pictures,
        cards=gallery_cards,
        at_once=CARDS,
        asked=len(asked),
        compared=_compared(content),
        images=images,
        broken=len(thumbnails.missing),
        style=Markup(style),
        script=Markup(script),
        policy=content_policy(style, script),
        version=__version__,
    )
    write_bytes(path, page.encode(errors="replace"))  # file names need not be UTF-8
    return path.stat().st_size


def content_policy(style: str, script: str) -> str:
    """A content security policy that allows only this style sheet and this script.

    Nothing is loaded from anywhere, and pictures are in the page itself.
    """
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: str) -> str:
    return files("icdsel.page").joinpath("template", name).read_text(encoding="utf-8").strip()


def _style() -> str:
    """The style sheet, after the palette's colours."""

    def variables(colours: Iterable[str]) -> str:
        return " ".join(f"--series-{index}: {colour};" for index, colour in enumerate(colours))

    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return f":root {{ {variables(LIGHT)} }}\n{dark}\n{_text('page.css')}"


def _symbols() -> dict[str, str]:
    """The id of each marker's symbol."""
    return {own: f"symbol-{place}" for place, own in enumerate(SYMBOLS)}


def _position(rows: Sequence[ComparisonRow]) -> Callable[[float], float]:
    """From a score as the table shows it to its position on a line from 0 to 100, the limits of an axis of scores.

    Where there is no limit, the line spans the intervals of all rows.
    """
    lowest, highest = score_limits(rows)
    lowest = min(row.drawn_interval[0] for row in rows) if lowest is None else lowest
    highest = max(row.drawn_interval[1] for row in rows) if highest is None else highest
    return lambda value: 100 * (value - lowest) / ((highest - lowest) or 1.0)


def _overlaps(content: Content) -> list[tuple[Shots, list[str], list[list[float | None]]]]:
    """For each number of shots the selectors' names and the mean overlap of each pair."""
    found = []
    for shots in sorted({row.shots for row in content.shown if row.shots}, key=shots_order):
        rows = [row for row in content.shown if row.shots == shots]
        if len(rows) > 1:
            matrix = [[overlap(one, other) for other in rows] for one in rows]
            found.append((shots, [row.label for row in rows], matrix))
    return found


def _favourites(content: Content, thumbnails: Thumbnails) -> list[tuple[str, list[tuple[Demonstration, int]]]]:
    """Each selector's most chosen training examples, if any more than once."""
    found = []
    names = {row.name for row in content.shown}
    for chosen, used in content.usages:
        if chosen.shots != content.shots or chosen.name not in names:
            continue
        ordered = sorted(used.counts.items(), key=lambda pair: (-pair[1], id_order(pair[0])))[:MOST_CHOSEN]
        shown = [
            (demonstration(i, content.train, content.task, thumbnails), count) for i, count in ordered if count > 1
        ]
        found.append((chosen.label, shown))
    return found


def _header(content: Content) -> dict[str, str]:
    """What was compared: one value of each kind, unless the comparison allows different ones."""
    facts = {
        "Dataset": [each.dataset_dir.name for each in content.predicted],
        "Model": [str(each.vlm.model) for each in content.predicted],
        "Metric": [row.metric for row in content.rows],
        "Reference": [content.labels.get(row.reference, row.reference) for row in content.rows],
    }
    if content.task.name != DEFAULT_TASK:
        facts |= {"Task": [content.task.name]}
    header = {}
    for name, values in facts.items():
        once = list(dict.fromkeys(values))
        header[f"{name}s" if len(once) > 1 else name] = " and ".join(once)
    return header


def _compared(content: Content) -> dict[str, int]:
    """The two selectors that the gallery compares at first: the headline's policy and the method it has to beat."""
    leads = [{row.name, row.lead} for row in {row.name: row for row in content.shown}.values()]

    def place(row: ComparisonRow | None, taken: int | None = None) -> int:
        wanted = row.name if row else ""
        own = (i for i, names in enumerate(leads) if wanted in names and i != taken)
        return next(own, next((i for i in range(len(leads)) if i != taken), 0))

    lead = content.headlines[0] if content.headlines else None
    first = place(lead.policy if lead else None)
    return {"first": first, "second": place(lead.baseline if lead else None, first)}


def _findings(content: Content) -> list[str]:
    """What differs between variants of a policy, which the headline leaves out: if the reference is one of them."""
    learned = {row.name for row in content.rows if row.learned}
    return findings(content.rows, content.labels) if content.rows[0].reference in learned else []


def _example(content: Content) -> tuple[list[Example], Example] | None:
    """The demonstrations and the query of a prompt to show: the first query, as the first selector chose for it."""
    for row in content.shown:
        for question_id, prediction in sorted(row.by_query.items(), key=lambda pair: id_order(pair[0])):
            icds = [content.train[icd] for icd in prediction.icds if icd in content.train]
            if row.shots == content.shots and question_id in content.queries and len(icds) == len(prediction.icds):
                return icds, content.queries[question_id]
    return None
