"""Files of predictions: where they are, what their metadata say of them, and the answers in them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.artefacts.predictions import SUBMISSIONS, predictions_dir, read_predictions
from icdsel.comparison.scores import Scores
from icdsel.console import note, warn
from icdsel.errors import RunError, SettingsError
from icdsel.records import DEFAULT_TASK, QuestionId, Shots
from icdsel.selection import selector_named
from icdsel.settings.loading import Settings
from icdsel.settings.names import flag
from icdsel.settings.tables import TABLES
from icdsel.store.metadata import ON_SERVERS, read_metadata
from icdsel.tasks.base import TASKS
from icdsel.tasks.corpus import Statistic

# Rows may always differ in how their ICDs were chosen: that is what a comparison is about.
HOW_POOLED = {f"data.{name}" for name in ("sampler", "pool_size", "pool_rules")}
HOW_CHOSEN = {"selector", "checkpoint", "rl_data", "sampler_encoder", "encoder", "train_embeddings", "data.seed"}
HOW_CHOSEN |= {*HOW_POOLED, "data.exclude_same_image", "data.embed"}
# Fingerprints, and the settings that describe the same things as text.
AS_TEXT = {"model": ("vlm", "model"), "dataset": ("data", "dataset"), "dtype": ("vlm", "dtype")}
AS_TEXT |= {name: ("data", name) for name in ("encoder", "sampler_encoder", "train_embeddings")}
# Settings that do not decide whether rows belong to a comparison: places of files, what folders are named after,
# what other settings imply, and the size of the pools.
_FREE = {*("data_dir", "image_dir", "results_dir", "on_image_error", "max_image_pixels"), "preset", "dataset"}
_FREE |= {"model", "dtype", "trust_remote_code", "engine", "sampler", "pool_size"}
_LISTED = 6  # folders in a message
_TOLD = {"results_dir", "dataset", "sampler", "model", "url"}  # named in a message with their values, or never


@dataclass(frozen=True)
class Source:
    """A file of predictions.

    Attributes:
        path: The file.
        name: The name of its row.
        selector: The selector.
        subset: The set of queries.
        identity: Everything that decided its content.
        settings: The resolved settings of the `infer` that wrote it, by table; empty if unknown.
        checkpoint: The policy's checkpoint, if known.
        seed: The seed of the selector (of a policy, of its training); the general one if its name has none.
    """

    path: Path
    name: str
    selector: str
    subset: str
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    checkpoint: Path | None = None
    seed: str = ""

    @property
    def split(self) -> str:
        """The split of the queries."""
        return str(self.identity.get("split", "validation"))

    @property
    def pool(self) -> str | None:
        """What its selector chose from: `64`, `all`, or None if it chose nothing or the size was not recorded."""
        size = self.identity.get("data.pool_size", self.settings.get("data", {}).get("pool_size"))
        return selector_named(self.selector).pool(size) if size is not None else None

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.identity.get("data.task", DEFAULT_TASK))

    @property
    def on_servers(self) -> bool:
        """Whether servers answered."""
        return self.identity.get("dtype") == ON_SERVERS

    def value(self, key: str) -> str:
        """The identity's value of `key` as text; a fingerprint with the setting that it stands for."""
        value = self.identity.get(key)
        table, name = AS_TEXT.get(key, ("", ""))
        setting = self.settings.get(table, {}).get(name)
        if setting is None or (key == "dtype" and value):
            return repr(value)
        return f"{Path(str(setting)).name} ({str(value)[:8]})"


class NothingScoredError(RunError):
    """Predictions of queries that all have no reference answers."""


@dataclass(frozen=True)
class Answered:
    """One file's answers at one number of shots: all queries, and the scores of those whose call did not fail."""

    source: Source
    scores: Scores
    asked: frozenset[QuestionId]

    @property
    def label(self) -> str:
        """The row and, in brackets, its set of queries."""
        return f"{self.source.name} [{self.source.subset}]"


def read_source(path: Path, name: str | None = None) -> Source:
    """A file of predictions, by its metadata; `name` replaces its own name.

    Raises:
        RunError: The metadata file is missing or damaged.
    """
    metadata = read_metadata(path.with_suffix(".meta.json"))
    identity, selector = metadata.inputs, str(metadata.inputs.get("selector"))
    return Source(
        path=path,
        name=name or metadata.name or path.stem,
        selector=selector,
        subset=metadata.set or "unnamed",
        identity=identity,
        settings=metadata.settings,
        checkpoint=Path(metadata.checkpoint) if metadata.checkpoint else None,
        # The default seed of a training is not in the name; it is the general seed.
        seed=selector_named(selector).seed_of(metadata.name or path.stem)
        or str(metadata.settings.get("data", {}).get("seed", "")),
    )


