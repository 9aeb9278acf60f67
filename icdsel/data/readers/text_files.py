"""Readers of JSON lines, and of tables with separated values."""

import ast
import csv
import io
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.parsing import LONGEST_ANSWERS
from icdsel.data.readers.base import FileReader
from icdsel.data.readers.shared_cells import Cells, Placed, may_share, with_shared_images
from icdsel.data.rows import Rows
from icdsel.errors import DataError, Refuse
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_lines
from icdsel.store.reading import LONGEST_LINE, read_bytes_lines

_ANSWER_SIGN = "|"


class JsonLines(FileReader):
    """One JSON object per line."""

    name = "JSON lines"
    endings = (".jsonl", ".ndjson")
    form = "a file of JSON lines (.jsonl): one object per line"

    def rows(self, path: Path, settings: DataSettings) -> Rows:  # noqa: ARG002
        """Each line is a row."""
        return partial(read_lines, path)


class SeparatedValues(FileReader):
    """A table with a line of column names, separated by commas or semicolons (.csv), or by tabs (.tsv)."""

    name = "CSV"
    endings = (".csv", ".tsv")
    form = "a table with a line of column names (.csv, .tsv); several answers as a JSON list, or separated by |"

    def rows(self, path: Path, settings: DataSettings) -> Rows:  # noqa: ARG002
        """Each record is a row; empty cells are left out."""
        return partial(_rows, path)


def _rows(path: Path, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)  # the default of 131,072 characters is less than an image in base64
    try:
        table = _Table(path)
        rows: Iterator[tuple[str, Cells]]
        if may_share(table.names):
            rows = with_shared_images(path, table.rows(refuse), table.parsed, refuse)
        else:
            rows = ((place, cells) for place, cells, _ in table.rows(refuse))
        for place, cells in rows:
            yield place, {name: _value(name, cell) for name, cell in cells.items()}
    except csv.Error as error:
        raise DataError(
            f"{path} is damaged: {error}. Quote texts that contain a quotation mark or a line end"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


class _Table:
    """A file of separated values, whose first line is read."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self._lines = self._decoded()
        head = next(self._lines, "")
        self._separator = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in head and "," not in head else ","
        self.names: list[str] = next(self._reader(iter((head,))), [])
        if len(set(self.names)) < len(self.names):
            raise DataError(f"{path}: line 1: a column name occurs twice: {', '.join(self.names)}")

    def rows(self, refuse: Refuse) -> Iterator[Placed]:
        reader = self._reader(self._lines)
        start = self._at
        for row in reader:
            begin, start = start, self._at
            if not row:
                continue
            place = f"line {reader.line_num + 1}"
            if len(row) != len(self.names):
                told = f"it has {len(row)} columns, the first line names {len(self.names)}"
                refuse(DataError(f"{self._path}: {place}: {told}"))
                continue
            yield place, self._cells(row), (begin, start)

    def parsed(self, content: bytes) -> Cells:
        """The cells of the row that a part of the file is."""
        lines = io.StringIO(content.decode(), newline="\n")
        return self._cells(next(self._reader(lines), []))

    def _cells(self, row: Sequence[str]) -> Cells:
        return {name: cell for name, cell in zip(self.names, row, strict=True) if cell.strip()}

    def _reader(self, lines: Iterator[str]) -> Any:
        separator = self._separator
        return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != "\t")

    def _decoded(self) -> Iterator[str]:
        """The lines; `_at` is where the next one begins."""
        for number, line in enumerate(read_bytes_lines(self._path), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self._path} is not UTF-8: byte {self._at + error.start}") from None
            self._at += len(line)
            yield text


def _value(name: str, cell: str) -> Any:
    """A cell's value. Integers are written as JSON writes them; "007" is a text."""
    text = cell.strip()
    if text.startswith("[") and text.endswith("]") and len(text) <= 2 * LONGEST_ANSWERS:
        for parse in (json.loads, ast.literal_eval):  # the second for lists that Python wrote
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    elif text[:2] in ("['", '["') and text.endswith("]"):  # of encoded images: parsing it as code takes much memory
        return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    if _ANSWER_SIGN in text and "answer" in name.lower():
        return [part.strip() for part in text.split(_ANSWER_SIGN) if part.strip()]
    if len(text) <= 19 and text.removeprefix("-").isdecimal() and str(int(text)) == text:
        return int(text)
    return cell
