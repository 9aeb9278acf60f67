"""The folder of a training run: its name, its files and checkpoints, and its metrics."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.artefacts.bundle.manifest import MANIFEST
from icdsel.artefacts.hub import is_on_hub, local_bundle
from icdsel.artefacts.pool_names import has_these_pools, pool_parts
from icdsel.errors import CheckpointError, RunError
from icdsel.records import EpochMetrics
from icdsel.records.values import is_int64
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.names import changed_settings, sampler_file_name
from icdsel.settings.tables import TABLES, TrainSettings
from icdsel.store.backup import BACKUP
from icdsel.store.files import digest_of
from icdsel.store.json_reading import parsed
from icdsel.store.metadata import Metadata, read_metadata, read_metadata_files
from icdsel.store.reading import read_bytes_lines

METADATA_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
JOURNAL = "online.jsonl"
LOG_FILE = "log.txt"
LONGEST_NAME = 120  # characters of a run's name
_LONGEST_SHOWN = 20  # characters of a run's name in tables
EPOCH_FILE = re.compile(r"(warm|rce|grpo)_epoch([1-9][0-9]{0,8})\.pt")
"""Names of a run's checkpoints: phase and epoch."""


@dataclass(frozen=True)
class Run:
    """A folder with checkpoints, or a bundle, which has one.

    Attributes:
        folder: The folder.
        failed: VLM calls of this training that failed: for RL data, and online.
    """

    folder: Path
    failed: int = 0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """The recommended checkpoint; see `find_checkpoint`."""
        return find_checkpoint(self.folder)

    @property
    def is_bundle(self) -> bool:
        """Whether it is a bundle: complete, from whatever machine, and not to be written into."""
        return is_bundle(self.folder)


def runs_dir(settings: Settings) -> Path:
    """`results/<dataset>/model_cpk`."""
    return settings.dataset_dir / "model_cpk"


def run_name(settings: Settings) -> str:
    """`v3_<Sampler>_<Model>`, followed by what differs from the default pools and training settings.

    Runs of earlier versions, which were not named after their pools, are still found.
    """
    parts: list[str] = [] if settings.train.recipe == TrainSettings().recipe else [settings.train.recipe]
    defaults = settings.defaults()
    parts += changed_settings(settings.reward, defaults.reward)
    parts += changed_settings(settings.train, defaults.train, leave_out=["recipe"])
    start = f"v3_{settings.pair_name}"
    name, earlier = (_shortened("_".join([start, *pools, *parts])) for pools in (pool_parts(settings), ()))
    runs = runs_dir(settings)
    if name != earlier and not (runs / name).exists() and has_these_pools(runs / earlier / METADATA_FILE, settings):
        return earlier
    return name


def _shortened(name: str) -> str:
    """A name of at most 120 characters, because names of other files contain it.

    The end of a longer name is replaced by a digest of all of it.
    """
    return name if len(name) <= LONGEST_NAME else f"{name[:100]}-{digest_of(name)[:16]}"


def shown_name(folder: Path) -> str:
    """A run's name in tables: its own if it is short, else its number, as in `run 3`; `find_run` takes the number too.

    The number is its rank among the finished runs of its dataset. A run without one is shown by the ends of its name.
    """
    name = folder.name
    if len(name) <= _LONGEST_SHOWN:
        return name
    with suppress(RunError):
        if number := read_metadata(folder / METADATA_FILE).finished:
            return f"run {number}"
    return f"{name[:8]}…{name[-11:]}"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, complete or not."""
    return (folder / METADATA_FILE).exists() or any(EPOCH_FILE.fullmatch(path.name) for path in folder.iterdir())


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle's."""
    return (folder / MANIFEST).exists()


