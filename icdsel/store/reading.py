"""Opening files that others have made: regular files alone, and no more of them than there should be."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

LONGEST_LINE = 64 * 2**20
"""Bytes of a line at most: some hundred times the longest that RL data of a large dataset have."""


def is_path(text: str) -> bool:
    """Whether a text may be a file's path on any machine; asking for a longer one is an error, not a missing file."""
    names = text.encode(errors="replace").split(b"/")
    return "\0" not in text and sum(map(len, names)) < 2048 and max(map(len, names)) <= 255


def why_no_file(path: Path) -> str:
    """What is the matter with a path where `is_file` finds none, for a sentence that begins with the path."""
    if path.is_dir():
        return "is a folder, no file"
    return "is a pipe or a device, no file" if path.exists() else "does not exist"


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading.

    Raises:
        OSError: It cannot be opened, or is none: a pipe would keep its reader waiting, a device would never end.
    """
    try:
        held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without it a pipe is not even opened before it is written
    except ValueError as error:  # a zero byte in its name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    mode = os.fstat(held).st_mode
    if not stat.S_ISREG(mode):
        os.close(held)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is a pipe or a device, no file", str(path))
    return os.fdopen(held, "rb")


@contextmanager
def in_utf_8(path: Path) -> Iterator[str]:
    """A name of a file for libraries that take none but UTF-8: its own, else that of the file opened.

    Raises:
        OSError: As for `open_file`, where it is opened.
    """
    with ExitStack() as stack:
        try:
            name = os.fspath(path)
            name.encode()
        except UnicodeEncodeError:
            name = f"/dev/fd/{stack.enter_context(open_file(path)).fileno()}"
        yield name


def read_whole(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        OSError: As for `open_file`, or it is larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, {most:,} at most are read", str(path))
        return file.read()


def read_bytes_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, one after the other.

    Raises:
        OSError: As for `open_file`, or a line is longer than `LONGEST_LINE`.
    """
    with open_file(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise OSError(errno.EFBIG, f"line {number} is longer than {LONGEST_LINE:,} bytes", str(path))
            yield line
