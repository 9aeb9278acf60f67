"""Atomic file writes: to a temporary file beside the target, synced, then renamed."""

import errno
import glob
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ESCAPED = "surrogateescape"
"""How file names that are not UTF-8 keep their bytes."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` atomically: a reader sees the old file or the complete new one.

    Raises:
        OSError: The file cannot be written, or something other than a file is in its place.
    """

    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_through(path, write)


def write_through(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Replaces `path` atomically by what `write` writes to a file, for content that is not in memory as a whole.

    Raises:
        OSError: As for `write_bytes`.
    """
    require_replaceable(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Replaces `path` atomically with `content` in UTF-8."""
    write_bytes(path, content.encode(errors=ESCAPED))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Replaces `path` atomically with `value` in JSON (see `json_bytes`)."""
    write_bytes(path, json_bytes(value, indent))


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """The bytes of a JSON file that holds `value`; file names that are not UTF-8 are escaped.

    Raises:
        ValueError: `value` holds NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes every OSError name `path`; a failed write would name the temporary file, or no file at all."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def require_replaceable(path: Path) -> None:
    """Rejects a path that exists and is not a regular file.

    Raises:
        OSError: It is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file in it", str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "it is a pipe or a device: name a file", str(path))


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def move(path: Path, target: Path) -> None:
    """Renames a file or folder within its folder so that the new name survives a power cut."""
    path.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leftovers(path: Path) -> list[Path]:
    """Temporary files of processes that were killed while writing `path`; only its current writer may remove them."""
    prefix = f".{path.name}."
    found = path.parent.glob(f"{glob.escape(prefix)}*.part")
    return [left for left in found if left.stem.removeprefix(prefix).isdecimal()]  # others belong to longer names


def remove_leftovers(*paths: Path) -> None:
    """Removes the `leftovers` of files."""
    for path in paths:
        for left in leftovers(path):
            left.unlink(missing_ok=True)


def digest_of(name: str) -> str:
    """The SHA-256 of a name in hexadecimal digits; the name need not be UTF-8."""
    return hashlib.sha256(name.encode(errors=ESCAPED)).hexdigest()


def size_of(path: Path) -> int:
    """The size of a file in bytes; -1 if it does not exist or cannot be accessed."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: no file can have that name
        return -1
