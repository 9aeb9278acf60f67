"""What a path is, and everything that is wrong with it."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from icdsel.check.dataset import check_dataset
from icdsel.check.findings import Checked, Findings, Kind
from icdsel.check.rl_data import PART, Present, check_lever_plus, check_rl_data
from icdsel.check.runs import check_checkpoint, check_run, is_run
from icdsel.datasets import DATASETS, JSON_LINES
from icdsel.errors import DataError
from icdsel.lever_plus.rl_data import is_lever_plus
from icdsel.settings import WORLD, DataSettings, Settings

UNREADABLE = Kind("it cannot be read", "see whether it is whole and whether you may read it")
UNKNOWN = Kind(
    "it is neither a dataset, RL data, a run's folder nor a checkpoint",
    "name a dataset's folder or file of JSON lines, RL data (.jsonl, Lever-Plus's .json), a run's folder "
    "(results/<dataset>/model_cpk/<run>), or a .pt or .ckpt",
)
_START = 1 << 16  # bytes that tell what a file is
_RL_DATA = re.compile(rb'"(?:pointer_candidates|candidate_pool_ids)"\s*:')  # as names: as texts they may be answers
_PREDICTIONS = re.compile(rb'"icds"\s*:')


def check(settings: Settings, paths: Sequence[Path] = (), images: bool = False) -> list[Checked]:
    """Lists what is wrong with each path; without one, with the dataset of the settings. Asks no VLM.

    Args:
        settings: What the paths should fit, and where datasets lie.
        paths: Files and folders, recognised by what they are.
        images: Open every image of a dataset, rather than only look whether it is there.

    Raises:
        DataError: a path does not exist.
    """
    for path in paths:
        if not path.exists():
            part = path.with_name(path.name + PART)
            instead = f"; there is {part}, of a command that was not finished" if part.exists() else ""
            raise DataError(f"{path} does not exist{instead}: give the path of a file or folder that does")
    present = Present(settings)
    if not paths:
        data = settings.data
        return [_safely(data.dataset, partial(check_dataset, data, data.dataset, images))]
    return [_safely(str(path), partial(_check_path, path, present, images)) for path in paths]


def _safely(name: str, look: Callable[[], Checked]) -> Checked:
    found = Findings()
    try:
        return look()
    except OSError as error:
        found.add(UNREADABLE, error)
    except Exception as error:  # noqa: BLE001 - whatever a file does to its reader, the list of the others goes on
        found.add(UNREADABLE, f"{type(error).__name__}: {error}")
    return Checked(name, "unknown", findings=found.listed())


def _check_path(path: Path, present: Present, images: bool) -> Checked:
    data = present.settings.data
    if path.is_dir():
        if is_run(path):
            return check_run(path)
        return _check_folder(path, data, images) or _unknown(path)
    if not path.is_file():
        return _unknown(path)
    with path.open("rb") as file:
        start = file.read(_START)
    if path.suffix in (".pt", ".ckpt", ".pth") or start.startswith((b"PK", b"\x80")):
        return check_checkpoint(path)
    if any(path.name in names for names in _FILES.values()):
        return _check_folder(path.parent, data, images) or _unknown(path)
    if is_lever_plus(path):
        return check_lever_plus(path, present)
    if _RL_DATA.search(start) or path.name.endswith(JSON_LINES + PART):
        return check_rl_data(path, present)
    if path.suffix == JSON_LINES and not _PREDICTIONS.search(start):
        return check_dataset(data.model_copy(update={"dataset": str(path)}), str(path), images)
    return _unknown(path)


_FILES = {
    name: {file for split in splits.values() for file in (split.questions, split.annotations, split.preprocessed)}
    - {""}
    for name, splits in DATASETS.items()
}


def _check_folder(folder: Path, data: DataSettings, images: bool) -> Checked | None:
    """Checks the dataset whose files a folder holds; None where it holds none."""
    for name, data_dir in _possible(folder, data.dataset):
        below = [folder, folder / name, folder / f"{name}_hf", folder / name / f"{name}_hf"]
        if any((place / file).is_file() for place in below for file in _FILES[name]):
            return check_dataset(data.model_copy(update={"dataset": name, "data_dir": data_dir}), str(folder), images)
    return None


def _possible(folder: Path, likely: str) -> Iterator[tuple[str, Path]]:
    """Datasets that a folder may hold, the likeliest first, each with what would be its `data_dir`."""
    # Lever-Plus's files of two datasets are called the same: the folder's name tells, else the settings.
    for name in sorted(DATASETS, key=lambda name: (not folder.resolve().name.startswith(name), name != likely)):
        if name != WORLD:
            yield name, folder
        elif folder.resolve().name == WORLD:  # its own folder is all that it is read from
            yield name, folder.resolve().parent
        elif (folder / WORLD).is_dir():
            yield name, folder


def _unknown(path: Path) -> Checked:
    found = Findings()
    if path.is_dir():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        found.add(UNKNOWN, f"it holds {held or 'nothing'}")
    elif path.is_file():
        with path.open("rb") as file:
            found.add(UNKNOWN, f"it begins with {file.read(40)!r}")
    else:
        found.add(UNKNOWN, "it is a device or pipe")
    return Checked(str(path), "unknown", findings=found.listed())
