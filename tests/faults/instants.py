"""Ending a process at a chosen operation on files, and what a disk holds after a power cut at each of them."""

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
"""The content of a folder: that of files by path; None is an empty folder."""
Kept = Literal["killed", "lost", "hollow"]
"""What survives: everything ("killed"), or what was synced alone ("lost"), or that and all other names ("hollow")."""


@dataclass
class EndAt:
    """Sends this process a signal before its `number`-th operation below a folder, or half-way through a write."""

    folder: Path
    number: int
    by: signal.Signals = signal.SIGKILL
    half: bool = False
    on: str = ""
    """Only operations on files whose names end like this are counted."""
    seen: int = 0

    def __call__(self) -> None:
        watch(self.folder, self)

    def before(self, operation: Operation) -> None:
        self.seen += operation.path.name.endswith(self.on)
        if self.seen == self.number:
            if self.half and operation.kind == "write":
                descriptor = os.open(operation.path, os.O_WRONLY)
                os.lseek(descriptor, operation.at, os.SEEK_SET)
                os.write(descriptor, operation.content[: len(operation.content) // 2])
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
    """Follows the operations below a folder, and records what a disk holds after a power cut at each of them.

    As strict as the standards allow: a content survives once its file is synced, a name once its folder is.
    """

    folder: Path
    written_to: Path
    only: frozenset[int] = frozenset()
    """The operations whose images are kept; by default all."""
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
        label = f"{operation.kind} {operation.path.relative_to(self.folder)}"
        self._keep(label)
        if operation.kind == "write":
            file, half = self._file(operation.path), operation.content[: len(operation.content) // 2]
            whole = file.now
            file.now = whole[: operation.at] + half + whole[operation.at + len(half) :]
            self._keep(f"half of {label}")
            file.now = whole
        if operation.source is not None:
            moved = self._at(operation.source)
            if isinstance(moved, _File) and moved.synced != moved.now:
                self.broken_rules.append(f"{label}: its content is not synced")

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
            entry = self._at(path)
            entry.synced = entry.now if isinstance(entry, _File) else dict(entry.now)  # type: ignore[assignment]
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
        self._seen.clear()
        self._keep("the end")
        self.written_to.write_bytes(pickle.dumps((self._count, self.images, self.broken_rules)))

    def _at(self, path: Path) -> _File | _Folder:
        entry: _File | _Folder = self._tree
        for name in path.relative_to(self.folder).parts:
            assert isinstance(entry, _Folder)
            entry = entry.now[name]
        return entry

    def _parent(self, path: Path) -> _Folder:
        entry = self._at(path.parent)
        assert isinstance(entry, _Folder)
        return entry

    def _file(self, path: Path) -> _File:
        entry = self._at(path)
        assert isinstance(entry, _File)
        return entry

    def _keep(self, label: str) -> None:
        if self.only and self._count not in self.only:
            return
        for kept in ("killed", "hollow", "lost"):
            image = dict(_surviving(self._tree, kept))
            key = frozenset((name, hash(content)) for name, content in image.items())
            if key not in self._seen:
                self._seen.add(key)
                self.images.append((self._count, label, kept, image))


def _surviving(folder: _Folder, kept: Kept, name: str = "") -> Iterator[tuple[str, bytes | None]]:
    entries = folder.synced if kept == "lost" else folder.now
    if not entries and name:
        yield name, None
    for own, entry in entries.items():
        if isinstance(entry, _Folder):
            yield from _surviving(entry, kept, f"{name}{own}/")
        else:
            yield f"{name}{own}", entry.now if kept == "killed" else entry.synced


def _sync_all(folder: _Folder) -> None:
    folder.synced = dict(folder.now)
    for entry in folder.now.values():
        if isinstance(entry, _Folder):
            _sync_all(entry)
        else:
            entry.synced = entry.now


def restore(image: Image, folder: Path) -> None:
    """Fills a folder with the content of an image."""
    for name, content in image.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