def find_run(settings: Settings, name: str | None = None) -> Run:
    """The run of that name or number, else the one trained last for this dataset, sampler and model.

    A bundle is found by its folder, or by `hub:owner/name`, which is downloaded unless it is there already. A run of
    the same name is preferred to a folder.

    Raises:
        RunError: There is none; the message lists those that exist.
        BundleError: There is no such bundle on the hub, or it is damaged.
        HubError: The hub cannot be reached.
    """
    if name is not None and is_on_hub(name):
        return Run(local_bundle(name))
    folder = runs_dir(settings)
    known = {path.parent.name: path for path in folder.glob(f"*/{METADATA_FILE}") if BACKUP not in path.parent.name}
    if name is not None:
        if name in known:
            return Run(folder / name)
        if number := re.fullmatch(r"(?:run )?([1-9][0-9]{0,8})", name):
            for path, metadata in read_metadata_files(known.values()):
                if metadata.finished == int(number[1]):
                    return Run(path.parent)
        if is_bundle(bundle := Path(name).expanduser()):
            return Run(bundle.resolve())
        existing = f"there are: {', '.join(sorted(known))}" if known else "there are none"
        raise RunError(f"no run {name!r} in {folder} ({existing}). Train it with `icdsel train --run {name}`.")
    fitting = []
    for path, metadata in read_metadata_files(known.values()):
        if metadata.pair == settings.pair_name and metadata.finished:
            fitting.append((metadata.finished, path.parent))
    if not fitting:
        data, sampler = settings.data, sampler_file_name(settings.data.sampler)
        what = f"dataset {data.dataset}, sampler {sampler}, model {settings.vlm.model}"
        others = f" {folder} holds other runs: {', '.join(sorted(known))}." if known else ""
        raise RunError(f"no finished run for {what}.{others} Train one with `icdsel train`.")
    return Run(max(fitting)[1])


def find_run_anywhere(settings: Settings, name: str | None = None) -> Run:
    """What `find_run` finds; if no dataset was given, it looks among the runs of all others too.

    Raises:
        RunError: There is none, or runs of several datasets are meant; the message lists these.
    """
    try:
        return find_run(settings, name)
    except RunError as error:
        if "dataset" in settings.data.model_fields_set:
            raise
        places = settings.data.results_dir.glob(f"*/{runs_dir(settings).name}/*/{METADATA_FILE}")
        runs = read_metadata_files(sorted(path for path in places if BACKUP not in path.parent.name))
        found: dict[str, tuple[int, Path]] = {}  # by dataset, the last one
        for path, metadata in runs:
            dataset, rank = metadata.settings.get("data", {}).get("dataset"), metadata.finished or 0
            if isinstance(dataset, str) and (path.parent.name == name if name else rank):
                found[dataset] = max(found.get(dataset, (-1, path.parent)), (rank, path.parent))
        if not found:
            raise
        if len(found) > 1:
            listed = ", ".join(f"--dataset {dataset}" for dataset in found)
            raise RunError(f"{error}\nThere are such runs of other datasets: choose one with {listed}") from None
    return Run(next(iter(found.values()))[1])


def recorded_settings(settings: Settings, run: Run) -> Settings:
    """The settings of data and VLM that a run was trained with, except for those that were given now.

    So whoever names a run does not have to repeat them. What only says how this machine is used is not taken over.

    Raises:
        SettingsError: The two do not fit together.
    """
    path = run.folder / METADATA_FILE
    recorded = read_metadata(path).settings if path.is_file() else {}
    given = settings.model_dump(exclude_unset=True)
    tables = {}
    for table in ("data", "vlm"):
        silent = set(TABLES[table].MACHINE) - {"url"}  # a model on servers is known by asking them
        kept = {name: value for name, value in recorded.get(table, {}).items() if name not in silent}
        tables[table] = kept | given.get(table, {})
    return settings_from(given | tables)


def is_finished(run: Run) -> bool:
    """Whether the training of a run is finished, and its last checkpoint exists. A bundle always is."""
    if run.is_bundle:
        return True
    path = run.folder / METADATA_FILE
    if not path.exists() or not (metadata := read_metadata(path)).finished:
        return False
    last = [f"{phase}_epoch{count}.pt" for phase, count in planned_epochs(metadata).items() if count][-1:]
    return all((run.folder / name).is_file() for name in last)


