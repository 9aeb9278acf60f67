"""Reader of images in a folder for each class, as image classifiers are trained on."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.readers.base import CLASS_QUESTION, CLASS_TASK, Reader
from icdsel.data.rows import Table
from icdsel.data.split_names import SPLITS, standard_split
from icdsel.data.stored_images import ENDINGS
from icdsel.errors import DataError, Refuse
from icdsel.settings.tables import DataSettings

_FEWEST = 2  # classes


class ClassFolders(Reader):
    """Images in folders of their classes, these in folders of the splits or not: `train/cat/1.jpg`, or `cat/1.jpg`.

    The options of every question are all classes, in the order of their names. Images directly in the folder of a split
    have no class: they are queries to be answered.
    """

    name = "folders of classes"
    form = "folders of images named after their classes: train/cat/, train/dog/, val/cat/, ..., or cat/, dog/"

    def recognises(self, path: Path) -> bool:
        """By images in folders of classes."""
        return path.is_dir() and len({name for _, _, name in _classes(path)}) >= _FEWEST

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:  # noqa: ARG002
        """A table for each split; one without a name if there are no folders of splits."""
        found = _classes(path)
        told = {name: name.replace("_", " ") for _, _, name in found}
        for name, text in told.items():
            if name != text and text in told:
                raise DataError(f"{path}: the folders {name!r} and {text!r} are the same class: rename one of them")
        options = tuple(sorted(told.values()))
        by_split: dict[str, list[tuple[Path, str | None]]] = {}
        for split, folder, name in found:
            by_split.setdefault(split, []).append((folder, told[name]))
        for folder in _splits(path):
            by_split.setdefault(folder.name, []).append((folder, None))
        return [
            Table(path, partial(_rows, path, own), path, standard_split(name), name, task=CLASS_TASK, options=options)
            for name, own in by_split.items()
        ]


def _rows(path: Path, folders: Sequence[tuple[Path, str | None]], refuse: Refuse) -> Iterator[tuple[str, Any]]:
    for folder, answer in folders:
        try:
            names = sorted(_images(folder))
        except OSError as error:
            refuse(DataError(f"{folder} cannot be read: {error.strerror}"))
            continue
        for name in names:
            image = (folder / name).relative_to(path).as_posix()
            about = {"question_id": image, "image": image, "question": CLASS_QUESTION}
            yield f"image {image}", about | {"answer": answer}


def _classes(path: Path) -> list[tuple[str, Path, str]]:
    """The folder of each class, with its split and its name; the split is "" without folders of splits."""
    splits = _splits(path)
    places = [(split.name, folder) for split in splits for folder in _folders(split)]
    places = places if splits else [("", folder) for folder in _folders(path)]
    return [(split, folder, folder.name) for split, folder in places if _has_image(folder)]


def _splits(path: Path) -> list[Path]:
    return [folder for folder in _folders(path) if standard_split(folder.name) in SPLITS]


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _images(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith("."):
                yield entry.name


def _has_image(folder: Path) -> bool:
    try:
        return next(_images(folder), None) is not None
    except OSError:
        return False
