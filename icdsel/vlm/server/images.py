"""Images as servers get them: the file's own bytes where a server sees in them what icdsel sees, else a PNG of that."""

import asyncio
import base64
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image

from icdsel.data.images import ImageError, open_image, within_pixels
from icdsel.settings.tables import VlmSettings
from icdsel.store.reading import read_whole

_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png"}
"""The formats that every server reads in the same way; the others are sent as PNG."""
_MODES = ("RGB", "L")  # what has an alpha channel, a palette, 16 bits or four inks is read in different ways
_READERS = 4  # threads


class SentImages:
    """The addresses of images: `data:` with the image in it, or `file://`. Made once, and kept in bounded memory.

    Args:
        settings: The limits of size, and whether servers see the files.
        max_image_pixels: Images with more pixels are rejected.
    """

    def __init__(self, settings: VlmSettings, max_image_pixels: int) -> None:
        self._limits, self._max_image_pixels = (settings.min_pixels, settings.max_pixels), max_image_pixels
        self._files = settings.file_urls
        self._most, self._size = settings.image_cache_mb * 2**20, 0
        self._kept: OrderedDict[Path, str] = OrderedDict()
        self._under_way: dict[Path, asyncio.Future[str]] = {}
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="images")

    async def url(self, path: Path) -> str:
        """The address of an image.

        Raises:
            ImageError: It cannot be read.
        """
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        if path not in self._under_way:
            made = asyncio.get_running_loop().run_in_executor(self._threads, self._made, path)
            self._under_way[path] = made
            made.add_done_callback(lambda future: self._keep(path, future))
        return await asyncio.shield(self._under_way[path])  # others wait for it too

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _keep(self, path: Path, made: "asyncio.Future[str]") -> None:
        del self._under_way[path]
        if made.cancelled() or made.exception() is not None:
            return
        self._kept[path] = url = made.result()
        self._size += len(url)
        while self._size > self._most:
            self._size -= len(self._kept.popitem(last=False)[1])

    def _made(self, path: Path) -> str:
        return image_url(path, self._max_image_pixels, self._limits, self._files)


def image_url(
    path: Path, max_image_pixels: int, limits: tuple[int | None, int | None] = (None, None), files: bool = False
) -> str:
    """The address of an image: `data:` with its file where a server sees in it what icdsel sees, else with a PNG.

    Args:
        path: The file.
        max_image_pixels: An image with more pixels is rejected.
        limits: The fewest and most pixels to send.
        files: Whether a `file://` address will do.

    Raises:
        ImageError: It cannot be read.
    """
    picture = open_image(path, max_image_pixels)
    sent = within_pixels(picture, *limits)
    kind = _kind_as_it_is(path) if sent is picture else None
    if kind is not None and files:
        return path.resolve().as_uri()
    if kind is not None:
        try:
            return data_url(read_whole(path, path.stat().st_size), kind)
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error}") from error
    return picture_url(sent)


def data_url(content: bytes, kind: str) -> str:
    """A `data:` address of a file's content and its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_url(picture: Image.Image) -> str:
    """A `data:` address of a picture, without loss."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return data_url(buffer.getvalue(), "image/png")


def _kind_as_it_is(path: Path) -> str | None:
    """The media type of a file that servers read as `open_image` does; None for any other."""
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        plain = image.mode in _MODES and "transparency" not in image.info and getattr(image, "n_frames", 1) == 1
        return _AS_THEY_ARE.get(str(image.format)) if plain and not turned else None
