"""Builds the page of a comparison: one file that opens offline, in which no injected script can run."""

import base64
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icdsel import __version__
from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.headline import verdict
from icdsel.comparison.sources import Source, read_source
from icdsel.comparison.tables import cautions, explanations, p_text, stars
from icdsel.console import progress
from icdsel.data.datasets import is_copied, load_split
from icdsel.data.hub import PREFIX
from icdsel.errors import DataError, SettingsError
from icdsel.page.charts.comparison_charts import accuracy_chart, difference_chart
from icdsel.page.charts.landscape import Landscape
from icdsel.page.charts.palette import DARK, LIGHT
from icdsel.page.charts.plots import Chart, landscape_charts, training_charts, usage_chart
from icdsel.page.charts.svg import chart_style, inline_svg, save
from icdsel.page.choices import Chosen, Usage, one_each, overlap, read_choices, usage
from icdsel.page.findings import findings
from icdsel.page.gallery import Demonstration, cards, demonstration, spread
from icdsel.page.names import row_labels
from icdsel.page.runs import ShownRun, read_landscapes, read_runs
from icdsel.page.thumbnails import Thumbnails
from icdsel.records import DEFAULT_TASK, Example, QuestionId, id_order
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.presets import WORLD
from icdsel.store.files import write_bytes
from icdsel.store.fingerprints import fingerprint_examples
from icdsel.tasks.base import TASKS, Task

MOST_CHOSEN = 6
"""How many of each selector's most chosen training examples are shown."""


@dataclass(frozen=True)
class Content:
    """Everything that a page and its charts show, except pictures and the time.

    Attributes:
        own: The settings of the comparison.
        predicted: The settings of the predictions, once per dataset, sampler and model; the dataset shown comes first.
        rows: The comparison.
        labels: The short name of each row's name.
        chosen: The choices of each row.
        usages: How often they choose each training example.
        runs: The runs of the learned rows.
        landscapes: The RL data of these runs.
        queries: The queries of the dataset, by question_id.
        train: The training examples, by question_id.
        missing: For each section, sentences about what could not be shown.
    """

    own: Settings
    predicted: Sequence[Settings]
    rows: Sequence[ComparisonRow]
    labels: Mapping[str, str]
    chosen: Sequence[Chosen]
    usages: Sequence[tuple[Chosen, Usage]]
    runs: Sequence[ShownRun]
    landscapes: Sequence[Landscape]
    queries: Mapping[QuestionId, Example]
    train: Mapping[QuestionId, Example]
    missing: Mapping[str, Sequence[str]]

    @property
    def settings(self) -> Settings:
        """The settings of the dataset that is shown."""
        return self.predicted[0]

    @property
    def task(self) -> Task:
        """The task of all rows."""
        return TASKS.named(self.rows[0].task)

    @property
    def order(self) -> dict[str, int]:
        """The index of each name, which decides colour and marker; seeds share that of their mean."""
        leads = {row.name: row.part_of for row in self.rows if row.part_of}
        leads |= {row.name: row.lead for row in self.chosen if row.part_of}
        names = dict.fromkeys([row.name for row in self.chosen] + [row.name for row in self.rows])
        places = {lead: place for place, lead in enumerate(dict.fromkeys(leads.get(name, name) for name in names))}
        return {name: places[leads.get(name, name)] for name in names}

    @property
    def shown(self) -> list[Chosen]:
        """The choices that are shown query by query: of selectors with several seeds those of the first."""
        return one_each(self.chosen)

    @property
    def shots(self) -> int:
        """The number of shots that is shown first: that of the trained pointers, else the largest."""
        shots = {row.shots for row in self.chosen}
        trained = self.settings.proposals.shots
        return trained if trained in shots else max(shots, default=0)


_ELSEWHERE = ". If the images are in another folder, name it: --image-dir DIR"


