"""Everything that a page shows, collected from the files behind a comparison's rows; what is missing is reported."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from icdsel.comparison.compare import Comparison, ComparisonRow
from icdsel.comparison.headline import Headline, headlines
from icdsel.comparison.sources import Source, read_source
from icdsel.comparison.table_row import task_of
from icdsel.data.datasets import load_split
from icdsel.data.hub import PREFIX
from icdsel.data.named import is_missing_world, splits_of
from icdsel.errors import DataError, SettingsError
from icdsel.page.charts.landscape import Landscape
from icdsel.page.choices import Chosen, Usage, one_each, read_choices, usage
from icdsel.page.names import row_labels, with_pool, without_pool
from icdsel.page.origin import Origin
from icdsel.page.runs import ShownRun, read_landscapes, read_runs
from icdsel.records import Example, QuestionId, Shots, id_order
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.presets import WORLD
from icdsel.settings.worlds import is_world
from icdsel.store.fingerprints import fingerprint_examples
from icdsel.tasks.base import Task


@dataclass(frozen=True)
class Content:
    """Everything that a page and its charts show, except pictures.

    Attributes:
        own: The settings of the comparison.
        predicted: The settings of the predictions, once per dataset, sampler and model; the dataset shown comes first.
        rows: The comparison.
        labels: The short name of each row's name.
        chosen: The choices of each row.
        usages: How often they choose each training example.
        runs: The runs of the learned rows.
        landscapes: The RL data of these runs.
        pointers: How many demonstrations each scored pointer has, for each file of RL data.
        queries: The queries of the dataset, by question_id.
        train: The training examples, by question_id.
        missing: For each section, sentences about what could not be shown.
        origin: What results do not say of their origin.
    """

    own: Settings
    predicted: Sequence[Settings]
    rows: Comparison
    labels: Mapping[str, str]
    chosen: Sequence[Chosen]
    usages: Sequence[tuple[Chosen, Usage]]
    runs: Sequence[ShownRun]
    landscapes: Sequence[Landscape]
    pointers: Mapping[Path, Sequence[int]]
    queries: Mapping[QuestionId, Example]
    train: Mapping[QuestionId, Example]
    missing: Mapping[str, Sequence[str]]
    origin: Origin

    @property
    def settings(self) -> Settings:
        """The settings of the dataset that is shown."""
        return self.predicted[0]

    @property
    def task(self) -> Task:
        """The task of all rows."""
        return task_of(self.rows).with_options(self.settings.data.show_options)

    @property
    def order(self) -> dict[str, int]:
        """The index of each name, which decides colour and marker; seeds share that of their mean."""
        leads = {row.name: row.part_of for row in self.rows if row.part_of}
        leads |= {row.name: row.lead for row in self.chosen if row.part_of}
        names = dict.fromkeys([row.name for row in self.chosen] + [row.name for row in self.rows])
        places = {lead: place for place, lead in enumerate(dict.fromkeys(leads.get(name, name) for name in names))}
        return {name: places[leads.get(name, name)] for name in names}

    @cached_property
    def headlines(self) -> list[Headline]:
        """The headlines of the comparison, over all rows first."""
        return headlines(self.rows)

    @property
    def headline_texts(self) -> list[tuple[str, str]]:
        """The headlines with the names that the page shows, and their verdicts."""

        def named(row: ComparisonRow) -> ComparisonRow:
            return replace(row, label=self.bare_labels[row.name])

        return [
            (str(replace(own, baseline=named(own.baseline), policy=own.policy and named(own.policy))), own.verdict)
            for own in self.headlines
        ]

    @property
    def pooled_labels(self) -> dict[str, str]:
        """The short names for charts, which have no column for the pool: with the pool, where rows differ in it."""
        if len({pool for pool in self._pools.values() if pool}) < 2:
            return dict(self.labels)
        return {name: with_pool(label, self._pools.get(name)) for name, label in self.labels.items()}

    @cached_property
    def bare_labels(self) -> dict[str, str]:
        """The short names for places that show the pool beside them."""
        return {name: without_pool(label, self._pools.get(name)) for name, label in self.labels.items()}

    @cached_property
    def _pools(self) -> dict[str, str | None]:
        """What each row chose from."""
        return {row.name: row.pool for row in self.rows}

    @property
    def shown(self) -> list[Chosen]:
        """The choices that are shown query by query: of selectors with several seeds those of the first."""
        return one_each(self.chosen)

    @property
    def shots(self) -> Shots:
        """The number of shots that is shown first: that of the trained pointers, else the largest, else `auto`."""
        shots = [row.shots for row in self.chosen]
        trained = self.settings.proposals.shots
        largest = max((count for count in shots if isinstance(count, int)), default=0)
        return trained if trained in shots else largest or next((count for count in shots if count), 0)


_ELSEWHERE = ". If the images are in another folder, name it: --image-dir DIR"


def collect(settings: Settings, rows: Comparison, origin: Origin | None = None) -> Content:
    """Reads what belongs to the rows of a comparison: predictions, runs, RL data, dataset.

    Args:
        settings: Those of the comparison. They locate the dataset, if it is that of the predictions.
        rows: The comparison. Its rows name their files of predictions, and nothing else is shown.
        origin: What the results do not say of their origin.

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
            name = settings.data.dataset  # from untrusted files
            if name != own.data.dataset and name.startswith(PREFIX):
                raise DataError(f"{name} is downloaded only if you name it: --dataset {name}")
            if name not in (own.data.dataset, WORLD) and is_missing_world(settings.data):
                # Its numbers decide how much is written.
                raise DataError(f"{name} is created only if you name it: --dataset {name}")
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
    landscapes, pointers, missing["landscape"] = read_landscapes(runs, settings, sorted(train, key=id_order) or None)
    task = task_of(rows).with_options(predicted[0].data.show_options)
    usages = [(row, usage(row, queries, train, task)) for row in chosen if row.shots]
    return Content(
        own=own,
        predicted=predicted,
        rows=rows,
        labels=labels,
        chosen=chosen,
        usages=usages,
        runs=runs,
        landscapes=landscapes,
        pointers=pointers,
        queries=queries,
        train=train,
        missing=missing,
        origin=origin or Origin(),
    )


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

    A dataset in another folder is read from there. Datasets that are created if they are missing (worlds, those of
    the hub) are read only from the user's own folder, and copies of images that a dataset contains are written only to
    that folder, or to one that holds the dataset. Image folders named by the files are ignored: otherwise a page that
    is passed on could show the user's private pictures.
    """
    name = recorded.data.dataset
    created = is_world(name) or name.startswith(PREFIX)
    here = not splits_of(name) and Path(name).exists()  # the data folder is not needed to find it
    kept = ["results_dir", "max_image_pixels", *(["data_dir"] if created or here else [])]
    images = recorded.data.image_dir
    if created or (images is not None and not images.resolve().is_relative_to(Path.cwd())):
        kept.append("image_dir")
    data = recorded.data.model_copy(update={name: getattr(settings.data, name) for name in kept})
    return recorded.model_copy(update={"data": data})
