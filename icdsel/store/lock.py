"""Locks between processes. The operating system releases them when the process ends, however it ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from icdsel.console import note, warn
from icdsel.errors import UserError
from icdsel.store.files import make_folder, naming


@contextmanager
def locked(path: Path, name: str, error: type[UserError] | None = None, quiet: bool = False) -> Iterator[None]:
    """Holds the lock of a result, the file `.NAME.lock` beside it, which holds the name of the owning process.

    The file is never removed: a process could otherwise hold the lock of a file that another one has replaced. On file
    systems without locks there is a warning, and no protection.

    Args:
        path: The result, a file or folder that need not exist.
        name: What it is called in messages.
        error: Raised if another process holds the lock; None waits for that process instead.
        quiet: Show neither note nor warning; for caches, whose locks are held for milliseconds.

    Raises:
        UserError: of the class `error`; the message names the owner.
    """
    make_folder(path.parent)
    lock_file = path.with_name(f".{path.name}.lock")
    with lock_file.open("a+b", buffering=0) as file:
        try:
            acquired = lock_descriptor(file.fileno(), blocking=False)
        except OSError as problem:
            if not quiet:
                warn(
                    f"{path.parent} does not support locks ({problem.strerror}): make sure that no other process "
                    f"writes {name}"
                )
            acquired = True
        if not acquired:
            file.seek(0)
            owner = file.read(200).decode(errors="replace").strip() or "another process"
            if error is not None:
                raise error(
                    f"{name} is being written by {owner}. Wait until it is done and run the command again, or write "
                    "elsewhere (--results-dir, --run, --output)."
                )
            if not quiet:
                note(f"{name}: waiting for {owner}, which is creating the same result")
            lock_descriptor(file.fileno())
        with naming(lock_file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
