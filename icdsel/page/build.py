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
from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.rows import Source, read_source
from icdsel.comparison.tables import cautions, explanations, p_text, stars
from icdsel.console import progress
from icdsel.data.datasets import load_split
from icdsel.data.hub import PREFIX
from icdsel.errors import DataError, SettingsError
from icdsel.page.choices import Chosen, Usage, one_each, overlap, read_choices, usage
from icdsel.page.comparison_charts import accuracy_chart, difference_chart
from icdsel.page.findings import findings, verdict
from icdsel.page.gallery import Demonstration, cards, demonstration, spread
from icdsel.page.landscape import Landscape
from icdsel.page.names import row_labels
from icdsel.page.palette import DARK, LIGHT
from icdsel.page.plots import Chart, landscape_charts, training_charts, usage_chart
from icdsel.page.runs import ShownRun, read_landscapes, read_runs
from icdsel.page.svg import chart_style, inline_svg, save
from icdsel.page.thumbnails import Thumbnails
from icdsel.records import Example
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.presets import WORLD
from icdsel.store.files import write_bytes
from icdsel.store.fingerprints import fingerprint_examples

MOST_CHOSEN = 6
"""Training examples shown of each selector's most chosen."""


@dataclass(frozen=True)
class Content:
    """Everything that a page and its charts show, but for pictures and the time.

    `asked` has the settings of the comparison. `behind` has those of the predictions, each dataset, sampler and model
    once, those of the page first.
    `missing` has for each section the sentences that say what could not be shown.
    """

    asked: Settings
    behind: Sequence[Settings]
    rows: Sequence[ComparisonRow]
    labels: Mapping[str, str]
    chosen: Sequence[Chosen]
    usages: Sequence[tuple[Chosen, Usage]]
    runs: Sequence[ShownRun]
    landscapes: Sequence[Landscape]
    queries: Mapping[int, Example]
    train: Mapping[int, Example]
    missing: Mapping[str, Sequence[str]]

    @property
    def settings(self) -> Settings:
        """Those of the dataset that is shown."""
        return self.behind[0]

    @property
    def order(self) -> dict[str, int]:
        """Each name's place, by which it has colour and mark; seeds have their mean's."""
        leads = {row.name: row.part_of for row in self.rows if row.part_of}
        leads |= {row.name: row.lead for row in self.chosen if row.part_of}
        names = dict.fromkeys([row.name for row in self.chosen] + [row.name for row in self.rows])
        places = {lead: place for place, lead in enumerate(dict.fromkeys(leads.get(name, name) for name in names))}
        return {name: places[leads.get(name, name)] for name in names}

    @property
    def shown(self) -> list[Chosen]:
        """The choices that are looked at query by query: of selectors with several seeds those of the first."""
        return one_each(self.chosen)

    @property
    def shots(self) -> int:
        """The number of shots that is looked at first: that of the trained pointers, else the largest."""
        there = sorted({row.shots for row in self.chosen})
        trained = self.settings.proposals.shots
        return trained if trained in there else max(there, default=0)


_ELSEWHERE = ". If images lie elsewhere, say where: --image-dir DIR"


def collect(settings: Settings, rows: Sequence[ComparisonRow]) -> Content:
    """Reads what stands behind the rows of a comparison: predictions, runs, RL data, dataset.

    Args:
        settings: Those of the comparison; they say where the dataset lies, if it is the predictions' one.
        rows: The comparison. Its rows name the files that they are made from, and nothing else is shown.

    Raises:
        RunError: predictions are damaged. Nothing else that is missing is an error.
    """
    sources = {file: read_source(Path(file)) for row in rows for file in row.files}
    behind = _settings_behind(settings, sources.values())
    asked, settings = settings, behind[0]
    labels = row_labels(rows, [own.pair_name for own in behind])
    chosen = read_choices(rows, labels, sources)
    missing: dict[str, list[str]] = {}
    train: dict[int, Example] = {}
    queries: dict[int, Example] = {}
    datasets = {repr(source.identity.get("dataset")) for source in sources.values()}
    if len(datasets) > 1:
        missing["data"] = ["The rows are over different data, so questions and images are not shown."]
    else:
        try:
            if settings.data.dataset.startswith(PREFIX) and settings.data.dataset != asked.data.dataset:
                name = settings.data.dataset  # told by files that may be anybody's
                raise DataError(f"{name} is fetched only where it is asked for: --dataset {name}")
            pool = load_split(settings.data, "train")
            if repr(fingerprint_examples(pool)) not in datasets:
                raise DataError(
                    f"its training examples or their images are not those that were chosen from{_ELSEWHERE}"
                )
            for split in dict.fromkeys(row.split for row in chosen):
                asked_about = load_split(settings.data, split)
                told = {repr(row.source.identity.get("queries")) for row in chosen if row.split == split}
                if told != {repr(fingerprint_examples(asked_about))}:
                    raise DataError(f"its {split} queries or their images are not those that were answered{_ELSEWHERE}")
                queries |= {example.question_id: example for example in asked_about}
            train = {example.question_id: example for example in pool}
        except DataError as error:
            missing["data"] = [f"The dataset is not there, so questions and images are not shown: {error}"]
    runs, missing["training"] = read_runs(chosen, settings)
    if not runs and not missing["training"]:
        missing["training"] = ["No learned selector stands in this comparison, so there are no training curves."]
    landscapes, missing["landscape"] = read_landscapes(runs, settings, sorted(train) or None)
    usages = [(row, usage(row, queries, train)) for row in chosen if row.shots]
    return Content(asked, behind, rows, labels, chosen, usages, runs, landscapes, queries, train, missing)


