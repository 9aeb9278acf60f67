"""The runs behind the learned rows: their metrics, and the RL data that they were trained on.

What is gone (a run was moved, RL data were removed) is told in a sentence and stops nothing. Files that a side file
names are read where they are what it was written of: a folder from somebody else shows nothing that its maker did
not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from icdsel.artefacts.rl_data import read_rl_data, rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE, METRICS_FILE, read_metrics, runs_dir, trained_on
from icdsel.errors import RlDataError, RunError
from icdsel.page.choices import Chosen
from icdsel.page.landscape import Landscape, landscape
from icdsel.policy.groups import merge
from icdsel.selection import POLICY
from icdsel.settings.loading import Settings
from icdsel.settings.tables import RewardSettings
from icdsel.store.fingerprints import fingerprint_file, has_fingerprint
from icdsel.store.metadata import read_metadata


@dataclass(frozen=True)
class ShownRun:
    """A run: its epochs as `metrics.jsonl` has them, and what it was trained on.

    `lead` is the name of the row that stands for this run and its other seeds; files of RL data come with their
    fingerprints then.
    """

    lead: str
    label: str
    folder: Path
    epochs: tuple[Mapping[str, Any], ...]
    rl_data: tuple[tuple[Path, str], ...]
    reward: RewardSettings


def read_runs(chosen: Sequence[Chosen], settings: Settings) -> tuple[list[ShownRun], list[str]]:
    """The runs of the learned rows, each once, and a sentence for everything that could not be read."""
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
            missing[f"{run.folder} holds no {METRICS_FILE}, so it has no training curves."] = None
    return list(found.values()), list(missing)


def _folder(row: Chosen, settings: Settings) -> Path | None:
    """Beside the row's checkpoint, else the longest name in `model_cpk` that its file's name begins with."""
    checkpoint, file = row.source.checkpoint, row.source.path
    known = checkpoint and has_fingerprint(checkpoint, row.source.identity.get("checkpoint"))
    places = [checkpoint.parent] if checkpoint and known else []
    named = [path.parent for path in runs_dir(settings).glob(f"*/{METADATA_FILE}")]
    fitting = [folder for folder in named if file.name.startswith(POLICY.row_of(folder.name, ""))]
    places += sorted(fitting, key=lambda folder: -len(folder.name))
    return next((folder for folder in places if (folder / METADATA_FILE).is_file()), None)


def _read_run(row: Chosen, folder: Path) -> ShownRun:
    """A run's folder; without a metrics file it has no epochs.

    Raises:
        RunError: a file is damaged.
    """
    side = read_metadata(folder / METADATA_FILE)
    path = folder / METRICS_FILE
    epochs = read_metrics(path) if path.is_file() else []
    try:
        reward = RewardSettings(**side.settings.get("reward", {}))
    except (ValidationError, TypeError):
        raise RunError(f"{folder / METADATA_FILE} holds reward settings of another version") from None
    return ShownRun(row.lead, row.label, folder, tuple(epochs), tuple(trained_on(side)), reward)


def read_landscapes(
    runs: Sequence[ShownRun], settings: Settings, question_ids: Sequence[int] | None
) -> tuple[list[Landscape], list[str]]:
    """The landscape of each RL data that a run was trained on, else of those of the settings; and what is missing.

    Args:
        runs: The runs.
        settings: Say where RL data lie if no run names them.
        question_ids: Those of the training split in order, None where the dataset is not there.
    """
    wanted = {(run.rl_data, _raw(run.reward)): None for run in runs if run.rl_data}
    if not wanted:
        path = rl_data_path(settings)
        own = ((path, fingerprint_file(path) if path.is_file() else ""),)
        wanted = {(own, _raw(settings.reward)): None}
    found, missing = [], []
    modes = {reward.mode for _, reward in wanted}
    for files, reward in wanted:
        source = " + ".join(path.name for path, _ in files)
        try:
            for path, fingerprint in files:
                if path.is_file() and not has_fingerprint(path, fingerprint):
                    raise RlDataError(f"{path} is not what it was trained on")
            read = [
                read_rl_data(path, question_ids, skip_fallback=reward.skip_fallback, accept_unsound=True)
                for path, _ in files
            ]
            groups = merge([data.groups for data in read])
        except RlDataError as error:
            missing.append(f"The RL data {source} cannot be shown: {error}")
            continue
        rejected: dict[str, int] = {}
        for data in read:
            for reason, count in data.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
        if len(modes) > 1:
            source += f" ({reward.mode})"
        found.append(landscape(source, groups, reward, rejected))
    return found, missing


def _raw(reward: RewardSettings) -> RewardSettings:
    """Only what a pointer's own reward depends on."""
    own = ("mode", "hard_weight", "soft_weight", "rel_weight", "skip_fallback")
    return RewardSettings(**{name: getattr(reward, name) for name in own})
