"""Readers of Parquet files and of folders that `save_to_disk` of the library `datasets` writes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.columns import Columns
from icdsel.data.readers.base import CLASS_QUESTION, CLASS_TASK, FileReader, Reader
from icdsel.data.rows import Rows, Table
from icdsel.data.split_names import standard_split
from icdsel.data.stored_images import store_split
from icdsel.errors import DataError, Refuse
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_lines
from icdsel.store.slot import find_or_make

_BATCH = 64  # rows, each with an image
_LATER = {"options", "hint", "pool", "task"}  # fields that copies made by earlier versions lack


class ParquetFile(FileReader):
    """A Parquet file, with images as paths or as bytes (`{"bytes": ..., "path": ...}`)."""

    name = "Parquet"
    endings = (".parquet",)
    form = "a Parquet file (.parquet), with images as paths, or as bytes as the library datasets stores them"

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """One table."""
        return [parquet_table([path], path, [path], settings)]

    def rows(self, path: Path, settings: DataSettings) -> Rows:
        """The rows of that table."""
        return self.tables(path, settings)[0].rows


def parquet_table(
    shards: Sequence[Path], path: Path, files: Sequence[Path], settings: DataSettings, split: str = ""
) -> Table:
    """The table of the shards of one split; `files` are those of all splits of the dataset at `path`."""
    return stored_or_direct(_Parquet(shards), path, files, settings, split)


class SavedDataset(Reader):
    """A folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""

    name = "save_to_disk"
    form = "a folder of `save_to_disk` of the library datasets (with dataset_dict.json or state.json)"

    def recognises(self, path: Path) -> bool:
        """By the files that describe it."""
        return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """One table for each split; a `Dataset` alone has a single one."""
        library = _library("datasets", "a folder of save_to_disk")
        try:
            loaded = library.load_from_disk(str(path))
        except Exception as error:  # the library's readers raise many kinds of errors
            raise DataError(f"{path} cannot be loaded: {str(error) or type(error).__name__}") from error
        parts = dict(loaded) if isinstance(loaded, library.DatasetDict) else {"": loaded}
        files = sorted(path.rglob("*.arrow"))
        return [
            stored_or_direct(_Saved(part), path, files, settings, standard_split(name), name)
            for name, part in parts.items()
        ]


