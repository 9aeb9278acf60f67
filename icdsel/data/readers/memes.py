"""Reader of the Hateful Memes (Kiela et al., 2020): lines of an image, its text, and a label 0 or 1."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.parsing import quoted
from icdsel.data.readers.base import CLASS_TASK, Reader
from icdsel.data.readers.folders import SplitFiles
from icdsel.data.readers.text_files import JsonLines
from icdsel.data.rows import Table
from icdsel.errors import DataError, Refuse
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_lines
from icdsel.store.reading import open_file

MEME_QUESTION = "Is this meme hateful? Its text is: {text}"
MEME_OPTIONS = ("no", "yes")
"""The answers by label."""

_FIELDS, _LABEL = {"id", "img", "text"}, "label"
# Later releases have two files each for development and test; "seen" are those of the competition's first phase.
_FILES = {
    "train": ("train",),
    "validation": ("dev", "dev_seen", "dev_unseen"),
    "test": ("test", "test_seen", "test_unseen"),
}
_LONGEST_LINE = 1 << 16  # bytes of a first line that is looked at


class HatefulMemes(Reader):
    """A folder of the Hateful Memes, or one of its files."""

    name = "Hateful Memes"
    form = "a folder of the Hateful Memes: train.jsonl, dev_seen.jsonl, test_seen.jsonl and img/"

    def recognises(self, path: Path) -> bool:
        """By the fields of the first line of its first file."""
        files = self._files(path) if path.is_dir() else {"": path}
        return any(_is_of_memes(file) for file in [*files.values()][:1])

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """A table for each split. With columns that are named, files are read as any others."""
        if settings.columns:
            return (SplitFiles() if path.is_dir() else JsonLines()).tables(path, settings)
        files = self._files(path) if path.is_dir() else {"": path}
        return [
            Table(
                file,
                partial(_rows, file),
                file.parent,
                split,
                file.stem if split else "",
                task=CLASS_TASK,
                options=MEME_OPTIONS,
            )
            for split, file in files.items()
        ]

    def _files(self, path: Path) -> dict[str, Path]:
        """The first file that exists of each split."""
        found = {
            split: [file for name in names if (file := path / f"{name}.jsonl").is_file()]
            for split, names in _FILES.items()
        }
        return {split: files[0] for split, files in found.items() if files}


def _is_of_memes(file: Path) -> bool:
    if file.suffix.lower() != ".jsonl":
        return False
    try:
        with open_file(file) as opened:  # which blocks at no pipe
            first = json.loads(opened.readline(_LONGEST_LINE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and _FIELDS <= first.keys() <= {*_FIELDS, _LABEL}


def _rows(path: Path, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    for place, meme in read_lines(path, refuse):
        if not isinstance(meme, dict) or not isinstance(meme.get("text"), str):
            refuse(DataError(f"{path}: {place}: it is {quoted(meme)}, not an object with id, img, text and label"))
            continue
        about = {"question_id": meme.get("id"), "image": meme.get("img")}
        yield place, about | {"question": MEME_QUESTION.format(text=meme["text"]), "answer": meme.get(_LABEL)}
