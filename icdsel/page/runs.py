"""The runs of the learned rows: their metrics, and the RL data that they were trained on.

What is missing (a run was moved, RL data were removed) is reported in a sentence and is not an error. Files that
metadata name are read only if their fingerprint matches: a folder from somebody else cannot make the page show files
that its author did not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from icdsel.artefacts.rl_data import merge, metric_of, read_rl_data, rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE, METRICS_FILE, read_metrics, runs_dir, trained_on
from icdsel.errors import RlDataError, RunError
from icdsel.page.charts.landscape import Landscape, landscape
from icdsel.page.choices import Chosen
from icdsel.records import EpochMetrics, QuestionId
from icdsel.selection import POLICY
from icdsel.settings.loading import Settings
from icdsel.settings.tables import RewardSettings
from icdsel.store.fingerprints import fingerprint_file, has_fingerprint
from icdsel.store.metadata import read_metadata


@dataclass(frozen=True)
class ShownRun:
    """A run.

    Attributes:
        lead: The name of the row that represents this run and its other seeds.
        label: The short name of its own row.
        folder: Its folder.
        epochs: Its metrics.
        rl_data: The files that it was trained on, with their fingerprints then.
        reward: How rewards were computed.
    """

    lead: str
    label: str
    folder: Path
    epochs: tuple[EpochMetrics, ...]
    rl_data: tuple[tuple[Path, str], ...]
    reward: RewardSettings


def read_runs(chosen: Sequence[Chosen], settings: Settings) -> tuple[list[ShownRun], list[str]]:
    """The runs of the learned rows, each once, and a sentence about everything that could not be read."""
    found: dict[Path, ShownRun] = {}
    missing: dict[str, None] = {}
    for row in chosen:
        if not row.learned:
            continue
        folder = _folder(row, settings)
        if folder is None:
            missing[f"The run of {row.label} was not found."] = None
        elif folder not in found:
            try:
                found[folder] = _read_run(row, folder)
            except RunError as error:
                missing[f"The run of {row.label} cannot be shown: {error}"] = None
    for run in found.values():
        if not run.epochs:
            missing[f"{run.folder} has no {METRICS_FILE}, so there are no training curves."] = None
    return list(found.values()), list(missing)


def _folder(row: Chosen, settings: Settings) -> Path | None:
    """The folder of the row's checkpoint, else the run with the longest name that the file's name begins with."""
    checkpoint, file = row.source.checkpoint, row.source.path
    known = checkpoint and has_fingerprint(checkpoint, row.source.identity.get("checkpoint"))
    places = [checkpoint.parent] if checkpoint and known else []
    named = [path.parent for path in runs_dir(settings).glob(f"*/{METADATA_FILE}")]
    fitting = [folder for folder in named if file.name.startswith(POLICY.row_of(folder.name, ""))]
    places += sorted(fitting, key=lambda folder: -len(folder.name))
    return next((folder for folder in places if (folder / METADATA_FILE).is_file()), None)


def _read_run(row: Chosen, folder: Path) -> ShownRun:
    """A run; without a file of metrics it has no epochs.

    Raises:
        RunError: A file is damaged.
    """
    metadata = read_metadata(folder / METADATA_FILE)
    path = folder / METRICS_FILE
    epochs = read_metrics(path) if path.is_file() else []
    try:
        reward = RewardSettings(**metadata.settings.get("reward", {}))
    except (ValidationError, TypeError):
        raise RunError(f"{folder / METADATA_FILE} has reward settings of another version") from None
    return ShownRun(row.lead, row.label, folder, tuple(epochs), tuple(trained_on(metadata)), reward)


def read_landscapes(
    runs: Sequence[ShownRun], settings: Settings, question_ids: Sequence[QuestionId] | None
) -> tuple[list[Landscape], dict[Path, list[int]], list[str]]:
    """The landscape of each RL data that a run was trained on, else of those of the settings.

    Also how many demonstrations each scored pointer of their files has, and what is missing.

    Args:
        runs: The runs.
        settings: Where RL data are if no run names them.
        question_ids: Those of the training split in order; None without the dataset.
    """
    wanted = {(run.rl_data, _raw(run.reward)): None for run in runs if run.rl_data}
    if not wanted:
        path = rl_data_path(settings)
        default = ((path, fingerprint_file(path) if path.is_file() else ""),)
        wanted = {(default, _raw(settings.reward)): None}
    found, missing = [], []
    pointers: dict[Path, list[int]] = {}
    modes = {reward.mode for _, reward in wanted}
    for files, reward in wanted:
        source = " + ".join(path.name for path, _ in files)
        try:
            for path, fingerprint in files:
                if path.is_file() and not has_fingerprint(path, fingerprint):
                    raise RlDataError(f"{path} has changed since the training")
            read = [
                read_rl_data(path, question_ids, skip_fallback=reward.skip_fallback, accept_unsound=True)
                for path, _ in files
            ]
            groups = merge([data.groups for data in read])
            for (path, _), data in zip(files, read, strict=True):
                pointers[path] = [len(scored.pointer) for group in data.groups for scored in group.candidates]
        except RlDataError as error:
            missing.append(f"The RL data {source} cannot be shown: {error}")
            continue
        metrics = {metric_of(path) for path, _ in files}
        rejected: dict[str, int] = {}
        for data in read:
            for reason, count in data.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
        if len(modes) > 1:
            source += f" ({reward.mode})"
        found.append(landscape(source, groups, reward, rejected, metrics.pop() if len(metrics) == 1 else ""))
    return found, pointers, missing


def _raw(reward: RewardSettings) -> RewardSettings:
    """Only the settings that a single pointer's reward depends on."""
    names = ("mode", "hard_weight", "soft_weight", "rel_weight", "skip_fallback")
    return RewardSettings(**{name: getattr(reward, name) for name in names})