class _Arrow:
    """Rows in Arrow's columns.

    Attributes:
        names: The columns.
        count: The number of rows.
    """

    names: tuple[str, ...]
    count: int

    def batches(self) -> Iterator[Any]:
        """Record batches or tables of `pyarrow`."""
        raise NotImplementedError

    def kind(self, name: str) -> Any:
        """The type of a column, by `pyarrow`."""
        raise NotImplementedError

    def classes(self) -> Mapping[str, Sequence[str]]:
        """The names of classes of the columns that hold their numbers."""
        raise NotImplementedError

    def rows(self, used: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows, with the columns `used` alone; classes by name."""
        classes = {name: names for name, names in self.classes().items() if name in used}
        for batch in self.batches():
            for row in _values(batch.select(used)):
                for name, names in classes.items():
                    if isinstance(row[name], int) and -1 <= row[name] < len(names):
                        row[name] = names[row[name]] if row[name] >= 0 else None  # -1 means unknown
                yield row


class _Parquet(_Arrow):
    def __init__(self, shards: Sequence[Path]) -> None:
        self._library = _library("pyarrow.parquet", f"the Parquet file {shards[0].name}")
        self._shards = shards
        opened = [self._opened(path) for path in shards]
        self._schema = opened[0].schema_arrow
        self.names, self.count = tuple(self._schema.names), sum(file.metadata.num_rows for file in opened)

    def _opened(self, path: Path) -> Any:
        try:
            return self._library.ParquetFile(path)
        except Exception as error:  # the library raises many kinds of errors
            raise DataError(f"{path} is not a Parquet file, or is damaged: {error}") from error

    def batches(self) -> Iterator[Any]:
        for path in self._shards:
            try:
                yield from self._opened(path).iter_batches(batch_size=_BATCH)
            except Exception as error:  # the library raises many kinds of errors
                raise DataError(f"{path} is damaged: {error}") from error

    def kind(self, name: str) -> Any:
        return self._schema.field(name).type

    def classes(self) -> Mapping[str, Sequence[str]]:
        try:
            about = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
            features = about["info"]["features"]
            return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
        except (ValueError, KeyError, TypeError, AttributeError):  # not written by the library `datasets`
            return {}


class _Saved(_Arrow):
    def __init__(self, table: Any) -> None:
        self._table = table
        self.names, self.count = tuple(table.features), len(table)

    def batches(self) -> Iterator[Any]:
        try:
            yield from self._table.with_format("arrow").iter(batch_size=_BATCH)
        except Exception as error:  # as above
            raise DataError(f"the saved dataset is damaged: {error}") from error

    def kind(self, name: str) -> Any:
        return self._table.features.arrow_schema.field(name).type

    def classes(self) -> Mapping[str, Sequence[str]]:
        features = self._table.features.items()
        return {name: kind.names for name, kind in features if type(kind).__name__ == "ClassLabel"}


def _values(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch. It is validated first, because the library trusts the lengths in a damaged file."""
    try:
        batch.validate(full=True)
        values: list[dict[str, Any]] = batch.to_pylist()
    except Exception as error:  # the library raises many kinds of errors
        raise DataError(f"a row is damaged: {str(error) or type(error).__name__}") from error
    return values


def saved_rows(table: Any, used: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table of the library `datasets`, with images as stored."""
    return _Saved(table).rows(used)


def saved_classes(table: Any, plan: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that the answers of such a table are (`classes_of_answers`)."""
    return classes_of_answers(_Saved(table).classes(), plan)


def stored_or_direct(
    arrow: _Arrow, path: Path, files: Sequence[Path], settings: DataSettings, split: str = "", named: str = ""
) -> Table:
    """A table of Arrow's columns: read directly if images are paths, else from a copy of rows and encoded images.

    The copy is made when the table is first read. It goes to `data/imported/<name>-<digest>/`, whose digest covers the
    names, sizes and times of the files, so that changed files are copied again.
    """
    columns = Columns(settings.columns_by_field)
    plan, several, used = columns.plan(arrow.names), columns.several(arrow.names), columns.needed(arrow.names)
    images = [*several.get("image", {}).values(), *([plan["image"]] if "image" in plan else [])]
    folder = path if path.is_dir() else path.parent
    about = partial(Table, split=split, named=named)
    if options := classes_of_answers(arrow.classes(), plan):
        about = partial(about, task=CLASS_TASK, options=options, question=CLASS_QUESTION)
    if not any(_holds_bytes(arrow.kind(image)) for image in images):
        return about(path, partial(_direct, arrow, used), folder)
    states: list[Any] = [(file.relative_to(folder).as_posix(), *_state(file)) for file in files]
    if later := sorted({*several, *(plan.keys() & _LATER)}):
        states.append(later)
    digest = hashlib.sha256(repr([states, sorted(settings.columns_by_field.items())]).encode()).hexdigest()[:12]
    own = settings.data_dir / "imported" / f"{path.stem if path.is_file() else path.name}-{digest}"
    lines = own / f"{split or 'all'}.jsonl"

    def store() -> bool:
        columns, name = Columns(settings.columns_by_field), f"{path.name}, {split or 'all'}"
        store_split(lines, Path("images"), name, arrow.rows(used), arrow.count, columns)
        return True

    def rows(refuse: Refuse) -> Iterator[tuple[str, Any]]:
        find_or_make(lines, f"the copy of {path.name}", lambda: lines.exists() or None, store)
        return read_lines(lines, refuse)

    renamed = {field: name for field, name in plan.items() if field != name}
    return about(lines, rows, own, stored=True, columns=renamed)


def classes_of_answers(classes: Mapping[str, Sequence[str]], plan: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that answers are, in a dataset whose answers are those of a column of classes; else empty.

    Args:
        classes: The classes of each column that has any.
        plan: The column of each field.
    """
    own = "options" not in plan and "answers" not in plan
    return tuple(classes.get(plan.get("answer", ""), ())) if own else ()


def _state(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def _direct(arrow: _Arrow, used: Sequence[str], refuse: Refuse) -> Iterator[tuple[str, Any]]:  # noqa: ARG001
    for number, row in enumerate(arrow.rows(used)):
        yield f"row {number}", row


def _holds_bytes(kind: Any) -> bool:
    """Whether a column holds encoded images, alone or in lists."""
    text = str(kind)
    return "bytes: binary" in text or text in ("binary", "large_binary")


def _library(name: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        library = name.partition(".")[0]
        raise DataError(f'{what} needs the library "{library}": pip install "icdsel[hub]"') from None
