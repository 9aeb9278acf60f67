"""Watches what a process does to files below a folder: creations, writes, syncs, renamings, removals.

Nothing is faked: the operations are done as they are, on the level of system calls. The watcher is called before and
after each of them.
"""

import builtins
import io
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Operation:
    """One call: its kind, the path (the new one of a renaming), and offset and content of a write."""

    kind: str
    path: Path
    source: Path | None = None
    at: int = 0
    content: bytes = b""


class Watcher(Protocol):
    def before(self, operation: Operation) -> None: ...

    def after(self, operation: Operation) -> None: ...


def watch(folder: Path, watcher: Watcher) -> None:
    """Calls `watcher` for every operation of this process below `folder`, until the process ends."""
    folder = folder.resolve()
    lock = threading.RLock()  # TensorBoard writes from its own thread

    def concerns(path: Path) -> bool:
        return path == folder or folder in path.parents

    @contextmanager
    def watched(kind: str, path: Path, **more: Any) -> Any:
        if not concerns(path):
            yield
            return
        with lock:
            watcher.before(Operation(kind, path, **more))
            yield
            watcher.after(Operation(kind, path, **more))

    def named(path: Any, dir_fd: int | None = None) -> Path:
        base = Path.cwd() if dir_fd is None else of_descriptor(dir_fd)
        return Path(os.path.normpath(base / os.fsdecode(path)))

    class Raw(io.FileIO):
        """An unbuffered file: what is written here has left the process."""

        def write(self, content: Any) -> int:
            written = bytes(content)
            at = os.lseek(self.fileno(), 0, os.SEEK_END if "a" in self.mode else os.SEEK_CUR)
            with watched("write", of_descriptor(self.fileno()), at=at, content=written):
                return super().write(written) or 0

        def truncate(self, size: int | None = None) -> int:
            with watched("truncate", of_descriptor(self.fileno()), at=self.tell() if size is None else size):
                return super().truncate(size)

    open_file, open_descriptor = io.open, os.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **named_args: Any) -> Any:
        if not set("wax+") & set(mode):
            return open_file(file, mode, buffering, *args, **named_args)
        values = dict(zip(("encoding", "errors", "newline", "closefd", "opener"), args, strict=False)) | named_args
        plain = mode.replace("b", "").replace("t", "")
        how = {name: values.pop(name) for name in ("closefd", "opener") if name in values}
        if isinstance(file, int) or "opener" in how:  # `opened_descriptor` has called the watcher
            raw = Raw(file, plain, **how)
        else:
            path = named(file)
            with watched("create" if not path.exists() else "empty" if "w" in mode else "open", path):
                raw = Raw(os.fspath(file), plain, **how)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        return kind(raw) if "b" in mode else io.TextIOWrapper(kind(raw), **values)

    def opened_descriptor(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if not flags & (WRITING | os.O_CREAT):
            return open_descriptor(path, flags, mode, dir_fd=dir_fd)
        name = named(path, dir_fd)
        with watched("open" if name.exists() else "create", name):
            return open_descriptor(path, flags, mode, dir_fd=dir_fd)

    def on_descriptor(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(descriptor: int, *args: Any) -> Any:
            more: dict[str, Any] = {}
            if kind == "write":
                content, at = (*args, None)[:2]
                at = os.lseek(descriptor, 0, os.SEEK_CUR) if at is None else at
                more = {"content": bytes(content), "at": at}
            elif kind == "truncate":
                more = {"at": args[0]}
            with watched(kind, of_descriptor(descriptor), **more):
                return call(descriptor, *args)

        return run

    def on_path(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> Any:
            with watched(kind, named(path, dir_fd)):
                return call(path, *args, **more) if dir_fd is None else call(path, *args, dir_fd=dir_fd, **more)

        return run

    def renaming(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(source: Any, target: Any) -> Any:
            with watched("rename", named(target), source=named(source)):
                return call(source, target)

        return run

    def sync() -> None:
        with watched("sync all", folder):
            flush_all()

    flush_all = os.sync
    io.open = builtins.open = opened  # type: ignore[assignment]
    os.open = opened_descriptor  # type: ignore[assignment]
    os.sync = sync
    for name, kind in (("write", "write"), ("pwrite", "write"), ("ftruncate", "truncate"), ("fsync", "sync")):
        setattr(os, name, on_descriptor(kind, getattr(os, name)))
    for name, kind in (("mkdir", "make folder"), ("unlink", "remove"), ("remove", "remove"), ("rmdir", "remove")):
        setattr(os, name, on_path(kind, getattr(os, name)))
    for name in ("rename", "replace"):
        setattr(os, name, renaming(getattr(os, name)))


def of_descriptor(descriptor: int) -> Path:
    """The path of an open file."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()
