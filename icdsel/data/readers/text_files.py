"""Readers of JSON lines, and of tables with separated values."""

import ast
import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.parsing import LONGEST_ANSWERS
from icdsel.data.readers.base import FileReader
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
    lines = _lines(path)
    try:
        head = next(lines, "")
        separator = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in head and "," not in head else ","
        names = next(csv.reader([head], delimiter=separator, strict=True, skipinitialspace=separator != "\t"), [])
        if len(set(names)) < len(names):
            raise DataError(f"{path}: line 1: a column name occurs twice: {', '.join(names)}")
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        for cells in reader:
            if not cells:
                continue
            place = f"line {reader.line_num + 1}"
            if len(cells) != len(names):
                refuse(DataError(f"{path}: {place}: it has {len(cells)} columns, the first line names {len(names)}"))
                continue
            yield place, {name: _value(name, cell) for name, cell in zip(names, cells, strict=True) if cell.strip()}
    except csv.Error as error:
        raise DataError(
            f"{path} is damaged: {error}. Quote texts that contain a quotation mark or a line end"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _lines(path: Path) -> Iterator[str]:
    start = 0
    for number, line in enumerate(read_bytes_lines(path), 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: byte {start + error.start}") from None
        start += len(line)


def _value(name: str, cell: str) -> Any:
    """A cell's value. Integers are written as JSON writes them; "007" is a text."""
    text = cell.strip()
    if text.startswith("[") and text.endswith("]") and len(text) <= 2 * LONGEST_ANSWERS:
        for parse in (json.loads, ast.literal_eval):  # the second for lists that Python wrote
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if _ANSWER_SIGN in text and "answer" in name.lower():
        return [part.strip() for part in text.split(_ANSWER_SIGN) if part.strip()]
    if len(text) <= 19 and text.removeprefix("-").isdecimal() and str(int(text)) == text:
        return int(text)
    return cell
