"""Writing files whole: beside, synced, renamed. Journals: appended to, synced, cut and at last renamed.

Nothing is written through a link: a folder from somebody else must not lead out of itself.
"""

import errno
import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ESCAPED = "surrogateescape"  # names of files in an alphabet that the system was not told of keep their bytes
_NOT_PLAIN = "it is a link, a pipe or a device, which is not written to: remove it, or write elsewhere"
_OTHER_NAMES = "it has another name too (a hard link), whose file would be written to: remove this one, or copy it"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the whole new one, never a part.

    Raises:
        OSError: It cannot be written, or what is there may not be replaced (`require_replaceable`).
    """
    require_replaceable(path)
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        beside.unlink(missing_ok=True)  # of a killed process that had the same number
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            move(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file that could not be written, which an error of writing does not, nor one of the file beside."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def require_replaceable(path: Path) -> None:
    """Refuses a folder, a pipe or a device in the place of a file that is written whole, or a link to one.

    Raises:
        OSError: It is one, or what `path` is cannot be told.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file in it", str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, _NOT_PLAIN, str(path))


def open_plain(path: str | os.PathLike[str], flags: int) -> int:
    """Opens a file to write to it, as an `opener` of `open` too; makes it where `flags` say so.

    Raises:
        OSError: It cannot be opened, or is a link, a pipe or a device, or has another name.
    """
    try:
        held = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise OSError(error.errno, _NOT_PLAIN, str(path)) from None
    status = os.fstat(held)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(held)
        raise OSError(errno.EINVAL, _NOT_PLAIN if status.st_nlink < 2 else _OTHER_NAMES, str(path))
    return held


def refuse_link(folder: Path) -> None:
    """Refuses a link in the place of a folder that is written to.

    Raises:
        OSError: It is one.
    """
    if folder.is_symlink():
        raise OSError(errno.ELOOP, _NOT_PLAIN, str(folder))


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
    """Removes what killed processes left of writing these files; only for who alone writes them (`store.lock`)."""
    for path in paths:
        begin = f".{path.name}."
        for left in path.parent.glob(f"{glob.escape(begin)}*.part"):
            if left.stem.removeprefix(begin).isdecimal():  # else it is of a file whose name begins so
                left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def digest_of(name: str) -> str:
    """The SHA-256 of a name in hexadecimal digits, for another name; it may be one of a file that is no UTF-8."""
    return hashlib.sha256(name.encode(errors=_ESCAPED)).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, -1 where there is none that can be reached."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a name that no file can have here
        return -1


def write_text(path: Path, content: str) -> None:
    """Writes `content` as UTF-8, whole (see `write_bytes`)."""
    write_bytes(path, content.encode(errors=_ESCAPED))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes `value` as JSON, whole (see `write_bytes`), in the form of `json_bytes`."""
    write_bytes(path, json_bytes(value, indent))


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """`value` as a file of JSON holds it; NaN and infinities are refused (ValueError).

    Names of files that are not UTF-8 stand in it escaped, as Python holds them.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")


def journal_of(path: Path) -> Path:
    """Where a result is journalled until it is whole: `NAME.part` beside it."""
    return path.with_name(path.name + ".part")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Appends lines to a journal and syncs it; after a crash at most the last lines are torn."""
    make_folder(path.parent)
    new = not path.exists()
    with naming(path), open(path, "ab", opener=open_plain) as file:
        file.write("".join(f"{line}\n" for line in lines).encode(errors=_ESCAPED))
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def cut(path: Path, size: int) -> None:
    """Cuts a journal to its first `size` bytes, where it exists and is longer."""
    if path.exists() and path.stat().st_size > size:
        with open(path, "r+b", opener=open_plain) as file:
            file.truncate(size)
            os.fsync(file.fileno())
