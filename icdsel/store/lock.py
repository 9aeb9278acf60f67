"""One process writes a result at a time: a lock of the operating system, which ends with the process that holds it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from icdsel.console import note, warn
from icdsel.errors import UserError
from icdsel.store.files import make_folder, naming, open_plain

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def locked(result: Path, what: str, error: type[UserError]) -> Iterator[None]:
    """Holds the lock of `result`, a file or folder that need not exist, in `.NAME.lock` beside it.

    The file stays when the lock is gone: removing it would let two processes lock two files of one name. File systems
    without locks are warned about.

    Args:
        result: What is written.
        what: Its name in messages.
        error: What is raised where another process holds the lock.

    Raises:
        UserError: Another process holds the lock; the message names it.
    """
    make_folder(result.parent)
    path = result.with_name(f".{result.name}.lock")
    held = open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error(
                f"{what} is being written by {_owner(held)}. Wait until it is done and give the command again, or "
                f"write elsewhere (--results-dir, --run, --output)."
            ) from None
        except OSError as failure:
            if failure.errno not in _UNSUPPORTED:
                raise
            warn(f"{path.parent} knows no locks ({failure.strerror}): see that no other process writes {what}")
        with naming(path):
            _sign(held)
        yield
    finally:
        os.close(held)  # which ends the lock


@contextmanager
def waiting(result: Path, what: str) -> Iterator[None]:
    """Holds the lock of `result` as `locked` does, once nobody else has it; no lock is no reason to fail.

    For what several processes may need and any of them can make, such as a cache: who waited looks again whether it
    is there.

    Args:
        result: What is written.
        what: Its name in messages.
    """
    path = result.with_name(f".{result.name}.lock")
    try:
        make_folder(path.parent)
        held = open_plain(path, os.O_RDWR | os.O_CREAT)
    except OSError:  # a folder that cannot be written: whoever has something to write there will say so
        yield
        return
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"{what}: waiting for {_owner(held)}, which makes the same")
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as failure:
            if failure.errno not in _UNSUPPORTED:
                raise
        with suppress(OSError):  # a full disk: whoever has something to write there will say so
            _sign(held)
        yield
    finally:
        os.close(held)


def _sign(held: int) -> None:
    """Writes down who holds the lock."""
    os.ftruncate(held, 0)
    os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _owner(held: int) -> str:
    return os.pread(held, 200, 0).decode(errors="replace").strip() or "another process"
