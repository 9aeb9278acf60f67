"""Lists the runs of a results folder: their settings, their progress, their scores. Changes nothing."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from icdsel.artefacts.predictions import read_predictions
from icdsel.artefacts.run_folder import (
    METADATA_FILE,
    METRICS_FILE,
    Run,
    find_checkpoint,
    is_finished,
    read_metrics,
    run_name,
)
from icdsel.console import warn
from icdsel.errors import CheckpointError, RunError, SettingsError
from icdsel.records import DEFAULT_TASK, Shots, shots_order
from icdsel.records.values import task_entry
from icdsel.selection import POLICY
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.names import changed_settings
from icdsel.settings.tables import TABLES, DataSettings
from icdsel.store.backup import BACKUP
from icdsel.store.files import write_json
from icdsel.store.fingerprints import has_fingerprint
from icdsel.store.metadata import Metadata, read_metadata, read_metadata_files
from icdsel.tasks.base import TASKS

# Settings that locate files or are shown separately.
_PLACES = ("preset", "dataset", "data_dir", "image_dir", "results_dir", "on_image_error")


@dataclass(frozen=True)
class Answered:
    """The score of a run's policy over one set of queries.

    Attributes:
        predictions: The file.
        checkpoint: The policy's checkpoint.
        set: The set of queries.
        n: How many queries.
        accuracy: The score by number of shots, in the unit of the task (of the VQA accuracy: points).
    """

    predictions: str
    checkpoint: str
    set: str
    n: int
    accuracy: dict[Shots, float]


@dataclass(frozen=True)
class RunSummary:
    """A run; what is unknown is None or empty.

    Attributes:
        name: Its name.
        dataset: Its dataset.
        folder: Its folder.
        state: Whether its training is finished, and its files are valid.
        problem: Why it is damaged.
        sampler: The sampler of its pools.
        model: The VLM.
        settings: What differs from the default, as in names of runs.
        checkpoint: The recommended checkpoint.
        phase: Its phase.
        epoch: Its epoch within the phase, from 1.
        expected_reward: Its metric of that name.
        oracle_share: Its metric of that name.
        answered: The scores of its checkpoints.
        written: When its training began, as ISO 8601.
        bytes: Its size on disk.
        task: The task.
        number: Its rank among the finished runs of its dataset; `--run` takes it in place of the name.
        named: Whether it has a name of its own, and not the one that is made from its settings.
    """

    name: str
    dataset: str
    folder: str
    state: Literal["finished", "unfinished", "damaged"]
    problem: str = ""
    sampler: str | None = None
    model: str | None = None
    settings: tuple[str, ...] = ()
    checkpoint: str | None = None
    phase: str | None = None
    epoch: int | None = None
    expected_reward: float | None = None
    oracle_share: float | None = None
    answered: tuple[Answered, ...] = field(default=())
    written: str | None = None
    bytes: int = 0
    task: str = DEFAULT_TASK
    number: int | None = None
    named: bool = True

    def to_json(self) -> dict[str, Any]:
        """The run as plain values; the task only if it is not VQA."""
        values = asdict(self)
        task = values.pop("task")
        return values | task_entry(task)


def list_runs(results_dir: Path, dataset: str | None = None) -> list[RunSummary]:
    """All runs of a results folder, of all datasets unless one is named, the newest last.

    A damaged run is listed with the reason. Backups (`NAME.old-1`) are left out.
    """
    name = None if dataset is None else _folder_name(dataset)
    folders = [
        folder
        for folder in results_dir.glob("*/model_cpk/*")
        if folder.is_dir() and BACKUP not in folder.name and name in (None, folder.parent.parent.name)
    ]
    answered = {
        place: list(read_metadata_files(sorted(place.glob(f"infer/*/{POLICY.name}-*.meta.json"))))
        for place in {folder.parent.parent for folder in folders}
    }
    runs = [(_summary(folder, answered[folder.parent.parent]), folder.stat().st_mtime) for folder in sorted(folders)]
    return [run for run, _ in sorted(runs, key=lambda pair: _seconds(pair[0]) or pair[1])]


def _folder_name(dataset: str) -> str:
    """The folder of a dataset under the results."""
    return settings_from({"data": {"dataset": dataset}}).dataset_dir.name


def _seconds(run: RunSummary) -> float | None:
    return None if run.written is None else datetime.fromisoformat(run.written).timestamp()


def age(run: RunSummary, now: datetime) -> str:
    """How long ago a run's training began, in one unit, such as `3 h ago`; empty if it is unknown."""
    if (began := _seconds(run)) is None:
        return ""
    seconds = now.timestamp() - began
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def write_runs(runs: Iterable[RunSummary], path: Path) -> None:
    """Writes the runs as a JSON list."""
    write_json(path, [run.to_json() for run in runs], indent=1)


