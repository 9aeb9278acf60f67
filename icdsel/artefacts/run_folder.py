"""The folder of a training run: its name, its files and checkpoints, and its metrics."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.errors import CheckpointError, RunError
from icdsel.settings.loading import Settings
from icdsel.settings.names import changed_settings, sampler_file_name
from icdsel.settings.tables import TrainSettings
from icdsel.store.backup import BACKUP
from icdsel.store.files import digest_of
from icdsel.store.json_reading import is_id, is_number, parsed
from icdsel.store.metadata import Metadata, read_metadata, read_metadata_files
from icdsel.store.reading import read_bytes_lines

METADATA_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
JOURNAL = "online.jsonl"
LOG_FILE = "log.txt"
EVENTS_FOLDER = "tensorboard"
_LONGEST_NAME = 120
EPOCH_FILE = re.compile(r"(warm|rce|grpo)_epoch([1-9][0-9]{0,8})\.pt")
"""What a run's checkpoints are called: phase and epoch."""


@dataclass(frozen=True)
class Run:
    """A folder with checkpoints.

    Attributes:
        folder: Where they lie.
        failed: VLM calls that failed, of those that this training made: for RL data, and online.
    """

    folder: Path
    failed: int = 0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """The recommended checkpoint: the last GRPO epoch, else the last RCE epoch."""
        return find_checkpoint(self.folder)


def runs_dir(settings: Settings) -> Path:
    """`results/<dataset>/model_cpk`."""
    return settings.dataset_dir / "model_cpk"


def run_name(settings: Settings) -> str:
    """`v3_<Sampler>_<Model>`, with what differs from the default training settings behind it."""
    parts: list[str] = [] if settings.train.recipe == TrainSettings().recipe else [settings.train.recipe]
    defaults = settings.defaults()
    parts += changed_settings(settings.reward, defaults.reward)
    parts += changed_settings(settings.train, defaults.train, leave_out=["recipe", *TrainSettings.MACHINE])
    return _shortened("_".join([f"v3_{settings.pair_name}", *parts]))


def _shortened(name: str) -> str:
    """A name of 120 letters at most, for longer ones stand in those of files that are made for a run.

    Where it has more, its end gives way to a digest of it all.
    """
    return name if len(name) <= _LONGEST_NAME else f"{name[:100]}-{digest_of(name)[:16]}"


def find_run(settings: Settings, name: str | None = None) -> Run:
    """The run of that name, else the one trained last for this dataset, sampler and model.

    Raises:
        RunError: there is none; the message lists what there is.
    """
    folder = runs_dir(settings)
    known = {path.parent.name: path for path in folder.glob(f"*/{METADATA_FILE}") if BACKUP not in path.parent.name}
    if name is not None:
        if name in known:
            return Run(folder / name)
        there = f"there are: {', '.join(sorted(known))}" if known else "there are none"
        raise RunError(f"no run {name!r} in {folder} ({there}). Train it with `icdsel train --run {name}`.")
    fitting = []
    for path, side in read_metadata_files(known.values()):
        if side.pair == settings.pair_name and side.finished:
            fitting.append((side.finished, path.parent))
    if not fitting:
        data, sampler = settings.data, sampler_file_name(settings.data.sampler)
        what = f"dataset {data.dataset}, sampler {sampler}, model {settings.vlm.model}"
        others = f" {folder} holds other runs: {', '.join(sorted(known))}." if known else ""
        raise RunError(f"no finished run for {what}.{others} Train one with `icdsel train`.")
    return Run(max(fitting)[1])


def is_finished(run: Run) -> bool:
    """Whether the run was trained to its end, and the checkpoint of that is there."""
    side = run.folder / METADATA_FILE
    if not side.exists() or not (content := read_metadata(side)).finished:
        return False
    last = [f"{phase}_epoch{count}.pt" for phase, count in planned_epochs(content).items() if count][-1:]
    return all((run.folder / name).is_file() for name in last)


def planned_epochs(side: Metadata) -> dict[str, int]:
    """How many epochs of each phase were asked for, by a run's side file; nothing where that is damaged."""
    try:
        train = side.settings["train"]
        planned = {"warm": train["warm_epochs"] if train.get("warm_start") else 0}
        planned |= {"rce": train["rce_epochs"], "grpo": train["grpo_epochs"]}
    except (KeyError, TypeError, AttributeError):
        return {}
    return planned if all(is_id(count) and count >= 0 for count in planned.values()) else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file.

    Raises:
        RunError: it cannot be read, or a line is damaged.
    """
    try:
        return [
            valid_epoch(f"{path}, line {number}", parsed(line)) for number, line in enumerate(read_bytes_lines(path), 1)
        ]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from None


def valid_epoch(place: str, epoch: Any) -> dict[str, Any]:
    """A line of metrics, if all in it is of its kind: a phase, a number of an epoch, and finite numbers.

    Raises:
        RunError: It is not; the message begins with `place`.
    """
    told = dict(epoch) if isinstance(epoch, dict) else {}
    if not isinstance(told.pop("phase", None), str) or not is_id(told.pop("epoch", None)):
        raise RunError(f"{place}: it names no phase and epoch: no metrics of icdsel")
    if wrong := [name for name, value in told.items() if value is not None and not is_number(value, -1e300, 1e300)]:
        raise RunError(f"{place}: {wrong[0][:40]} is no finite number")
    sound: dict[str, Any] = epoch
    return sound


def trained_on(side: Metadata) -> Iterator[tuple[Path, str]]:
    """The files of RL data that a run was trained on, with their fingerprints then, by its side file."""
    fingerprints = side.inputs.get("rl_data")
    if isinstance(fingerprints, list):
        yield from zip(map(Path, side.rl_data or ()), map(str, fingerprints), strict=False)


def find_checkpoint(run_dir: str | Path) -> Path:
    """The checkpoint of a run to use: the last GRPO epoch if there is one, else the last RCE epoch.

    Last by number: what was copied or touched later is not better for it.

    Raises:
        CheckpointError: The folder or a checkpoint in it is missing, or it is no file or a link to another folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise CheckpointError(f"No run at {run_dir}: there is no such folder. Train one (icdsel train).")
    named = filter(None, (EPOCH_FILE.fullmatch(file.name) for file in run_dir.iterdir()))
    found = [match for match in named if match[1] != "warm"]
    if not found:
        there = ", ".join(sorted(file.name for file in run_dir.iterdir())[:5]) or "nothing"
        raise CheckpointError(
            f"No checkpoint in {run_dir}: looked for grpo_epochN.pt, then rce_epochN.pt, and found {there}. "
            "Train the run (icdsel train), or name a checkpoint file."
        )
    best = max(found, key=lambda match: (match[1] == "grpo", int(match[2])))
    path = run_dir / best[0]
    if leads_to := outside_of_run(path):
        raise CheckpointError(
            f"{path} is a link that leads out of its run, to {leads_to}. If that is the policy that you want, "
            "name it with --checkpoint."
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is no file, or a link that leads nowhere: remove it.")
    return path


def outside_of_run(path: Path) -> Path | None:
    """Where a run's checkpoint is a link that leads out of its run: what it leads to."""
    leads_to = Path(os.path.realpath(path))
    return None if leads_to.is_relative_to(os.path.realpath(path.parent)) else leads_to
