"""Readers of people's own data, one for each form. `read` finds the one that recognises a path.

To add one, write a class like those in `text_files.py` and put an object of it into `READERS`, here or in a program of
your own: `READERS.add(MyReader())`. Readers are tried in order, and the first that recognises a path reads it.
"""

from pathlib import Path

from icdsel.data.readers.arrow_files import SavedDataset
from icdsel.data.readers.base import FileReader, Reader
from icdsel.data.readers.captions import CaptionFile, CaptionFolder
from icdsel.data.readers.class_folders import ClassFolders
from icdsel.data.readers.folders import FILES, ImageFolder, SplitFiles, VqaFolder
from icdsel.data.readers.memes import HatefulMemes
from icdsel.data.readers.vl_icl import VlIcl
from icdsel.errors import DataError
from icdsel.registry import Registry

__all__ = ["READERS", "FileReader", "Reader", "reader_of"]

_FOLDERS = (SavedDataset(), VlIcl(), ImageFolder(), VqaFolder(), CaptionFolder(), SplitFiles(), ClassFolders())

READERS: Registry[Reader] = Registry("reader", (HatefulMemes(), CaptionFile(), *FILES, *_FOLDERS))
"""The readers by name, in the order in which they are tried."""


def reader_of(path: Path) -> Reader | None:
    """The reader that recognises an existing path; None if there is none."""
    return next((reader for reader in READERS.values() if reader.recognises(path)), None)


def unrecognised(path: Path) -> DataError:
    """The error of a path that no reader recognises: what is there, and what would be read."""
    if path.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        found = f"holds {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "is empty"
    else:
        found = f"is a file that ends in {path.suffix or 'nothing'}"
    forms = "".join(f"\n  {reader.form}" for reader in READERS.values())
    return DataError(f"{path} {found}, and is no dataset that is known. A dataset is one of:{forms}")
