"""Writing files whole: beside, synced, renamed. Journals: appended to, synced, cut and at last renamed."""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the whole new one, never a part."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        move(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it lies in, so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def move(path: Path, target: Path) -> None:
    """Renames a file or folder within its folder, so that the new name survives a power cut."""
    path.replace(target)
    _sync_folder(target.parent)


def remove_leftovers(*paths: Path) -> None:
    """Removes what killed processes left of writing these files; only for who alone writes them (`icdsel.lock`)."""
    for path in paths:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def write_text(path: Path, content: str) -> None:
    """Writes `content` as UTF-8, whole (see `write_bytes`)."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes `value` as JSON, whole (see `write_bytes`); NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")


def journal_of(path: Path) -> Path:
    """Where a result is journalled until it is whole: `NAME.part` beside it."""
    return path.with_name(path.name + ".part")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Appends lines to a journal and syncs it; after a crash at most the last lines are torn."""
    make_folder(path.parent)
    new = not path.exists()
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def cut(path: Path, size: int) -> None:
    """Cuts a journal to its first `size` bytes, where it exists and is longer."""
    if path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
