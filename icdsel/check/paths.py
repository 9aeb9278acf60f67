"""Recognises what a path is, and checks it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from icdsel.artefacts.lever_plus_rl_data import is_lever_plus
from icdsel.artefacts.predictions import has_predictions
from icdsel.artefacts.rl_data import has_rl_data
from icdsel.artefacts.run_folder import is_run
from icdsel.check.dataset import check_dataset
from icdsel.check.findings import Checked, Findings, Kind
from icdsel.check.own_files import check_predictions, own_file, own_folder
from icdsel.check.rl_data import PART, Context, check_lever_plus, check_rl_data
from icdsel.data.datasets import files_of, is_dataset
from icdsel.data.implied_task import with_implied_task
from icdsel.data.named import DATASETS, is_missing_world, splits_of
from icdsel.errors import DataError
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.presets import WORLD
from icdsel.settings.worlds import is_world, world_folder, world_in

UNREADABLE = Kind("it cannot be read", "check that it is complete and that you have the rights to read it")
UNKNOWN = Kind(
    "it is not a dataset, RL data, predictions, a run's folder or a checkpoint",
    "name a dataset's file or folder (docs/quickstart.md lists the forms), RL data (.jsonl, Lever-Plus's .json), a "
    "run's folder (results/<dataset>/model_cpk/<run>), or a .pt or .ckpt",
)
NOT_READ = Kind(
    "its dataset is read from other files, so it was not checked",
    "if it should be read, move the others away, or move it into a folder of its own",
)
_START = 1 << 16  # bytes read to recognise a file
_FIELDS = {
    "vqav2": re.compile(rb'"multiple_choice_answer"\s*:'),
    "okvqa": re.compile(rb'"raw_answer"\s*:'),
}


def check(settings: Settings, paths: Sequence[Path] = (), images: bool = False) -> list[Checked]:
    """Lists what is wrong with each path; without one, with the dataset of the settings. Uses no VLM.

    Args:
        settings: Settings that the paths should match, and where datasets are.
        paths: Files and folders, recognised by their content.
        images: Open every image of a dataset, instead of only checking that it exists.

    Raises:
        DataError: A path does not exist.
    """
    for path in paths:
        if not path.exists():
            part = path.with_name(path.name + PART)
            instead = f"; there is {part}, from a command that was not finished" if part.exists() else ""
            raise DataError(f"{path} does not exist{instead}: give the path of a file or folder that does")
    context = Context(settings)
    if not paths:
        dataset = settings.data.dataset
        return _safely(dataset, lambda: [check_dataset(settings, dataset, images)])
    return [one for path in paths for one in _safely(str(path), partial(_check_path, path, context, images))]


def _safely(name: str, look: Callable[[], list[Checked]]) -> list[Checked]:
    found = Findings()
    try:
        return look()
    except OSError as error:
        found.add(UNREADABLE, error)
    except Exception as error:  # noqa: BLE001 - whatever error a file causes, the others are still checked
        found.add(UNREADABLE, f"{type(error).__name__}: {error}")
    return [Checked(name, "unknown", findings=found.listed())]


def _check_path(path: Path, context: Context, images: bool) -> list[Checked]:
    from icdsel.check.runs import check_checkpoint, check_run  # imported here because they import torch

    settings = context.settings
    if path.is_dir():
        if is_run(path):
            return [check_run(path)]
        if found := _check_folder(path, settings, images):
            return found
        if own := own_folder(path):
            return [own]
        return [_check_own(path, settings, images) if is_dataset(path) else _unknown(path)]
    if not path.is_file():
        return [_unknown(path)]
    if owner := _owner(path, settings.data.dataset):
        return [_check_file(path, owner, settings, images)]
    if own := own_file(path):
        return [own]
    with path.open("rb") as file:
        start = file.read(_START)
    if path.suffix in (".pt", ".ckpt", ".pth") or start.startswith((b"PK", b"\x80")):
        return [check_checkpoint(path)]
    if is_lever_plus(path):
        return [check_lever_plus(path, context)]
    if has_rl_data(start) or path.name.endswith(f".jsonl{PART}"):
        return [check_rl_data(path, context)]
    if has_predictions(start):
        return [check_predictions(path)]
    if is_dataset(path):
        return [_check_own(path, settings, images)]
    return [_unknown(path)]


def _check_own(path: Path, settings: Settings, images: bool) -> Checked:
    own = with_implied_task(with_values(settings, {"data": {"dataset": str(path)}}))
    return check_dataset(own, str(path), images)


_FILES = {name: {file for split in splits.values() for file in split.names} for name, splits in DATASETS.items()}


def _owner(path: Path, likely: str) -> str | None:
    """The dataset that a file belongs to, by its name; None if it belongs to none."""
    names = [name for name in DATASETS if path.name in _FILES[name]]
    if names == [WORLD]:
        return world_in(path.parent.resolve().name) or WORLD
    if len(names) < 2:
        return names[0] if names else None
    # Lever-Plus's files of two datasets have the same name: the folder decides, else the records, else the settings.
    folder = path.parent.resolve().name
    with path.open("rb") as file:
        start = file.read(_START)
    form = next((name for name, field in _FIELDS.items() if field.search(start)), likely)
    return min(names, key=lambda name: (not folder.startswith(name), name != form))


def _check_folder(folder: Path, settings: Settings, images: bool) -> list[Checked]:
    """Checks each dataset whose files are in a folder."""
    found = []
    for name in _possible(folder):
        below = [folder, folder / name, folder / f"{name}_hf", folder / name / f"{name}_hf"]
        if is_world(name):
            below = [folder, folder / world_folder(name)]
        wanted = _FILES[WORLD if is_world(name) else name]
        files = [path for place in below for file in wanted if (path := place / file).is_file()]
        mine = any(_owner(path, settings.data.dataset) == name for path in files)
        if mine and (own := _settings_for(folder, name, settings)):
            found.append(own)
    places = [str(folder)] if len(found) == 1 else [f"{folder} ({own.data.dataset})" for own in found]
    return [check_dataset(own, place, images) for own, place in zip(found, places, strict=True)]


def _possible(folder: Path) -> list[str]:
    """The datasets with names that a folder may hold; worlds by the names of their folders."""
    folders = [folder.resolve().name, *(place.name for place in sorted(folder.iterdir()) if place.is_dir())]
    worlds = dict.fromkeys(world for name in folders if (world := world_in(name)))
    return [*worlds, *(name for name in DATASETS if name != WORLD)]


def _check_file(path: Path, name: str, settings: Settings, images: bool) -> Checked:
    """Checks the dataset that a file belongs to, and whether it is read from this file."""
    own = _settings_for(path.parent, name, settings)
    if own is None:
        return _check_own(path, settings, images) if is_dataset(path) else _unknown(path)
    checked, found = check_dataset(own, str(path), images), Findings()
    for split, files in splits_of(name).items():
        read = files_of(own.data, split) if path.name in files.names else ()
        if read and not any(path.samefile(file) for file in read):
            found.add(NOT_READ, f"{name} ({split}) is read from {' and '.join(map(str, read))}")
    return replace(checked, findings=(*found.listed(), *checked.findings))


def _settings_for(folder: Path, name: str, settings: Settings) -> Settings | None:
    """The settings with which a dataset is read from a folder; None if it is not read from there."""
    data_dir = folder
    if is_world(name):  # it is only read from its own folder
        if folder.resolve().name == world_folder(name):
            data_dir = folder.resolve().parent
        elif not (folder / world_folder(name)).is_dir():
            return None
    own = with_values(settings, {"data": {"dataset": name, "data_dir": data_dir}})
    # A world that is incomplete would be created, with as many pictures as the folder's name says.
    return None if is_missing_world(own.data) else own


def _unknown(path: Path) -> Checked:
    found = Findings()
    if path.is_dir():
        entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        found.add(UNKNOWN, f"it contains {entries or 'nothing'}")
    elif path.is_file():
        with path.open("rb") as file:
            found.add(UNKNOWN, f"it begins with: {file.read(40).decode(errors='replace')}")
    else:
        found.add(UNKNOWN, "it is a device or a pipe")
    return Checked(str(path), "unknown", findings=found.listed())
