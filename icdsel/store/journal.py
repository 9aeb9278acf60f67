"""Journals: JSON lines that grow while work is done, so that an interruption loses only the current unit."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from icdsel.console import warn
from icdsel.errors import RunError, UserError
from icdsel.store.files import ESCAPED, make_folder, move, naming, sync_folder
from icdsel.store.json_reading import parsed
from icdsel.store.reading import read_bytes_lines

_Record = TypeVar("_Record")


def journal_of(path: Path) -> Path:
    """The journal of a file that is not complete yet: `NAME.part` beside it."""
    return path.with_name(path.name + ".part")


def complete_lines(path: Path, error: type[UserError]) -> Iterator[tuple[bytes, Any]]:
    """The lines of a file with their JSON values, up to the first that is torn or damaged; none if it does not exist.

    A torn last line is left by an interruption and expected; a damaged line is reported as a warning.

    Raises:
        UserError: of the class `error`; the file cannot be read.
    """
    if not path.exists():
        return
    try:
        for number, line in enumerate(read_bytes_lines(path), 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = parsed(line)
            except ValueError as problem:
                _report(path, number, problem)
                return
            yield line, value
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None


def _report(path: Path, number: int, problem: ValueError) -> None:
    warn(f"{path}, line {number}: {problem}: this line and all after it are ignored")


class Journal:
    """A file of JSON lines with one writer; every append is synced, so a crash tears at most the last lines.

    `read` decides which of the existing lines are kept. Reading changes nothing on disk: lines that are not kept (all
    of them, if the file was never read) are cut off by the next `append`, `trim` or `rename`.

    Args:
        path: The file, which need not exist.
        error: The class of the error to raise if it cannot be read.
    """

    def __init__(self, path: Path, error: type[UserError] = RunError) -> None:
        self.path = path
        self._error = error
        self._ends = [0]
        """Bytes up to the end of each kept line."""

    def read(self, valid: Callable[[Any], _Record]) -> Iterator[_Record]:
        """The records of the file; the lines that are iterated over are kept.

        Args:
            valid: Turns the value of a line into a record. Reading stops at its first ValueError, as
                at a torn line.
        """
        self._ends = [0]
        for line, value in complete_lines(self.path, self._error):
            try:
                record = valid(value)
            except ValueError as problem:
                _report(self.path, len(self._ends), problem)
                return
            self._ends.append(self._ends[-1] + len(line))
            yield record

    def keep(self, count: int) -> None:
        """Keeps the first `count` of the lines that were read or appended."""
        del self._ends[count + 1 :]

    def append(self, records: Iterable[Any]) -> None:
        """Appends a line for each record, and syncs the file."""
        self.append_lines(json.dumps(record, ensure_ascii=False) for record in records)

    def append_lines(self, lines: Iterable[str]) -> None:
        """Appends lines of JSON as they are, and syncs the file."""
        encoded = [f"{line}\n".encode(errors=ESCAPED) for line in lines]
        self.trim()
        make_folder(self.path.parent)
        new = not self.path.exists()
        with naming(self.path), self.path.open("ab") as file:
            file.write(b"".join(encoded))
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self.path.parent)
        for line in encoded:
            self._ends.append(self._ends[-1] + len(line))

    def trim(self) -> None:
        """Truncates the file after the kept lines."""
        if self.path.exists() and self.path.stat().st_size > self._ends[-1]:
            with naming(self.path), self.path.open("r+b") as file:
                file.truncate(self._ends[-1])
                os.fsync(file.fileno())

    def rename(self, target: Path) -> None:
        """Truncates the file to the kept lines, possibly none, and renames it to `target`."""
        if self.path.exists():
            self.trim()
        else:
            self.append_lines([])
        move(self.path, target)

    def remove(self) -> None:
        """Removes the file, if it exists."""
        self.path.unlink(missing_ok=True)
