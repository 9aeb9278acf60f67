"""A cache of visual features in memory and, when memory is full, on disk."""

import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from icdsel.console import warn
from icdsel.data.images import ImageError
from icdsel.errors import UserError, lacks_memory, of_system
from icdsel.store.files import digest_of, write_bytes
from icdsel.store.reading import in_utf_8

Grid = tuple[int, int]
"""How the visual tokens of an image are laid out: rows and columns, or what else decides it for a family of models."""
Features = tuple[Tensor, Grid]
"""Visual tokens (T, d) of an image, and their grid; further columns are for inner layers of the language model."""

THREADS = min(8, os.cpu_count() or 1)
READ_AHEAD = 128  # images
READ_TOGETHER = 16  # images per task of a thread


@dataclass(frozen=True)
class DiskCache:
    """The disk cache for features that do not fit in memory.

    Attributes:
        folder: The folder; later runs reuse it.
        budget_bytes: Its maximum size.
        key: Identifies the model and everything else that determines the features of an image.
    """

    folder: Path
    budget_bytes: int
    key: str


class FeatureCache:
    """Visual features by image; when memory is full, the least recently used ones are evicted first.

    Args:
        prepare: Reads images and converts them to inputs of `encode`; for an image that cannot be read it returns an
            exception in its place. Called in threads.
        encode: Computes the features of prepared images.
        budget_bytes: Memory limit. Features that are currently needed may exceed it.
        batch: Images that are encoded at once.
        disk: Stores evicted features; None discards them.
        count: The number of visual tokens of an image with a grid; features from disk that have others are damaged.
        ahead: Maximum number of images that are read before they are needed.

    Attributes:
        broken: Images without features, and why; the reason names the file.
        lacked_memory: Those in `broken` for which memory was insufficient. `load` tries them again.
        timed_out: Those in `broken` that took too long. They are not tried again.
        encoded: How many images were encoded, repetitions included.
        encoded_again: How many of these were repetitions.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Path]], list[Any]],
        encode: Callable[[Sequence[Any]], list[Features]],
        budget_bytes: int,
        batch: int = 64,
        disk: DiskCache | None = None,
        count: Callable[[Grid], int] = math.prod,
        ahead: int = READ_AHEAD,
    ) -> None:
        self._ahead = ahead
        self._count = count
        self._prepare, self._encode, self._budget, self._batch = prepare, encode, budget_bytes, batch
        self._features: OrderedDict[Path, Tensor] = OrderedDict()
        self._grids: dict[Path, Grid] = {}
        self._size = 0  # bytes
        self._threads = ThreadPoolExecutor(THREADS)
        self._being_read: dict[Path, Future[dict[Path, Any]]] = {}
        self._disk = disk
        self._size_on_disk = sum(path.stat().st_size for path in disk.folder.glob("*.safetensors")) if disk else 0
        self.broken: dict[Path, str] = {}
        self.lacked_memory: set[Path] = set()
        self.timed_out: set[Path] = set()
        self.encoded = 0
        self.encoded_again = 0

    def load(self, paths: Iterable[Path]) -> None:
        """Makes the features of `paths` available until the next `load`; images that fail are added to `broken`."""
        requested = dict.fromkeys(paths)
        for path in self.lacked_memory & requested.keys():
            del self.broken[path]
        self.lacked_memory -= requested.keys()
        needed = [path for path in requested if path not in self.broken]
        for path in needed:
            if path in self._features:
                self._features.move_to_end(path)
        missing = deque(path for path in needed if path not in self._features and not self._read_from_disk(path))
        while missing:
            self.read_ahead(missing)
            batch = [missing.popleft() for _ in range(min(self._batch, len(missing)))]
            for path, (features, grid) in self._computed(batch):
                self.encoded_again += path in self._grids
                self.encoded += 1
                self._keep(path, features.clone(), grid)  # a view would keep the whole batch alive
        self._shrink(keep=set(needed))

    def _shrink(self, keep: set[Path]) -> None:
        for path in list(self._features):
            if self._size <= self._budget:
                break
            if path not in keep:
                features = self._features.pop(path)
                self._size -= features.nbytes
                self._write_to_disk(path, features)

    def read_ahead(self, paths: Iterable[Path]) -> None:
        """Starts to read, in threads, the first of those `paths` that have yet to be encoded."""
        known = (self._being_read.keys(), self._features.keys(), self.broken.keys())
        unknown = (path for path in paths if not any(path in group for group in known))
        first = list(islice(unknown, max(0, self._ahead - len(self._being_read))))
        together = max(1, min(READ_TOGETHER, self._ahead // THREADS))
        for start in range(0, len(first), together):
            self._submit(first[start : start + together])

    def _submit(self, paths: Sequence[Path]) -> None:
        reading = self._threads.submit(lambda: dict(zip(paths, self._prepare(paths), strict=True)))
        self._being_read |= dict.fromkeys(paths, reading)

    def clear(self) -> None:
        """Discards all features in memory and resets the counts."""
        self._features.clear()
        self._grids.clear()
        self._size = self.encoded = self.encoded_again = 0

    def shortage(self) -> str | None:
        """Advice to the user if images had to be encoded more than once, else None."""
        if not self.encoded_again:
            return None
        return (
            f"{self.encoded_again} of {self.encoded} images were encoded again, because the cache was too small: raise "
            f"--image-cache-mb, or set a folder with --image-cache-dir"
        )

    def features(self, path: Path) -> Tensor:
        """Visual tokens (T, d) of a loaded image."""
        return self._features[path]

    def grid(self, path: Path) -> Grid:
        """The grid of an image's visual tokens."""
        return self._grids[path]

    def _keep(self, path: Path, features: Tensor, grid: Grid) -> None:
        self._features[path], self._grids[path] = features, grid
        self._size += features.nbytes

    def _computed(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Features]]:
        prepared: dict[Path, Any] = {}
        for path in paths:
            if path not in self._being_read:
                self._submit([path])
            inputs = self._being_read.pop(path).result()[path]
            if isinstance(inputs, Exception):
                self._mark_broken(path, inputs)
            else:
                prepared[path] = inputs
        yield from self._encoded(list(prepared), prepared)

    def _encoded(self, paths: Sequence[Path], prepared: dict[Path, Any]) -> Iterator[tuple[Path, Features]]:
        if not paths:
            return
        try:
            encoded = self._encode([prepared[path] for path in paths])
            if not all(features.isfinite().all() for features, _ in encoded):
                raise ValueError("the model computes NaN or infinite values for it")
            yield from zip(paths, encoded, strict=True)
        except UserError:  # not caused by an image; the message tells the user what to do
            raise
        except Exception as error:  # noqa: BLE001 - any failure: encode one by one to find the image that causes it
            if len(paths) == 1:
                self._mark_broken(paths[0], error)
                return
            for path in paths:
                yield from self._encoded([path], prepared)

    def _mark_broken(self, path: Path, error: Exception) -> None:
        if lacks_memory(error):
            self.lacked_memory.add(path)
        elif isinstance(error, TimeoutError):
            self.timed_out.add(path)
        self.broken[path] = str(error) if isinstance(error, ImageError) else f"{path}: {type(error).__name__}: {error}"

    # ---- on disk ----

    def _file(self, path: Path) -> Path | None:
        """The file for an image's features, named after the image's current size and modification time."""
        if self._disk is None or not path.exists():
            return None
        now = path.stat()
        key = f"{self._disk.key}\0{path.absolute()}\0{now.st_size}\0{now.st_mtime_ns}"
        return self._disk.folder / f"{digest_of(key)[:32]}.safetensors"

    def _write_to_disk(self, path: Path, features: Tensor) -> None:
        file = self._file(path)
        if self._disk is None or file is None or file.exists():
            return
        if self._size_on_disk + features.nbytes <= self._disk.budget_bytes:
            rows, columns = self._grids[path]
            try:
                write_bytes(file, save({f"{rows}x{columns}": features.cpu()}))
            except OSError as error:  # such as a full disk; the cache only saves time, so the run continues without it
                warn(f"visual features are no longer cached on disk: {of_system(error)}")
                self._disk = None
            self._size_on_disk += features.nbytes

    def _read_from_disk(self, path: Path) -> bool:
        """Loads an image's features from disk into memory if possible, and returns whether; removes a damaged file."""
        file = self._file(path)
        if file is None or not file.is_file():
            return False
        try:
            with in_utf_8(file) as name:
                ((grid, features),) = load_file(name).items()
            rows, columns = map(int, grid.split("x"))
            if features.ndim != 2 or min(rows, columns) < 0 or not 0 < len(features) == self._count((rows, columns)):
                raise ValueError("the tokens do not match the grid")
            if not features.isfinite().all():
                raise ValueError("some tokens are not finite")
        except (SafetensorError, ValueError, OSError):
            file.unlink(missing_ok=True)
            return False
        self._keep(path, features, (rows, columns))
        return True