def collect(settings: Settings, rows: Sequence[ComparisonRow]) -> Content:
    """Reads what belongs to the rows of a comparison: predictions, runs, RL data, dataset.

    Args:
        settings: Those of the comparison. They locate the dataset, if it is that of the predictions.
        rows: The comparison. Its rows name their files of predictions, and nothing else is shown.

    Raises:
        RunError: Predictions are damaged. Anything else may be missing.
    """
    sources = {file: read_source(Path(file)) for row in rows for file in row.files}
    predicted = _settings_of(settings, sources.values())
    own, settings = settings, predicted[0]
    labels = row_labels(rows, [each.pair_name for each in predicted])
    chosen = read_choices(rows, labels, sources)
    missing: dict[str, list[str]] = {}
    train: dict[QuestionId, Example] = {}
    queries: dict[QuestionId, Example] = {}
    datasets = {repr(source.identity.get("dataset")) for source in sources.values()}
    if len(datasets) > 1:
        missing["data"] = ["The rows are over different data, so questions and images are not shown."]
    else:
        try:
            if settings.data.dataset.startswith(PREFIX) and settings.data.dataset != own.data.dataset:
                name = settings.data.dataset  # from untrusted files
                raise DataError(f"{name} is downloaded only if you name it: --dataset {name}")
            pool = load_split(settings.data, "train")
            if repr(fingerprint_examples(pool)) not in datasets:
                raise DataError(
                    f"its training examples or their images are not those that were chosen from{_ELSEWHERE}"
                )
            for split in dict.fromkeys(row.split for row in chosen):
                examples = load_split(settings.data, split)
                fingerprints = {repr(row.source.identity.get("queries")) for row in chosen if row.split == split}
                if fingerprints != {repr(fingerprint_examples(examples))}:
                    raise DataError(f"its {split} queries or their images are not those that were answered{_ELSEWHERE}")
                queries |= {example.question_id: example for example in examples}
            train = {example.question_id: example for example in pool}
        except DataError as error:
            missing["data"] = [f"The dataset is not available, so questions and images are not shown: {error}"]
    runs, missing["training"] = read_runs(chosen, settings)
    if not runs and not missing["training"]:
        missing["training"] = ["There is no learned selector in this comparison, so there are no training curves."]
    landscapes, missing["landscape"] = read_landscapes(runs, settings, sorted(train, key=id_order) or None)
    task = TASKS.named(rows[0].task)
    usages = [(row, usage(row, queries, train, task)) for row in chosen if row.shots]
    return Content(own, predicted, rows, labels, chosen, usages, runs, landscapes, queries, train, missing)


def _settings_of(settings: Settings, sources: Iterable[Source]) -> list[Settings]:
    """The settings of the predictions, each dataset, sampler and model once; `settings` first if among them."""

    def key(candidate: Settings) -> tuple[str, ...]:
        return candidate.data.dataset, candidate.pair_name, str(candidate.vlm.model)

    found: dict[tuple[str, ...], Settings] = {}
    for source in sources:
        recorded = {table: source.settings[table] for table in ("data", "vlm", "proposals") if table in source.settings}
        try:
            candidate = _read_only(settings_from(recorded), settings) if recorded else settings
        except SettingsError:  # written by another version
            candidate = settings
        found.setdefault(key(candidate), candidate)
    if found.pop(key(settings), None):
        return [settings, *found.values()]
    return [*found.values()]


def _read_only(recorded: Settings, settings: Settings) -> Settings:
    """Settings from untrusted files, with the user's own limits and output paths.

    A dataset in another folder is read from there. Datasets of which files are written (the world, those of the hub,
    those that contain their images) are read only from the user's own folder. Image folders named by the files are
    ignored: otherwise a page that is passed on could show the user's private pictures.
    """
    name = recorded.data.dataset
    created = name == WORLD or name.startswith(PREFIX) or is_copied(name)
    kept = ["results_dir", "max_image_pixels", *(["data_dir"] if created else [])]
    images = recorded.data.image_dir
    if created or (images is not None and not images.resolve().is_relative_to(Path.cwd())):
        kept.append("image_dir")
    data = recorded.data.model_copy(update={name: getattr(settings.data, name) for name in kept})
    return recorded.model_copy(update={"data": data})


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
    with progress("Thumbnails", len(thumbnails)) as advance:
        images = thumbnails.encode(advance)
    sections = {
        section: [(chart, Markup(inline_svg(chart.figure, chart.name, chart.summary))) for chart in section_charts]
        for section, section_charts in charts(content).items()
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
        task=content.task,
        position=_position(content.rows),
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
    return files("icdsel.page").joinpath(name).read_text(encoding="utf-8").strip()


def _style() -> str:
    """The style sheet, after the palette's colours."""

    def variables(colours: Iterable[str]) -> str:
        return " ".join(f"--series-{index}: {colour};" for index, colour in enumerate(colours))

    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return f":root {{ {variables(LIGHT)} }}\n{dark}\n{_text('page.css')}"


def _position(rows: Sequence[ComparisonRow]) -> Callable[[float], float]:
    """From a score as the table shows it to its position on a line from 0 to 100, the bounds of the task.

    If there are no bounds, the line spans the intervals of all rows.
    """
    task = TASKS.named(rows[0].task)
    lowest, highest = (task.factor * bound for bound in task.bounds)
    lowest = lowest if math.isfinite(lowest) else min(row.low for row in rows)
    highest = highest if math.isfinite(highest) else max(row.high for row in rows)
    return lambda value: 100 * (value - lowest) / ((highest - lowest) or 1.0)


def _overlaps(content: Content) -> list[tuple[int, list[str], list[list[float | None]]]]:
    """For each number of shots the selectors' names and the mean overlap of each pair."""
    found = []
    for shots in sorted({row.shots for row in content.shown if row.shots}):
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
    """The two selectors that the gallery compares at first: the learned one and the reference."""
    leads = list(dict.fromkeys((row.name, row.lead) for row in content.shown))
    reference = content.rows[0].reference
    against = [place for place, names in enumerate(leads) if reference in names]
    second = next(iter(against), len(leads) - 1)
    first = next((place for place in range(len(leads)) if place != second), 0)
    return {"first": first, "second": second}
