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


@dataclass(frozen=True)
class Alone:
    """An image as it is shown in a prompt without other images, for families in which that changes its features."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Shown = Path | Alone
"""An image as it is shown in a prompt."""


def path_of(image: Shown) -> Path:
    """The file of an image."""
    return image.path if isinstance(image, Alone) else image


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
        prepare: Callable[[Sequence[Shown]], list[Any]],
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
        self._features: OrderedDict[Shown, Tensor] = OrderedDict()
        self._grids: dict[Shown, Grid] = {}
        self._size = 0  # bytes
        self._threads = ThreadPoolExecutor(THREADS)
        self._being_read: dict[Shown, Future[dict[Shown, Any]]] = {}
        self._disk = disk
        self._size_on_disk = sum(path.stat().st_size for path in disk.folder.glob("*.safetensors")) if disk else 0
        self.broken: dict[Shown, str] = {}
        self.lacked_memory: set[Shown] = set()
        self.timed_out: set[Shown] = set()
        self.encoded = 0
        self.encoded_again = 0

    def load(self, images: Iterable[Shown]) -> None:
        """Makes the features of `images` available until the next `load`; images that fail are added to `broken`."""
        requested = dict.fromkeys(images)
        for image in self.lacked_memory & requested.keys():
            del self.broken[image]
        self.lacked_memory -= requested.keys()
        needed = [image for image in requested if image not in self.broken]
        for image in needed:
            if image in self._features:
                self._features.move_to_end(image)
        missing = deque(image for image in needed if image not in self._features and not self._read_from_disk(image))
        while missing:
            self.read_ahead(missing)
            batch = [missing.popleft() for _ in range(min(self._batch, len(missing)))]
            for image, (features, grid) in self._computed(batch):
                self.encoded_again += image in self._grids
                self.encoded += 1
                self._keep(image, features.clone(), grid)  # a view would keep the whole batch alive
        self._shrink(keep=set(needed))

    def _shrink(self, keep: set[Shown]) -> None:
        for image in list(self._features):
            if self._size <= self._budget:
                break
            if image not in keep:
                features = self._features.pop(image)
                self._size -= features.nbytes
                self._write_to_disk(image, features)

    def read_ahead(self, images: Iterable[Shown]) -> None:
        """Starts to read, in threads, the first of those `images` that have yet to be encoded."""
        known = (self._being_read.keys(), self._features.keys(), self.broken.keys())
        unknown = (image for image in images if not any(image in group for group in known) and not self._on_disk(image))
        first = list(islice(unknown, max(0, self._ahead - len(self._being_read))))
        together = max(1, min(READ_TOGETHER, self._ahead // THREADS))
        for start in range(0, len(first), together):
            self._submit(first[start : start + together])

    def _submit(self, images: Sequence[Shown]) -> None:
        reading = self._threads.submit(lambda: dict(zip(images, self._prepare(images), strict=True)))
        self._being_read |= dict.fromkeys(images, reading)

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

    def features(self, image: Shown) -> Tensor:
        """Visual tokens (T, d) of a loaded image."""
        return self._features[image]

    def grid(self, image: Shown) -> Grid:
        """The grid of an image's visual tokens."""
        return self._grids[image]

    def _keep(self, image: Shown, features: Tensor, grid: Grid) -> None:
        self._features[image], self._grids[image] = features, grid
        self._size += features.nbytes

    def _computed(self, images: Sequence[Shown]) -> Iterator[tuple[Shown, Features]]:
        prepared: dict[Shown, Any] = {}
        for image in images:
            if image not in self._being_read:
                self._submit([image])
            inputs = self._being_read.pop(image).result()[image]
            if isinstance(inputs, Exception):
                self._mark_broken(image, inputs)
            else:
                prepared[image] = inputs
        yield from self._encoded(list(prepared), prepared)

    def _encoded(self, images: Sequence[Shown], prepared: dict[Shown, Any]) -> Iterator[tuple[Shown, Features]]:
        if not images:
            return
        try:
            encoded = self._encode([prepared[image] for image in images])
            if not all(features.isfinite().all() for features, _ in encoded):
                raise ValueError("the model computes NaN or infinite values for it")
            yield from zip(images, encoded, strict=True)
        except UserError:  # not caused by an image; the message tells the user what to do
            raise
        except Exception as error:  # noqa: BLE001 - any failure: encode one by one to find the image that causes it
            if len(images) == 1:
                self._mark_broken(images[0], error)
                return
            for image in images:
                yield from self._encoded([image], prepared)

    def _mark_broken(self, image: Shown, error: Exception) -> None:
        if lacks_memory(error):
            self.lacked_memory.add(image)
        elif isinstance(error, TimeoutError):
            self.timed_out.add(image)
        self.broken[image] = (
            str(error) if isinstance(error, ImageError) else f"{image}: {type(error).__name__}: {error}"
        )

    # ---- on disk ----

    def _file(self, image: Shown) -> Path | None:
        """The file for an image's features, named after the image's current size and modification time."""
        path, kind = path_of(image), "alone" if isinstance(image, Alone) else ""
        if self._disk is None or not path.exists():
            return None
        now = path.stat()
        key = f"{self._disk.key}{kind}\0{path.absolute()}\0{now.st_size}\0{now.st_mtime_ns}"
        return self._disk.folder / f"{digest_of(key)[:32]}.safetensors"

    def _on_disk(self, image: Shown) -> bool:
        file = self._file(image)
        return file is not None and file.is_file()

    def _write_to_disk(self, image: Shown, features: Tensor) -> None:
        file = self._file(image)
        if self._disk is None or file is None or file.exists():
            return
        if self._size_on_disk + features.nbytes <= self._disk.budget_bytes:
            rows, columns = self._grids[image]
            try:
                write_bytes(file, save({f"{rows}x{columns}": features.cpu()}))
            except OSError as error:  # such as a full disk; the cache only saves time, so the run continues without it
                warn(f"visual features are no longer cached on disk: {of_system(error)}")
                self._disk = None
            self._size_on_disk += features.nbytes

    def _read_from_disk(self, image: Shown) -> bool:
        """Loads an image's features from disk into memory if possible, and returns whether; removes a damaged file."""
        file = self._file(image)
        if file is None or not file.is_file():
            return False
        try:
            with in_utf_8(file) as name:
                ((grid, features),) = load_file(name).items()
            rows, columns = map(int, grid.split("x"))
            fits = features.ndim == 2 and min(rows, columns) >= 0 and max(rows, 1) * max(columns, 1) <= len(features)
            if not fits or not 0 < len(features) == self._count((rows, columns)):
                raise ValueError("the tokens do not match the grid")
            if not features.isfinite().all():
                raise ValueError("some tokens are not finite")
        except (SafetensorError, ValueError, OSError):
            file.unlink(missing_ok=True)
            return False
        self._keep(image, features, (rows, columns))
        return True
