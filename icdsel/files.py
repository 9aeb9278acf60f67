"""Writing files whole: beside, synced, renamed."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def write_text(path: Path, content: str) -> None:
    """Writes `content` as UTF-8, whole (see `write_bytes`)."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes `value` as JSON, whole (see `write_bytes`); NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Appends lines to a journal and syncs it; after a crash at most the last lines are torn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
