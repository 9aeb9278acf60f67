"""Readers of folders: files by split, image folders with metadata, VQA's questions and annotations."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from icdsel.data.readers.arrow_files import ParquetFile, parquet_table
from icdsel.data.readers.base import FileReader, Reader
from icdsel.data.readers.json_files import JsonFile
from icdsel.data.readers.text_files import JsonLines, SeparatedValues
from icdsel.data.rows import Table
from icdsel.data.split_names import split_in, split_word, standard_split
from icdsel.errors import DataError, Refuse
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_list

FILES: tuple[FileReader, ...] = (JsonLines(), SeparatedValues(), ParquetFile(), JsonFile())
_DEEPEST = 3  # levels of folders in which data files are looked for
_DESCRIPTIONS = ("dataset_info", "dataset_infos", "dataset_dict", "state")
_START = 1 << 16  # bytes in which the name of a list is looked for


class ImageFolder(Reader):
    """Folders of images, each with `metadata.jsonl`, `.csv` or `.parquet`, as the library `datasets` has them."""

    name = "imagefolder"
    form = "folders of images (train/, validation/), each with a metadata.jsonl or metadata.csv that names its files"

    def recognises(self, path: Path) -> bool:
        """By files of the name `metadata`."""
        return path.is_dir() and bool(self._metadata(path))

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """A table for each folder of images."""
        return _tables(path, self._metadata(path), settings)

    def _metadata(self, path: Path) -> list[Path]:
        return [file for file in data_files(path) if file.stem == "metadata" and file.suffix.lower() != ".json"]


class VqaFolder(Reader):
    """A folder of VQA's questions and annotations, in files of any names."""

    name = "VQA files"
    form = (
        'a folder of VQA\'s JSON files of any names: {"questions": [...]} and {"annotations": [...]}, the split '
        "(train, val, ...) in their names"
    )

    def recognises(self, path: Path) -> bool:
        """By a JSON file with a list of questions."""
        return path.is_dir() and bool(self._files(path, "questions"))

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:  # noqa: ARG002
        """A table for each file of questions."""
        questions, annotations = (self._files(path, key) for key in ("questions", "annotations"))
        questions = _without_parts(questions)
        for key, files in (("questions", questions), ("annotations", annotations)):
            _require_one_each(path, files, f"files of {key}")
        paired = {split_in(file.stem): file for file in annotations}
        return [
            Table(file, _joined(file, paired.get(split)), path, split, split_word(file.stem))
            for file in questions
            for split in (split_in(file.stem),)
        ]

    def _files(self, path: Path, key: str) -> list[Path]:
        listed = re.compile(rf'"{key}"\s*:\s*\['.encode())
        return [file for file in data_files(path) if file.suffix.lower() == ".json" and listed.search(ends_of(file))]


class SplitFiles(Reader):
    """A folder of data files whose names, or whose folders' names, say the split; or of a single file."""

    name = "files by split"
    form = "a folder of such files whose names contain the split: train.jsonl and validation.jsonl, train-00000.parquet"

    def recognises(self, path: Path) -> bool:
        """By a file with a split in its name, or by a single file of data."""
        return path.is_dir() and bool(self._files(path))

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """A table for each file; the shards of a split in Parquet are one."""
        files = self._files(path)
        kinds = sorted({file.suffix.lower() for file in files})
        if len(kinds) > 1:
            raise DataError(f"{path} holds data in several formats ({', '.join(kinds)}): name one file, or move others")
        return _tables(path, files, settings)

    def _files(self, path: Path) -> list[Path]:
        files = [file for file in data_files(path) if file.stem not in _DESCRIPTIONS]
        if named := [file for file in files if _split_of(file, path)]:
            return named
        return [file for file in files if file.parent == path] if len(files) == 1 else []


def _tables(path: Path, files: Sequence[Path], settings: DataSettings) -> list[Table]:
    """The tables of data files, each of the split that its name says."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, path), []).append(file)
    tables = []
    for split, own in by_split.items():
        if all(file.suffix.lower() == ".parquet" for file in own):
            table = parquet_table(own, path, files, settings, split)
            tables.append(replace(table, named=_word_of(own[0], path)))
            continue
        for file in own:
            reader = next(reader for reader in FILES if reader.recognises(file))
            tables += [
                replace(table, split=split, named=_word_of(file, path)) for table in reader.tables(file, settings)
            ]
    return tables


def _split_of(file: Path, folder: Path) -> str:
    """The split in a file's name, else in that of its folders below `folder`, the nearest first."""
    return standard_split(_word_of(file, folder))


def _word_of(file: Path, folder: Path) -> str:
    """The word that names that split."""
    parts = file.relative_to(folder).with_suffix("").parts
    return next((word for part in reversed(parts) if (word := split_word(part))), "")


def data_files(folder: Path) -> list[Path]:
    """Files that a reader of `FILES` may read, by path; none in hidden folders."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEEPEST):
        below: list[Path] = []
        for place in level:
            try:
                entries = sorted(place.iterdir())
            except OSError:
                continue
            found += [entry for entry in entries if any(reader.recognises(entry) for reader in FILES)]
            below += [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        level = below
    return sorted(found)


def ends_of(file: Path) -> bytes:
    """The beginning and the end of a file, where the lists of a JSON file are named."""
    with file.open("rb") as opened:
        start = opened.read(_START)
        opened.seek(max(0, file.stat().st_size - _START))
        return start + opened.read(_START)


def _without_parts(questions: Sequence[Path]) -> list[Path]:
    """The files without those of test-dev where there is the whole test split, which has their questions too."""
    whole = any(standard_split(word) == "test" and not _is_part(word) for word in map(_word, questions))
    return [file for file in questions if not (whole and _is_part(_word(file)))]


def _word(file: Path) -> str:
    return split_word(file.stem)


def _is_part(word: str) -> bool:
    return word.lower().replace("-", "").replace("_", "").startswith("testdev")


def _require_one_each(path: Path, files: Sequence[Path], what: str) -> None:
    """Raises DataError if two files are of one split."""
    known: dict[str, Path] = {}
    for file in files:
        split = split_in(file.stem)
        if known.setdefault(split, file) != file:
            raise DataError(
                f"{path} has two {what} for the split {split or 'train'!r}: {known[split].name} and {file.name}. Name "
                "one file, or move the other"
            )


def _joined(questions: Path, annotations: Path | None) -> Any:
    """The rows of VQA's two files, joined by question_id; a question without an annotation has no answers."""

    def rows(refuse: Refuse) -> Iterator[tuple[str, Any]]:
        answers: dict[Any, tuple[str, dict[str, Any]]] = {}
        listed = read_list(annotations, "annotations") if annotations else iter(())
        for place, record in listed:
            key = json.dumps(record.get("question_id")) if isinstance(record, dict) else place
            answers[key] = (place, record)
        for place, record in read_list(questions, "questions"):
            key = json.dumps(record.get("question_id")) if isinstance(record, dict) else place
            own = answers.pop(key, None)
            yield place, {**record, **own[1]} if own and isinstance(record, dict) else record
        for place, _ in answers.values():
            refuse(DataError(f"{annotations}: {place}: {questions.name} has no question with its question_id"))

    return rows