def read_answers(path: Path, name: str | None = None) -> list[Answered]:
    """A file's rows, by number of shots. Queries without reference answers are left out.

    Raises:
        RunError: The file or its metadata is damaged, its task is unknown, or its metadata name another one.
        NothingScoredError: No query has reference answers.
    """
    source = read_source(path, name)
    try:
        task = TASKS.named(source.task)
    except SettingsError as error:
        raise RunError(f"{path}: {error}") from None
    asked: dict[Shots, set[QuestionId]] = {}
    answered: dict[Shots, dict[QuestionId, float]] = {}
    others: dict[Shots, dict[str, dict[QuestionId, float]]] = {}
    shown: dict[Shots, dict[QuestionId, float]] = {}
    prompt_tokens: dict[Shots, dict[QuestionId, float]] = {}
    statistics: dict[Shots, dict[str, dict[QuestionId, Statistic]]] = {}
    images: dict[QuestionId, QuestionId] = {}
    for record in read_predictions(path):
        if record.task != task.name:
            raise RunError(f"{path} holds predictions of the task {record.task}, its metadata are of {task.name}")
        if record.unscored:
            continue
        asked.setdefault(record.shots, set()).add(record.question_id)
        if record.image is not None:
            images[record.question_id] = record.image
        if record.score is not None:
            answered.setdefault(record.shots, {})[record.question_id] = float(record.score)
            shown.setdefault(record.shots, {})[record.question_id] = record.shown
            if record.prompt_tokens is not None:
                prompt_tokens.setdefault(record.shots, {})[record.question_id] = record.prompt_tokens
            for name, statistic in record.statistics.items():
                if name in task.corpus_metrics and not task.corpus_metrics[name].fits(statistic):
                    raise RunError(f"{path}: the statistics of question {record.question_id} for {name} are invalid")
                statistics.setdefault(record.shots, {}).setdefault(name, {})[record.question_id] = statistic
            for metric in record.other_scores.keys() & task.metrics.keys():
                by_query = others.setdefault(record.shots, {}).setdefault(metric, {})
                by_query[record.question_id] = float(record.other_scores[metric])
    if not asked:
        raise NothingScoredError(
            f"{path} holds only answers to queries without reference answers, so there is nothing to compare: they are "
            "in its field `prediction`"
        )
    rows = [
        Scores(
            name=source.name,
            selector=source.selector,
            shots=shots,
            by_query=answered.get(shots, {}),
            metric=str(source.identity.get("data.metric", task.default_metric)),
            by_other_metric=others.get(shots, {}),
            pool=source.pool,
            seed=source.seed,
            images=images,
            shown=shown.get(shots, {}),
            prompt_tokens=prompt_tokens.get(shots, {}),
            statistics=statistics.get(shots, {}),
            path=path,
            task=task.name,
        )
        for shots in asked
    ]
    return [Answered(source, row, frozenset(asked[row.shots])) for row in rows]


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files of predictions among `paths` and in the folders among them, each once.

    Raises:
        RunError: A path does not exist, or a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        elif inside := sorted(path.glob("*.jsonl")) or sorted(path.glob("*/*.jsonl")):
            found += inside
        else:
            raise RunError(
                f"{path} {'' if path.exists() else 'does not exist and '}holds no predictions. {_existing(path.parent)}"
            )
    return list({os.path.realpath(path): path for path in found}.values())


