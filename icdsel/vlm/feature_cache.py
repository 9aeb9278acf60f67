"""Visual features by image: made once while memory, then disk, has room for them; read from files by threads."""

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from icdsel.console import warn
from icdsel.data.images import ImageError
from icdsel.errors import UserError, of_system
from icdsel.store.files import digest_of, write_bytes
from icdsel.store.reading import in_utf_8

Features = tuple[Tensor, tuple[int, int]]
"""Visual tokens (T, d) of an image, and their grid (rows, columns)."""

THREADS = min(8, os.cpu_count() or 1)
AHEAD = 128  # images that are read before they are needed, at most
TOGETHER = 16  # images that a thread reads at once


@dataclass(frozen=True)
class Spill:
    """Where features go that memory has no room for.

    Attributes:
        folder: The folder; it serves later runs too.
        budget_bytes: What is written there at most.
        name: Of the model and all else that decides the features of an image.
    """

    folder: Path
    budget_bytes: int
    name: str


class FeatureCache:
    """Visual features by image, least recently used first out when the memory is full.

    Args:
        prepare: Reads images as the model takes them, each alone; what cannot be read is an OSError or ValueError in
            its place. Called in threads.
        encode: Makes the features of prepared images.
        budget_bytes: Memory for features that are not needed at the moment.
        batch: Images that are encoded at once.
        spill: Where features go that leave the memory; None forgets them.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Path]], list[Any]],
        encode: Callable[[Sequence[Any]], list[Features]],
        budget_bytes: int,
        batch: int = 64,
        spill: Spill | None = None,
    ) -> None:
        self._prepare, self._encode, self._budget, self._batch = prepare, encode, budget_bytes, batch
        self._kept: OrderedDict[Path, Tensor] = OrderedDict()
        self._grids: dict[Path, tuple[int, int]] = {}
        self._size = 0
        self._threads = ThreadPoolExecutor(THREADS)
        self._read_ahead: dict[Path, Future[dict[Path, Any]]] = {}
        self._spill = spill
        self._spilled = sum(path.stat().st_size for path in spill.folder.glob("*.safetensors")) if spill else 0
        self.broken: dict[Path, str] = {}
        """Images that cannot be read, and why; the reason names the file."""
        self.lacked_memory: set[Path] = set()
        """Those of them for which memory did not suffice: `load` tries them anew."""
        self.hung: set[Path] = set()
        """Those of them that took too long; each is waited for only once."""
        self.encoded = 0
        """Images that went through the vision tower, again-encoded ones included."""
        self.encoded_again = 0

    def load(self, paths: Iterable[Path]) -> None:
        """Make sure that the features of `paths` are there; images that cannot be read go into `broken`."""
        asked = dict.fromkeys(paths)
        for path in self.lacked_memory & asked.keys():
            del self.broken[path]
        self.lacked_memory -= asked.keys()
        wanted = [path for path in asked if path not in self.broken]
        for path in wanted:
            if path in self._kept:
                self._kept.move_to_end(path)
        missing = deque(path for path in wanted if path not in self._kept and not self._unspill(path))
        while missing:
            self.read_ahead(missing)
            batch = [missing.popleft() for _ in range(min(self._batch, len(missing)))]
            for path, (features, grid) in self._made(batch):
                self.encoded_again += path in self._grids
                self.encoded += 1
                self._keep(path, features.clone(), grid)
        needed = set(wanted)
        for path in list(self._kept):
            if self._size <= self._budget:
                break
            if path not in needed:
                features = self._kept.pop(path)
                self._size -= features.nbytes
                self._write(path, features)

    def read_ahead(self, paths: Iterable[Path]) -> None:
        """Begin to read the first of `paths` that will have to be encoded, in threads."""
        known = (self._read_ahead.keys(), self._kept.keys(), self.broken.keys())
        fresh = (path for path in paths if not any(path in held for held in known))
        group = list(islice(fresh, max(0, AHEAD - len(self._read_ahead))))
        for at in range(0, len(group), TOGETHER):
            self._submit(group[at : at + TOGETHER])

    def _submit(self, paths: Sequence[Path]) -> None:
        reading = self._threads.submit(lambda: dict(zip(paths, self._prepare(paths), strict=True)))
        self._read_ahead |= dict.fromkeys(paths, reading)

    def clear(self) -> None:
        """Forget all features and counts."""
        self._kept.clear()
        self._grids.clear()
        self._size = self.encoded = self.encoded_again = 0

    def shortage(self) -> str | None:
        """What to tell of images that went through the vision tower more than once; None where there are none."""
        if not self.encoded_again:
            return None
        return (
            f"{self.encoded_again} of {self.encoded} images were encoded again, as the cache had let them go: raise "
            f"--image-cache-mb, or name a folder with --image-cache-dir"
        )

    def features(self, path: Path) -> Tensor:
        """Visual tokens (T, d) of an image that was loaded."""
        return self._kept[path]

    def grid(self, path: Path) -> tuple[int, int]:
        """Rows and columns of an image's visual tokens."""
        return self._grids[path]

    def _keep(self, path: Path, features: Tensor, grid: tuple[int, int]) -> None:
        self._kept[path], self._grids[path] = features, grid
        self._size += features.nbytes

    def _made(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Features]]:
        prepared: dict[Path, Any] = {}
        for path in paths:
            if path not in self._read_ahead:
                self._submit([path])
            found = self._read_ahead.pop(path).result()[path]
            if isinstance(found, Exception):
                self._break(path, found)
            else:
                prepared[path] = found
        yield from self._encode_each(list(prepared), prepared)

    def _encode_each(self, paths: Sequence[Path], prepared: dict[Path, Any]) -> Iterator[tuple[Path, Features]]:
        if not paths:
            return
        try:
            made = self._encode([prepared[path] for path in paths])
            if not all(features.isfinite().all() for features, _ in made):
                raise ValueError("the model gives NaN or infinite values for it")
            yield from zip(paths, made, strict=True)
        except UserError:  # of no single image, and with its remedy
            raise
        except Exception as error:  # noqa: BLE001 - what the model or the memory cannot take: find which
            if len(paths) == 1:
                self._break(paths[0], error)
                return
            for path in paths:
                yield from self._encode_each([path], prepared)

    def _break(self, path: Path, error: Exception) -> None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            self.lacked_memory.add(path)
        elif isinstance(error, TimeoutError):
            self.hung.add(path)
        self.broken[path] = str(error) if isinstance(error, ImageError) else f"{path}: {type(error).__name__}: {error}"

    # ---- on disk ----

    def _file(self, path: Path) -> Path | None:
        """Where the features of an image as it is now are spilled to."""
        if self._spill is None or not path.exists():
            return None
        now = path.stat()
        key = f"{self._spill.name}\0{path.absolute()}\0{now.st_size}\0{now.st_mtime_ns}"
        return self._spill.folder / f"{digest_of(key)[:32]}.safetensors"

    def _write(self, path: Path, features: Tensor) -> None:
        file = self._file(path)
        if self._spill is None or file is None or file.exists():
            return
        if self._spilled + features.nbytes <= self._spill.budget_bytes:
            rows, columns = self._grids[path]
            try:
                write_bytes(file, save({f"{rows}x{columns}": features.cpu()}))
            except OSError as error:  # a full disk: it serves to save time alone
                warn(f"visual features are kept on disk no longer: {of_system(error)}")
                self._spill = None
            self._spilled += features.nbytes

    def _unspill(self, path: Path) -> bool:
        """Whether the features of an image could be taken back from disk."""
        file = self._file(path)
        if file is None or not file.is_file():
            return False
        try:
            with in_utf_8(file) as name:
                ((grid, features),) = load_file(name).items()
            rows, columns = map(int, grid.split("x"))
            if features.ndim != 2 or min(rows, columns) < 1 or len(features) != rows * columns:
                raise ValueError("the tokens are not those of the grid")
            if not features.isfinite().all():
                raise ValueError("there are tokens that are not finite")
        except (SafetensorError, ValueError, OSError):
            file.unlink(missing_ok=True)  # damaged: it is made anew
            return False
        self._keep(path, features, (rows, columns))
        return True