def _summary(folder: Path, rows: Iterable[tuple[Path, Metadata]]) -> RunSummary:
    found: dict[str, Any] = {"name": folder.name, "dataset": folder.parent.parent.name, "folder": str(folder)}
    found["bytes"] = _size(folder)
    state, problem = "finished", ""
    try:
        metadata = read_metadata(folder / METADATA_FILE)
        state = "finished" if metadata.finished else "unfinished"
        found |= _settings_of(metadata, folder.name)
        found |= _progress_of(folder)
        found["answered"] = tuple(_answered(folder, rows))
        if state == "finished" and not is_finished(Run(folder)):
            raise RunError("its last checkpoint is missing: repeat its `icdsel train`")
    except (RunError, CheckpointError) as error:
        # A training that was interrupted early has no checkpoint yet.
        if not (state == "unfinished" and isinstance(error, CheckpointError)):
            state, problem = "damaged", str(error)
    return RunSummary(**found, state=state, problem=problem)  # type: ignore[arg-type]


def _size(folder: Path) -> int:
    """Bytes of the files in a folder and in the folders in it; links count as themselves."""
    size = 0
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        with suppress(OSError):  # a file that is being written may be renamed meanwhile, another be unreadable
            size += file.lstat().st_size if not file.is_dir() else 0
    return size


def _settings_of(metadata: Metadata, name: str) -> dict[str, Any]:
    """Settings, number and time of a run's metadata, and whether this name is its own.

    Raises:
        RunError: They are missing or damaged.
    """
    try:
        started = datetime.fromisoformat(metadata.environment["written"])
        started.timestamp()
        settings = _recorded_settings(metadata)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, OSError, SettingsError) as error:
        raise RunError(f"its {METADATA_FILE} is damaged: {type(error).__name__} {str(error)[:200]}") from None
    return {
        "sampler": settings.data.sampler,
        "model": settings.vlm.model,
        "settings": _differing(settings),
        "number": metadata.finished,
        "named": name != run_name(settings),
        "written": started.isoformat(),
        "task": settings.data.task,
    }


def _recorded_settings(metadata: Metadata) -> Settings:
    """The settings that metadata record; names that this version does not know are skipped."""
    recorded = metadata.settings
    return settings_from(
        {
            name: {key: value for key, value in recorded[name].items() if key in table.model_fields}
            for name, table in TABLES.items()
        }
    )


def _differing(settings: Settings) -> tuple[str, ...]:
    """What differs from the default settings for this dataset."""
    defaults = settings.defaults()
    bare = settings_from({"data": {"dataset": settings.data.dataset, "preset": settings.data.preset}})
    parts: list[str] = [] if settings.data.preset == DataSettings().preset else [settings.data.preset]
    parts += [] if settings.train.recipe == bare.train.recipe else [settings.train.recipe]
    parts += [] if settings.vlm.model == bare.vlm.model else [settings.model_name]
    parts += changed_settings(settings.data, defaults.data, _PLACES)
    parts += changed_settings(settings.vlm, defaults.vlm, ("model", "dtype"))
    parts += changed_settings(settings.proposals, defaults.proposals)
    parts += changed_settings(settings.reward, defaults.reward)
    return tuple(parts + changed_settings(settings.train, defaults.train, ["recipe"]))


def _progress_of(folder: Path) -> dict[str, Any]:
    """The recommended checkpoint, and the metrics of its epoch.

    Raises:
        CheckpointError: There is none.
        RunError: The metrics are damaged.
    """
    checkpoint = find_checkpoint(folder)
    phase, number = checkpoint.stem.split("_epoch")
    progress: dict[str, Any] = {"checkpoint": checkpoint.name, "phase": phase, "epoch": int(number)}
    metrics = {(line.phase, line.epoch): line.values for line in read_metrics(folder / METRICS_FILE)}
    measured = metrics.get((phase, int(number)), {})
    return progress | {name: measured.get(name) for name in ("expected_reward", "oracle_share")}


def _answered(folder: Path, rows: Iterable[tuple[Path, Metadata]]) -> Iterable[Answered]:
    """The predictions of this run's checkpoints as they are now: a policy that was trained again is another one.

    Predictions that are missing or damaged are skipped with a warning.
    """
    checkpoints = {POLICY.row_of(folder.name, path.stem): path for path in folder.glob("*_epoch*.pt")}
    for metadata_path, metadata in rows:
        checkpoint = checkpoints.get(str(metadata.name))
        if checkpoint is None or not has_fingerprint(checkpoint, metadata.inputs.get("checkpoint")):
            continue
        predictions = metadata_path.with_name(metadata_path.name.removesuffix(".meta.json") + ".jsonl")
        try:
            records = read_predictions(predictions)
        except (OSError, RunError) as error:
            warn(str(error))
            continue
        scores: dict[Shots, list[float]] = {}
        for record in records:
            if record.score is not None:
                scores.setdefault(record.shots, []).append(record.score)
        task = TASKS.named(records[0].task if records else DEFAULT_TASK)
        score = {shots: float(task.aggregate(np.array(scores[shots]))) for shots in sorted(scores, key=shots_order)}
        yield Answered(
            predictions=str(predictions),
            checkpoint=checkpoint.name,
            set=str(metadata.set),
            n=len({record.question_id for record in records}),
            accuracy={shots: task.in_unit(value) for shots, value in score.items()},
        )
