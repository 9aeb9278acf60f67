"""Image files become RGB pictures; whatever is wrong with a file is said in one sentence."""

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from icdsel.store.reading import read_whole

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is read, by Pillow's names (MPO, the JPEG of some cameras, and PGM and PBM are among them)."""

MOST_STRETCHED = 200
"""How many times as long as the shorter side of a picture the longer one is at most, as Qwen's processor has it."""

_SPARE, _PER_PIXEL = 64 * 2**20, 16  # bytes of a file at most: so many, and for each pixel of the limit
_LARGE = 10_000_000  # pixels: larger pictures are decoded one at a time, whatever the number of threads
_BAND = 2**20  # pixels
_MOST_SCANS = 100  # of a JPEG; programs write 10 or so
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")  # its length, and of how many channels

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the EXIF orientation


class ImageError(OSError):
    """An image file is missing, damaged, too large or of no format that is read; the message says which."""


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Read an image file as an RGB picture, turned as its EXIF orientation says.

    Of an animation or a file of several pages it is the first picture. Transparency is laid over white. Grey of
    16 bits keeps its upper eight (65,535 becomes 255), as colour of 16 bits does. CMYK is converted by the plain
    formula: colour profiles are not applied. The picture carries none of the file's metadata, so nothing turns
    it twice.

    Args:
        path: The file. Its content counts, not its name's ending; of formats, `FORMATS` alone are tried.
        max_pixels: Larger pictures (width × height) are refused before they are decoded, and files of more than 64
            MiB and 16 bytes for each of these pixels before they are opened. This limit stands in the place of
            Pillow's own. Safe to call from several threads: of them one at a time decodes a picture of more than ten
            million pixels, which takes some 16 bytes for each.

    Raises:
        ImageError: There is no such file or it is no image, is damaged, cut short or above the limit, has one side of
            more than `MOST_STRETCHED` times the other, or is a JPEG of more than 100 scans.
    """
    try:
        if not path.is_file():
            raise ImageError(f"{path} is a folder or a device, no file" if path.exists() else f"{path} is missing")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes)")
        if (size := path.stat().st_size) > (most := _SPARE + _PER_PIXEL * max_pixels):
            raise ImageError(f"{path} has {size:,} bytes, {most:,} at most are read (by --max-image-pixels)")
        return _decoded(path, most, max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is no image of a kind that is read ({', '.join(FORMATS)}), or its beginning is damaged; "
            f"it begins with {_beginning(path)!r}"
        ) from None
    except Exception as error:  # damaged bytes lead Pillow's decoders to errors of many kinds
        raise ImageError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error


def _decoded(path: Path, most: int, max_pixels: int) -> Image.Image:
    """The picture in a file of at most `most` bytes."""
    content = read_whole(path, most)
    above = f"pixels, above the limit of {max_pixels}: make the image smaller, or raise --max-image-pixels"
    try:
        # Pillow gets no more bytes than there are; for a read of a file it would allocate what a chunk declares.
        with _pillows_limit(max_pixels), Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{path} has {width}×{height} = {width * height} {above}")
            if max(width, height) > MOST_STRETCHED * min(width, height):
                raise ImageError(
                    f"{path} has {width}×{height} pixels: a side of more than {MOST_STRETCHED} times the other is not "
                    "read; cut the image, or lay it on a wider ground"
                )
            if image.format in ("JPEG", "MPO") and (scans := _scans(content)) > _MOST_SCANS:
                raise ImageError(f"{path} draws its picture in {scans} scans, {_MOST_SCANS} at most are read")
            with _ALONE if width * height > _LARGE else nullcontext():
                image.load()
                turn = _TURNS.get(_orientation(image))
                image.fp = None  # of WebP it holds the decoded picture
                rgb = _rgb(image)
                return rgb if turn is None else rgb.transpose(turn)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has {re.findall('[0-9]+', str(error))[0]} {above}") from None


def _scans(content: bytes) -> int:
    """In how many passes a JPEG draws its picture: one takes a hundred bytes, and as long as the picture is large."""
    # Counted wherever they stand, in previews too: a decoder that finds damage looks for the next marker, and a
    # segment that another reader would pass over may be where it looks. In what is encoded 0xFF stands before 0 only.
    return len(_SCAN.findall(content))


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """A picture in pieces from top to bottom, each with its first row: what is made of one takes little memory."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image) -> Image.Image:
    """A decoded picture in RGB, without what else the file tells of it.

    Raises:
        ValueError: Its pixels have no agreed meaning as colours.
    """
    rgb = Image.new("RGB", image.size)
    for top, band in bands(image):
        rgb.paste(_band_in_rgb(band), (0, top))
    return rgb


def _band_in_rgb(band: Image.Image) -> Image.Image:
    if band.mode.startswith("I"):  # 16 bits, or 32 that hold 16
        values = np.asarray(band)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels are integers of 32 bits, which have no agreed range; save it with 8 or 16")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if band.mode == "F":
        raise ValueError("its pixels are real numbers, which have no agreed range; save it with 8 or 16 bits")
    if band.has_transparency_data:
        band = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
    return band.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded picture; 1, upright, where there is none that can be read."""
    try:
        # Read after decoding: a TIFF has been turned by then, and says so.
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - metadata may be damaged in any way, and the picture is whole without them
        return 1


_ALONE = threading.Lock()  # held while a large picture is decoded
_LOCK = threading.Lock()
_limits: list[int] = []
_its_own = Image.MAX_IMAGE_PIXELS
# Of sizes that are refused then, and of metadata that are not read: a file may have 60,000 damaged entries. For good,
# since Python can set filters aside for the whole process only, whichever thread asks.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _pillows_limit(max_pixels: int) -> Iterator[None]:
    """Pillow's limit at `max_pixels` while any thread is inside; of several the largest.

    It is one for the whole process, refuses twice as much, and does so without a picture's width and height. But it is
    the only one for what some formats allocate when they are opened.
    """
    with _LOCK:
        _limits.append(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(_limits)
    try:
        yield
    finally:
        with _LOCK:
            _limits.remove(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(_limits, default=_its_own)