def own_files(settings: Settings, any_split: bool = False) -> list[Path]:
    """The files of predictions of this dataset, sampler and model, over pools of any size.

    They were answered with the prompts of the settings. The size of the pools counts only if it was given. Where both
    servers and a model in a process of icdsel have answered, the settings decide which of them count.

    Args:
        settings: The settings of the comparison.
        any_split: Whether to take files over any split; otherwise those over the split of the settings, and those over
            another one only if there are none.

    Raises:
        RunError: There are none; the message lists the folders that exist.
    """
    exact, prefix = predictions_dir(settings), settings.pair_name
    folder = exact.parent
    candidates = [one for one in folder.glob(f"{prefix}*") if one.name == prefix or one.name[len(prefix)] == "_"]
    sources = [read_source(path) for one in sorted(candidates) for path in sorted(one.glob("*.jsonl"))]
    fitting = [source for source in sources if source.path.parent == exact or _fits(source, settings)]
    if not fitting:
        what = f"dataset {settings.data.dataset}, sampler {settings.data.sampler}, model {settings.vlm.model}"
        given = sorted(
            flag(name, TABLES[table].model_fields[name])
            for table in ("data", "vlm")
            for name in getattr(settings, table).model_fields_set - _TOLD
        )
        with_flags = f", with {' and '.join(given)} as given" if given else ""
        raise RunError(f"no predictions for {what}{with_flags}. {_existing(folder)}")
    fitting = _of_place(_of_dataset(fitting, settings), bool(settings.vlm.url))
    over_split = [source for source in fitting if source.split == settings.infer.split]
    return [source.path for source in (fitting if any_split else over_split or fitting)]


def _fits(source: Source, settings: Settings) -> bool:
    """Whether a file of another folder has the model and settings of a comparison, as far as they are recorded."""
    model = source.settings.get("vlm", {}).get("model")
    if model is not None and Path(str(model)).name != Path(settings.vlm.model).name:
        return False
    for table in ("data", "vlm"):
        own, recorded = getattr(settings, table), source.settings.get(table, {})
        ignored = {*_FREE, *TABLES[table].MACHINE} - (own.model_fields_set & {"pool_size"})
        values = own.model_dump(mode="json", exclude=ignored)
        if any(recorded.get(name, value) != value for name, value in values.items()):
            return False
    return True


def _of_dataset(sources: list[Source], settings: Settings) -> list[Source]:
    """The sources of the dataset itself where another one of the same name, such as `b/vqa.csv`, shares its folder.

    They were answered on the file that the settings name, or on another place of the same examples. If there are none,
    all are returned, with a warning if they name another file that exists.
    """
    recorded = {source.path: _dataset_of(source) for source in sources}
    own = [source for source in sources if _is_same(recorded[source.path], settings.data.dataset)]
    if own:
        contents = [source.identity.get("dataset") for source in own]
        return [source for source in sources if source in own or source.identity.get("dataset") in contents]
    others = sorted({name for name in recorded.values() if name is not None and Path(name).exists()})
    if others:
        warn(
            f"the predictions in {settings.dataset_dir} were answered on {', '.join(others)}, none on "
            f"{settings.data.dataset}. Datasets of one name share a folder; --results-dir DIR keeps them apart"
        )
    return sources


def _of_place(sources: list[Source], on_servers: bool) -> list[Source]:
    """The sources that servers have answered, or the others; all if there are none of these. Says what is left out."""
    own = [source for source in sources if source.on_servers == on_servers]
    if own and len(own) < len(sources):
        others = "in this process (no --vlm-url)" if on_servers else "on servers (--vlm-url)"
        note(f"left out: rows that were answered {others}")
    return own or sources


def _dataset_of(source: Source) -> str | None:
    dataset = source.settings.get("data", {}).get("dataset")
    return None if dataset is None else str(dataset)  # metadata of others may hold anything


def _is_same(recorded: str | None, dataset: str) -> bool:
    """Whether a recorded dataset is the given one; one that was not recorded counts as the same."""
    return recorded is None or recorded == dataset or Path(recorded).resolve() == Path(dataset).resolve()


def _existing(folder: Path) -> str:
    """What to do where predictions are missing: which folders beside them hold some, and how to create them."""
    holding = sorted({path.parent for path in (*folder.glob("*.jsonl"), *folder.glob("*/*.jsonl"))})
    holding = [place for place in holding if place.name != SUBMISSIONS]
    create = "Create them with `icdsel infer`"
    if not holding:
        return f"{create}, or name files or folders of predictions: `icdsel compare results/world/infer/*`."
    listed = "".join(f"\n  {path}" for path in holding[:_LISTED])
    more = f"\n  and {len(holding) - _LISTED} more" if len(holding) > _LISTED else ""
    return (
        f"There are predictions in:{listed}{more}\nName one of them, as in `icdsel compare {holding[0]}`, or give the "
        f"flags that they were created with. {create}."
    )
