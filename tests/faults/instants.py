"""Ends of a process at a chosen operation, and what a disk would hold at each."""

import multiprocessing.util
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .operations import Operation, watch

Image = dict[str, bytes | None]
"""What a folder holds: contents by path below it; None is an empty folder."""
Kept = Literal["killed", "lost", "hollow"]
"""What is there after an end: all that was done ("killed"); of what was not synced nothing ("lost"), or the names
without the contents ("hollow")."""


@dataclass
class EndAt:
    """Has this process get a signal at its `number`-th operation below a folder, before it or half way through."""

    folder: Path
    number: int
    by: signal.Signals = signal.SIGKILL
    half: bool = False
    on: str = ""
    """Counts operations on files alone whose names end so."""
    seen: int = 0

    def __call__(self) -> None:
        watch(self.folder, self)

    def before(self, operation: Operation) -> None:
        self.seen += operation.path.name.endswith(self.on)
        if self.seen == self.number:
            if self.half and operation.kind == "write":
                held = os.open(operation.path, os.O_WRONLY)
                os.lseek(held, operation.at, os.SEEK_SET)
                os.write(held, operation.content[: len(operation.content) // 2])
            os.kill(os.getpid(), self.by)

    def after(self, operation: Operation) -> None:
        pass


@dataclass
class _File:
    now: bytes = b""
    synced: bytes = b""


@dataclass
class _Folder:
    now: "dict[str, _File | _Folder]" = field(default_factory=dict)
    synced: "dict[str, _File | _Folder]" = field(default_factory=dict)


@dataclass
class Disk:
    """Follows the operations below a folder, and writes down what would be there after an end at each of them.

    As strict as the standards allow: a content is on the disk once its file is synced, a name once its folder is.
    """

    folder: Path
    written_to: Path
    only: frozenset[int] = frozenset()
    """Operations whose images are kept; all by default."""
    images: list[tuple[int, str, Kept, Image]] = field(default_factory=list)
    broken_rules: list[str] = field(default_factory=list)

    def __call__(self) -> None:
        self.folder = self.folder.resolve()
        self._tree, self._count, self._seen = _Folder(), 0, set[frozenset[tuple[str, int]]]()
        for path in sorted(self.folder.rglob("*")):
            self._parent(path).now[path.name] = _Folder() if path.is_dir() else _File(path.read_bytes())
        _sync_all(self._tree)
        watch(self.folder, self)
        multiprocessing.util.Finalize(None, self.write, exitpriority=0)  # type: ignore[attr-defined]

    def before(self, operation: Operation) -> None:
        self._count += 1
        told = f"{operation.kind} {operation.path.relative_to(self.folder)}"
        self._keep(told)
        if operation.kind == "write":
            file, half = self._file(operation.path), operation.content[: len(operation.content) // 2]
            whole = file.now
            file.now = whole[: operation.at] + half + whole[operation.at + len(half) :]
            self._keep(f"half of {told}")
            file.now = whole
        if operation.source is not None:
            moved = self._at(operation.source)
            if isinstance(moved, _File) and moved.synced != moved.now:
                self.broken_rules.append(f"{told}: its content is not synced")

    def after(self, operation: Operation) -> None:
        path, kind = operation.path, operation.kind
        names = self._parent(path).now if path != self.folder else {}
        if kind in ("create", "empty"):
            file = names.setdefault(path.name, _File())
            assert isinstance(file, _File)
            file.now = b""
        elif kind in ("write", "truncate"):
            self._file(path).now = path.read_bytes()
        elif kind == "sync":
            held = self._at(path)
            held.synced = held.now if isinstance(held, _File) else dict(held.now)  # type: ignore[assignment]
        elif kind == "sync all":
            _sync_all(self._tree)
        elif kind == "make folder":
            names[path.name] = _Folder()
        elif kind == "remove":
            names.pop(path.name)
        elif operation.source is not None:
            names[path.name] = self._parent(operation.source).now.pop(operation.source.name)

    def write(self) -> None:
        self._count += 1
        self._keep("the end")
        self.written_to.write_bytes(pickle.dumps((self._count, self.images, self.broken_rules)))

    def _at(self, path: Path) -> _File | _Folder:
        held: _File | _Folder = self._tree
        for name in path.relative_to(self.folder).parts:
            assert isinstance(held, _Folder)
            held = held.now[name]
        return held

    def _parent(self, path: Path) -> _Folder:
        held = self._at(path.parent)
        assert isinstance(held, _Folder)
        return held

    def _file(self, path: Path) -> _File:
        held = self._at(path)
        assert isinstance(held, _File)
        return held

    def _keep(self, told: str) -> None:
        if self.only and self._count not in self.only:
            return
        for kept in ("killed", "hollow", "lost"):
            image = dict(_held(self._tree, kept))
            key = frozenset((name, hash(content)) for name, content in image.items())
            if key not in self._seen:
                self._seen.add(key)
                self.images.append((self._count, told, kept, image))


def _held(folder: _Folder, kept: Kept, name: str = "") -> Iterator[tuple[str, bytes | None]]:
    entries = folder.synced if kept == "lost" else folder.now
    if not entries and name:
        yield name, None
    for own, held in entries.items():
        if isinstance(held, _Folder):
            yield from _held(held, kept, f"{name}{own}/")
        else:
            yield f"{name}{own}", held.now if kept == "killed" else held.synced


def _sync_all(folder: _Folder) -> None:
    folder.synced = dict(folder.now)
    for held in folder.now.values():
        if isinstance(held, _Folder):
            _sync_all(held)
        else:
            held.synced = held.now


def restore(image: Image, folder: Path) -> None:
    """Makes a folder hold what an image says."""
    for name, content in image.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
