"""Opens files from untrusted sources: only regular files, and reads no more of them than expected."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

LONGEST_LINE = 64 * 2**20
"""The maximum length of a line in bytes: some hundred times the longest in RL data of a large dataset."""


def is_path(text: str) -> bool:
    """Whether a text can be a file's path on any machine; a longer one would raise other errors than a missing file."""
    names = text.encode(errors="replace").split(b"/")
    return "\0" not in text and sum(map(len, names)) < 2048 and max(map(len, names)) <= 255


def why_no_file(path: Path) -> str:
    """What is wrong with a path that is not a file; the end of a sentence that begins with the path."""
    if path.is_dir():
        return "is a folder, not a file"
    return "is a pipe or a device, not a file" if path.exists() else "does not exist"


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading.

    Raises:
        OSError: It cannot be opened, or is not a regular file: a pipe would block its reader, a device never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block without it
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return os.fdopen(descriptor, "rb")


@contextmanager
def in_utf_8(path: Path) -> Iterator[str]:
    """A file name in UTF-8, for libraries that accept no other: the file's own, else that of an open descriptor.

    Raises:
        OSError: As for `open_file`, if it has to be opened.
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
        OSError: As for `open_file`, or the file is larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, the maximum is {most:,}", str(path))
        return file.read()


def read_bytes_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, with their line ends.

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
