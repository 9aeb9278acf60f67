"""One process writes a result at a time: a lock of the operating system, which ends with the process that holds it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icdsel.console import warn
from icdsel.errors import UserError

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
    result.parent.mkdir(parents=True, exist_ok=True)
    path = result.with_name(f".{result.name}.lock")
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(held, 200, 0).decode(errors="replace").strip() or "another process"
            raise error(
                f"{what} is being written by {owner}. Wait until it is done and give the command again, or write "
                f"elsewhere (--results-dir, --run, --output)."
            ) from None
        except OSError as failure:
            if failure.errno not in _UNSUPPORTED:
                raise
            warn(f"{path.parent} knows no locks ({failure.strerror}): see that no other process writes {what}")
        os.ftruncate(held, 0)
        os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(held)  # which ends the lock
