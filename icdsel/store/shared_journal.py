"""JSON lines that several processes append to at the same time, such as a cache. Lines are never changed."""

import json
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from icdsel.store.files import ESCAPED, naming, sync_folder
from icdsel.store.json_reading import parsed
from icdsel.store.lock import locked
from icdsel.store.reading import LONGEST_LINE, open_file


class SharedJournal:
    """A file of JSON lines with many writers. An append is synced, and a crash tears at most the last line.

    Readers take no lock: they stop at the last line end. Writers hold the file's lock while they append, for
    milliseconds, and first cut off what a crash has torn.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        """Bytes up to the end of the last line that was read or written."""

    def new(self) -> Iterator[Any]:
        """The values of the lines that were added since the last call; damaged lines are skipped.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            file = open_file(self.path)
        except FileNotFoundError:
            self._end = 0
            return
        with file:
            yield from self._read(file)

    def _read(self, file: BufferedReader) -> Iterator[Any]:
        if os.fstat(file.fileno()).st_size < self._end:  # somebody removed it, and another one was begun
            self._end = 0
        file.seek(self._end)
        while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
            self._end += len(line)
            try:
                yield parsed(line)
            except ValueError:
                continue

    def append(self, records: Iterable[Any]) -> list[Any]:
        """Appends a line for each record, and syncs the file.

        Returns:
            The values of lines that other processes have added, as from `new`.

        Raises:
            OSError: The file cannot be written.
        """
        content = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode(errors=ESCAPED)
        with locked(self.path, str(self.path), quiet=True), naming(self.path):
            exists = self.path.exists()
            others = list(self.new())
            with self.path.open("r+b" if exists else "xb") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not exists:
                sync_folder(self.path.parent)
            self._end += len(content)
        return others
