"""Thumbnails for a page: each image once, with a limit on their total size."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from icdsel.data.images import ImageError, open_image

SIDE = 160
"""Longest side of a thumbnail, in pixels."""
TOGETHER = 6_000_000
"""Limit for all thumbnails of a page together, in bytes of base64."""

# Longest side and WebP quality, tried in this order until an image is within its share.
# A page shows them at 64 and 96 pixels.
_ATTEMPTS = ((SIDE, 80), (128, 70), (112, 60), (96, 55), (80, 45), (64, 30), (64, 20), (48, 10))


class Thumbnails:
    """Collects the images of a page, then encodes them.

    Attributes:
        missing: Why an image cannot be shown, by path; filled by `encode`.
    """

    def __init__(self, max_pixels: int) -> None:
        self.missing: dict[Path, str] = {}
        self._max_pixels = max_pixels
        self._places: dict[Path, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def place(self, image: Path) -> int:
        """The number of this image in the page."""
        return self._places.setdefault(image, len(self._places))

    def encode(self, advance: Callable[[int], None]) -> list[str | None]:
        """WebP as base64 for each number; None if the file is missing or damaged.

        Each image may use an equal share of `TOGETHER`, so that the sum stays below it.
        """
        share = TOGETHER * 3 // 4 // max(1, len(self))  # base64 encodes three bytes as four
        encoded: list[str | None] = []
        with ThreadPoolExecutor(4) as pool:
            for path, content in zip(
                self._places, pool.map(lambda p: self._small(p, share), self._places), strict=True
            ):
                if isinstance(content, ImageError):
                    self.missing[path] = str(content)
                encoded.append(base64.b64encode(content).decode() if isinstance(content, bytes) else None)
                advance(1)
        return encoded

    def _small(self, path: Path, most: int) -> bytes | ImageError:
        try:
            image = open_image(path, self._max_pixels)
        except ImageError as error:
            return error
        return small_webp(image, most)


def small_webp(image: Image.Image, most: int) -> bytes:
    """An image as WebP of at most `most` bytes, or the smallest that is tried; it is not enlarged."""
    content = b""
    for side, quality in _ATTEMPTS:
        smaller = image.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        smaller.save(file, "webp", quality=quality, method=4)
        content = file.getvalue()
        if len(content) <= most:
            break
    return content