def _settings_behind(settings: Settings, sources: Iterable[Source]) -> list[Settings]:
    """Those under which predictions were made, each dataset, sampler and model once; the given ones first if there."""

    def key(own: Settings) -> tuple[str, ...]:
        return own.data.dataset, own.pair_name, str(own.vlm.model)

    found: dict[tuple[str, ...], Settings] = {}
    for source in sources:
        told = {table: source.settings[table] for table in ("data", "vlm", "proposals") if table in source.settings}
        try:
            own = _read_only(settings_from(told), settings) if told else settings
        except SettingsError:  # written by another version
            own = settings
        found.setdefault(key(own), own)
    if found.pop(key(settings), None):
        return [settings, *found.values()]
    return [*found.values()]


def _read_only(told: Settings, own: Settings) -> Settings:
    """What files tell that may be anybody's, under one's own limits; nothing is written where they say.

    A dataset that lies elsewhere is read there. What is made where it is missing (the world, those of the hub) is
    looked for in one's own folder alone. Nor do they name a folder of images anywhere: a page that is handed on would
    show pictures of one's own.
    """
    made = told.data.dataset == WORLD or told.data.dataset.startswith(PREFIX)
    kept = ["results_dir", "max_image_pixels", *(["data_dir"] if made else [])]
    images = told.data.image_dir
    if made or (images is not None and not images.resolve().is_relative_to(Path.cwd())):
        kept.append("image_dir")
    data = told.data.model_copy(update={name: getattr(own.data, name) for name in kept})
    return told.model_copy(update={"data": data})


@chart_style("charts")
def charts(content: Content) -> dict[str, list[Chart]]:
    """The charts of each section."""
    shown = {row.name for row in content.shown}
    usages = [pair for pair in content.usages if pair[0].shots == content.shots and pair[0].name in shown]
    difference = difference_chart(content.rows, content.shots, content.labels, content.order)
    return {
        "accuracy": [
            accuracy_chart(content.rows, content.labels, content.order),
            *([difference] if difference else []),
        ],
        "training": training_charts(content.runs, content.labels, content.order),
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
    thumbnails = Thumbnails(content.asked.data.max_image_pixels)
    asked = sorted({question_id for row in content.chosen for question_id in row.by_query})
    gallery_cards = cards(content.shown, spread(asked, gallery), content.queries, content.train, thumbnails)
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
        names={row.name: row.label for row in content.shown},
        folded=any(row.part_of for row in content.chosen),
        header=_header(content),
        cautions=cautions(content.rows),
        explanations=explanations(content.rows),
        verdict=verdict,
        p_text=p_text,
        stars=stars,
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
    write_bytes(path, page.encode(errors="replace"))  # names of files may be no UTF-8
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


def _overlaps(content: Content) -> list[tuple[int, list[str], list[list[float | None]]]]:
    """For each number of shots the selectors' names and the mean overlap of each pair."""
    found = []
    for shots in sorted({row.shots for row in content.shown if row.shots}):
        own = [row for row in content.shown if row.shots == shots]
        if len(own) > 1:
            matrix = [[overlap(one, other) for other in own] for one in own]
            found.append((shots, [row.label for row in own], matrix))
    return found


def _favourites(content: Content, thumbnails: Thumbnails) -> list[tuple[str, list[tuple[Demonstration, int]]]]:
    """Of each selector the training examples that it chose most often, if any more than once."""
    found = []
    names = {row.name for row in content.shown}
    for chosen, used in content.usages:
        if chosen.shots != content.shots or chosen.name not in names:
            continue
        ordered = sorted(used.counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_CHOSEN]
        shown = [(demonstration(i, content.train, thumbnails), count) for i, count in ordered if count > 1]
        found.append((chosen.label, shown))
    return found


def _header(content: Content) -> dict[str, str]:
    """What was compared: one of each, unless the comparison was told to allow different ones."""
    told = {
        "Dataset": [own.dataset_dir.name for own in content.behind],
        "Model": [str(own.vlm.model) for own in content.behind],
        "Metric": [row.metric for row in content.rows],
        "Reference": [content.labels.get(row.reference, row.reference) for row in content.rows],
    }
    header = {}
    for name, values in told.items():
        once = list(dict.fromkeys(values))
        header[f"{name}s" if len(once) > 1 else name] = " and ".join(once)
    return header


def _compared(content: Content) -> dict[str, int]:
    """Which two selectors the gallery sets against each other at first: the learned one and the reference."""
    leads = list(dict.fromkeys((row.name, row.lead) for row in content.shown))
    reference = content.rows[0].reference
    against = [place for place, names in enumerate(leads) if reference in names]
    second = next(iter(against), len(leads) - 1)
    first = next((place for place in range(len(leads)) if place != second), 0)
    return {"first": first, "second": second}