def planned_epochs(metadata: Metadata) -> dict[str, int]:
    """How many epochs of each phase were to be trained, by a run's metadata; empty if that is damaged."""
    try:
        train = metadata.settings["train"]
        planned = {"warm": train["warm_epochs"] if train.get("warm_start") else 0}
        planned |= {"rce": train["rce_epochs"], "grpo": train["grpo_epochs"]}
    except (KeyError, TypeError, AttributeError):
        return {}
    return planned if all(is_int64(count) and count >= 0 for count in planned.values()) else {}


def read_metrics(path: Path) -> list[EpochMetrics]:
    """The metrics of a run.

    Raises:
        RunError: The file cannot be read, or a line is damaged.
    """
    try:
        return [
            parse_epoch(f"{path}, line {number}", parsed(line)) for number, line in enumerate(read_bytes_lines(path), 1)
        ]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from None


def parse_epoch(place: str, value: Any) -> EpochMetrics:
    """The metrics of a line.

    Raises:
        RunError: It is not a line of metrics; the message begins with `place`.
    """
    try:
        return EpochMetrics.from_json(value)
    except ValueError as error:
        raise RunError(f"{place}: {error}") from None


def trained_on(metadata: Metadata) -> Iterator[tuple[Path, str]]:
    """The files of RL data that a run was trained on, with their fingerprints then, by its metadata."""
    fingerprints = metadata.inputs.get("rl_data")
    if isinstance(fingerprints, list):
        yield from zip(map(Path, metadata.rl_data or ()), map(str, fingerprints), strict=False)


def find_checkpoint(run_dir: str | Path) -> Path:
    """The recommended checkpoint of a run: the one that its metadata name, else the last one.

    Metadata name the last one too, unless an earlier one was better on the held-out queries. Those of unfinished runs
    and of earlier versions name none. That of a bundle is its policy, which is compared with its digest.

    Raises:
        CheckpointError: As for `last_checkpoint`.
        BundleError: The bundle is damaged.
    """
    run_dir = Path(run_dir)
    if is_bundle(run_dir):
        from icdsel.artefacts.bundle.reading import policy_of  # it loads torch

        return policy_of(run_dir)
    last = last_checkpoint(run_dir)
    try:
        named = read_metadata(run_dir / METADATA_FILE).recommended
    except RunError:
        return last
    if named is None or EPOCH_FILE.fullmatch(named) is None or not (run_dir / named).exists():
        return last
    return _usable(run_dir / named)


def last_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run: the last GRPO epoch if there is one, else the last RCE epoch.

    The last epoch is the one with the highest number, whatever the times of the files.

    Raises:
        CheckpointError: The folder or a checkpoint in it is missing, or the checkpoint is not a
            file, or is a link to another folder.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"No run at {run_dir}: there is no such folder. Train one (icdsel train).")
    named = filter(None, (EPOCH_FILE.fullmatch(file.name) for file in run_dir.iterdir()))
    found = [match for match in named if match[1] != "warm"]
    if not found:
        files = ", ".join(sorted(file.name for file in run_dir.iterdir())[:5]) or "nothing"
        raise CheckpointError(
            f"No checkpoint in {run_dir}: looked for grpo_epochN.pt, then rce_epochN.pt, and found {files}. "
            "Train the run (icdsel train), or name a checkpoint file."
        )
    best = max(found, key=lambda match: (match[1] == "grpo", int(match[2])))
    return _usable(run_dir / best[0])


def _usable(path: Path) -> Path:
    if target := outside_of_run(path):
        raise CheckpointError(
            f"{path} is a link that leads out of its run, to {target}. If that is the policy that you want, "
            "name it with --checkpoint."
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file, or a link to a file that does not exist: remove it.")
    return path


def outside_of_run(path: Path) -> Path | None:
    """The target of a checkpoint that is a link out of its run; None for any other checkpoint."""
    target = Path(os.path.realpath(path))
    return None if target.is_relative_to(os.path.realpath(path.parent)) else target
