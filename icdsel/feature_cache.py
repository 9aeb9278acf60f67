"""Visual features by image, within a budget of memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from icdsel.images import ImageError

Features = tuple[Tensor, tuple[int, int]]
"""Visual tokens (T, d) of an image, and their grid (rows, columns)."""


class FeatureCache:
    """Visual features by image, least recently used first out when the memory is full.

    Args:
        encode: Makes the features of images; raises OSError or ValueError where one of them cannot be read.
        budget_bytes: Memory for features that are not needed at the moment.
        batch: Images that are encoded at once.
    """

    def __init__(self, encode: Callable[[Sequence[Path]], list[Features]], budget_bytes: int, batch: int = 64) -> None:
        self._encode, self._budget, self._batch = encode, budget_bytes, batch
        self._kept: OrderedDict[Path, Tensor] = OrderedDict()
        self._grids: dict[Path, tuple[int, int]] = {}
        self._size = 0
        self.broken: dict[Path, str] = {}
        """Images that cannot be read, and why; the reason names the file."""
        self.encoded = 0
        """Images that went through the vision tower, again-encoded ones included."""
        self.encoded_again = 0

    def load(self, paths: Iterable[Path]) -> None:
        """Make sure that the features of `paths` are there; images that cannot be read go into `broken`."""
        wanted = [path for path in dict.fromkeys(paths) if path not in self.broken]
        for path in wanted:
            if path in self._kept:
                self._kept.move_to_end(path)
        missing = [path for path in wanted if path not in self._kept]
        for at in range(0, len(missing), self._batch):
            for path, (features, grid) in self._encode_each(missing[at : at + self._batch]):
                self.encoded_again += path in self._grids
                self.encoded += 1
                self._kept[path], self._grids[path] = features.clone(), grid
                self._size += features.nbytes
        needed = set(wanted)
        for path in list(self._kept):
            if self._size <= self._budget:
                break
            if path not in needed:
                self._size -= self._kept.pop(path).nbytes

    def features(self, path: Path) -> Tensor:
        """Visual tokens (T, d) of an image that was loaded."""
        return self._kept[path]

    def grid(self, path: Path) -> tuple[int, int]:
        """Rows and columns of an image's visual tokens."""
        return self._grids[path]

    def _encode_each(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Features]]:
        try:
            yield from zip(paths, self._encode(paths), strict=True)
        except (OSError, ValueError) as error:  # unreadable or malformed images: find which
            if len(paths) == 1:
                reason = str(error) or type(error).__name__
                self.broken[paths[0]] = reason if isinstance(error, ImageError) else f"{paths[0]}: {reason}"
                return
            for path in paths:
                yield from self._encode_each([path])
