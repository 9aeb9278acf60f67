"""Reads image files as RGB pictures, with a clear message for anything that is wrong with a file."""

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from icdsel.data.grey_levels import has_levels, levels_of
from icdsel.data.png_metadata import without_metadata
from icdsel.store.reading import read_whole

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""The formats that are read, by Pillow's names (including MPO, the JPEG of some cameras, and PGM and PBM)."""

LARGE = 10_000_000
"""Pictures with more pixels than this are decoded one at a time, whatever the number of threads."""

MOST_STRETCHED = 200
"""Largest ratio of a picture's longer side to its shorter one. It is the limit of Qwen2.5-VL's processor."""

_SPARE, _PER_PIXEL = 64 * 2**20, 16  # bytes: a file may have `_SPARE` plus `_PER_PIXEL` per pixel of the pixel limit
_BAND = 2**20  # pixels
_MOST_SCANS = 100  # in a JPEG; encoders write about 10
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")  # marker, length, number of channels

_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


class ImageError(OSError):
    """An image file is missing, damaged, too large or of an unknown format; the message says which."""


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Reads an image file as an RGB picture, rotated according to its EXIF orientation.

    Of an animation or a file with several pages, the first picture is read. Transparent pixels are blended with white.
    Of 16-bit grey the upper eight bits are kept (65,535 becomes 255), as for 16-bit colour; grey of 16 or 32 bits that
    holds nothing above 255 is taken for 8-bit values, and real numbers are scaled by their range (`grey_levels`). CMYK
    is converted by the simple formula; colour profiles are not applied. The picture has none of the file's metadata,
    so nothing rotates it a second time.

    Pillow warns about damaged metadata; a program that reads many files may want to filter its warnings.

    This function is thread-safe. Only one thread at a time decodes a picture of more than ten million pixels, because
    decoding takes about 16 bytes per pixel.

    Args:
        path: The file. The format is detected from its content, not its name; only `FORMATS` are tried.
        max_pixels: Larger pictures (width × height) are rejected before they are decoded, and files of more than 64
            MiB plus 16 bytes per pixel of this limit before they are opened. It replaces Pillow's own limit.

    Raises:
        ImageError: The file does not exist or is not an image, is damaged, truncated or above the limit, has one side
            more than `MOST_STRETCHED` times as long as the other, or is a JPEG of more than 100 scans.
    """
    try:
        if not path.is_file():
            raise ImageError(f"{path} is a folder or a device, not a file" if path.exists() else f"{path} is missing")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes)")
        if (size := path.stat().st_size) > (most := _SPARE + _PER_PIXEL * max_pixels):
            raise ImageError(f"{path} has {size:,} bytes, above the limit of {most:,} (set by --max-image-pixels)")
        return _decoded(path, most, max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image in a supported format ({', '.join(FORMATS)}), or its beginning is damaged; "
            f"it begins with {_beginning(path)!r}"
        ) from None
    except Exception as error:  # damaged bytes make Pillow's decoders raise many kinds of errors
        raise ImageError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error


def pixels_in(content: bytes, most: int) -> int:
    """The pixels of an image by the header of its file, `most` + 1 for any that has more; 0 if it cannot be read.

    The picture is not decoded.
    """
    try:
        with _pillow_limit(most), Image.open(BytesIO(without_metadata(content)), formats=FORMATS) as image:
            return min(image.width * image.height, most + 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter if warnings are errors
        return most + 1
    except Exception:  # noqa: BLE001 - damaged bytes raise many kinds of errors; `open_image` tells them
        return 0


def within_pixels(picture: Image.Image, least: int | None, most: int | None) -> Image.Image:
    """A picture of between `least` and `most` pixels in total, in the same proportions; itself if it is one already."""
    pixels = picture.width * picture.height
    wanted = max(min(pixels, most or pixels), least or 1)
    if wanted == pixels:
        return picture
    scale = math.sqrt(wanted / pixels)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _decoded(path: Path, most: int, max_pixels: int) -> Image.Image:
    """Decodes the picture in a file of at most `most` bytes."""
    content = without_metadata(read_whole(path, most))
    above = f"pixels, above the limit of {max_pixels}: make the image smaller, or raise --max-image-pixels"
    try:
        # Decoded from memory: reading from a file, Pillow would allocate whatever size a chunk of the file declares.
        with _pillow_limit(max_pixels), Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{path} has {width}×{height} = {width * height} {above}")
            if max(width, height) > MOST_STRETCHED * min(width, height):
                raise ImageError(
                    f"{path} has {width}×{height} pixels: one side is more than {MOST_STRETCHED} times as long as the "
                    "other; crop or pad the image"
                )
            if image.format in ("JPEG", "MPO") and (scans := _scans(content)) > _MOST_SCANS:
                raise ImageError(f"{path} is a JPEG of {scans} scans, above the limit of {_MOST_SCANS}")
            with _ALONE if width * height > LARGE else nullcontext():
                image.load()
                rotation = _ROTATIONS.get(_orientation(image))
                image.fp = None  # frees memory: for WebP it holds the decoded picture
                rgb = _rgb(image)
                return rgb if rotation is None else rgb.transpose(rotation)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has {re.findall('[0-9]+', str(error))[0]} {above}") from None


def _scans(content: bytes) -> int:
    """Counts the scans of a JPEG. Decoding even a scan of a hundred bytes takes time proportional to the picture."""
    # The whole file is searched, previews included: after damaged data a decoder looks for the next marker, which may
    # be in a segment that other readers skip. Encoded data never contain the pattern: 0xFF is followed by 0 there.
    return len(_SCAN.findall(content))


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields horizontal bands from top to bottom, each with its first row, to process a picture in little memory."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image) -> Image.Image:
    """Converts a decoded picture to RGB, without the file's metadata.

    Raises:
        ValueError: Its pixel values have no agreed meaning as colours.
    """
    rgb = Image.new("RGB", image.size)
    levels = levels_of(image, (band for _, band in bands(image))) if has_levels(image) else None
    for top, band in bands(image):
        eight_bits = band if levels is None else Image.fromarray(levels(np.asarray(band)))
        rgb.paste(_band_in_rgb(eight_bits), (0, top))
    return rgb


def _band_in_rgb(band: Image.Image) -> Image.Image:
    if band.has_transparency_data:
        band = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
    return band.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded picture; 1 (upright) if it is missing or cannot be read."""
    try:
        # This must come after decoding, which rotates a TIFF and updates its metadata.
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - damaged metadata raise many kinds of errors, but the picture is usable
        return 1


_ALONE = threading.Lock()  # held while a large picture is decoded


class _PillowLimit:
    """Sets Pillow's global pixel limit to the largest limit of all threads inside the context.

    Pillow rejects pictures of more than twice the limit, with a message that lacks width and height. For some formats,
    nothing else limits the memory that is allocated when a file is opened.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: list[int] = []  # of the threads inside the context
        self._before: int | None = None

    @contextmanager
    def __call__(self, max_pixels: int) -> Iterator[None]:
        with self._lock:
            if not self._limits:
                self._before = Image.MAX_IMAGE_PIXELS
            self._limits.append(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(self._limits)
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(max_pixels)
                Image.MAX_IMAGE_PIXELS = max(self._limits, default=self._before)


_pillow_limit = _PillowLimit()
