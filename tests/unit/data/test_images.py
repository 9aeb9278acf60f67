import io
import math
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import qwen_vl_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from icdsel.data import images
from icdsel.data.images import FORMATS, ImageError, open_image, pixels_in

LIMIT = 100_000_000
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(path: Path, limit: int = LIMIT) -> list[list[tuple[int, ...]]]:
    image = open_image(path, limit)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def refusal(path: Path, limit: int = LIMIT) -> str:
    with pytest.raises(ImageError) as raised:
        open_image(path, limit)
    assert isinstance(raised.value, OSError)
    assert str(path) in str(raised.value)
    return str(raised.value)


def noise(width: int, height: int) -> Image.Image:
    """Hard to compress, so that half of a file is a part of the picture."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    exact = {"lossless": True} if name == "WEBP" else {"quality": 100, "subsampling": 0} if name == "JPEG" else {}
    Image.new("RGB", (5, 3), RED).save(path, name, **exact)
    image = open_image(path, LIMIT)
    assert image.size == (5, 3)
    assert np.abs(np.asarray(image).astype(int) - np.array(RED)).max() <= 1


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), BLUE).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[BLUE]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("L", 7, (7, 7, 7)), ("1", 1, WHITE), ("LA", (9, 255), (9,) * 3)]
)
def test_grey(tmp_path: Path, mode: str, colour: int, expected: tuple[int, ...]) -> None:
    Image.new(mode, (1, 1), colour).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[expected]]


def test_grey_of_16_bits_keeps_its_upper_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert [pixel[0] for pixel in pixels(tmp_path / name)[0]] == [0, 0, 1, 0x12, 255]
    # The bytes in the other order, and 32 bits of which 16 are used.
    Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes()).save(tmp_path / "b.tiff")
    Image.fromarray(values).convert("I").save(tmp_path / "c.tiff")
    for name in ("b.tiff", "c.tiff"):
        assert [pixel[0] for pixel in pixels(tmp_path / name)[0]] == [0, 0, 1, 0x12, 255]


def test_numbers_without_an_agreed_range_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)).save(tmp_path / "wide.tiff")
    assert "32-bit integers" in refusal(tmp_path / "wide.tiff")
    Image.fromarray(np.array([[-1, 70]], dtype=np.int32)).save(tmp_path / "negative.tiff")
    assert "32-bit integers" in refusal(tmp_path / "negative.tiff")
    for number in (-0.5, 255.5, 1e30, math.nan, math.inf):
        Image.fromarray(np.array([[0.5, number]], dtype=np.float32)).save(tmp_path / "real.tiff")
        assert "real numbers" in refusal(tmp_path / "real.tiff")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_8_bit_values_in_wider_numbers_are_not_black(tmp_path: Path, kind: type) -> None:
    values = np.array([[0, 1, 7, 128, 255]], dtype=kind)
    names = ["a.tiff", "a.png"] if kind is np.uint16 else ["a.tiff"]
    for name in names:
        Image.fromarray(values).save(tmp_path / name)
        assert [pixel[0] for pixel in pixels(tmp_path / name)[0]] == [0, 1, 7, 128, 255]


def test_real_numbers_up_to_1_are_shares_of_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert [pixel[0] for pixel in pixels(tmp_path / "a.tiff")[0]] == [0, 128, 255]


def test_the_range_is_that_of_the_whole_picture_not_of_its_first_rows(tmp_path: Path) -> None:
    values = np.full((1100, 1000), 200, dtype=np.uint16)  # two bands
    values[-1, -1] = 0xFFFF
    Image.fromarray(values).save(tmp_path / "a.png")
    shown = np.asarray(open_image(tmp_path / "a.png", 2_000_000))
    assert (shown[0, 0].tolist(), shown[-1, -1].tolist()) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP", "XMP"])
def test_pngs_with_much_metadata_are_read(tmp_path: Path, kind: str) -> None:
    much = "x" * (3 * 2**20)
    info = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        info.add_itxt("a", much, zip=True)
    elif kind == "XMP":
        info.add_itxt("XML:com.adobe.xmp", much, zip=True)
    elif kind == "tEXt":
        for number in range(30):  # more than Pillow's limit of 64 MB in all
            info.add_text(f"a{number}", much)
    elif kind == "zTXt":
        info.add_text("a", much, zip=True)
    profile = {"icc_profile": much.encode()} if kind == "iCCP" else {}
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    image.save(tmp_path / "a.png", pnginfo=info, **profile)
    if kind != "tEXt":  # which Pillow reads up to 64 MB
        with pytest.raises(ValueError, match="too large"):
            Image.open(tmp_path / "a.png").load()
    limit = 10_000_000 if kind == "tEXt" else LIMIT
    assert np.asarray(open_image(tmp_path / "a.png", limit)).tolist() == [[list(RED), list(BLUE)]]


def test_the_orientation_in_a_png_s_xmp_is_kept(tmp_path: Path) -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for zipped in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=zipped)
        info.add_itxt("other", "x" * 2**21, zip=True)
        Image.new("RGB", (3, 1), RED).save(tmp_path / "a.png", pnginfo=info)
        assert open_image(tmp_path / "a.png", LIMIT).size == (1, 3)


def test_cmyk(tmp_path: Path) -> None:
    # Full yellow and magenta ink make red; no ink leaves white.
    image = Image.new("CMYK", (16, 8), (0, 0, 0, 0))
    image.paste((0, 255, 255, 0), (0, 0, 8, 8))
    image.save(tmp_path / "a.jpg", quality=100)
    shown = np.asarray(open_image(tmp_path / "a.jpg", LIMIT)).astype(int)
    assert np.abs(shown[:, :8] - RED).max() <= 3 and np.abs(shown[:, 8:] - WHITE).max() <= 3


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 0, 51)):
        image.putpixel((x, 0), (*RED, alpha))
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[RED, WHITE, (255, 204, 204)]]  # 255 · (1 − 51/255) = 204


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palette_with_a_transparent_colour(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    image.save(tmp_path / name, transparency=1)
    assert pixels(tmp_path / name) == [[RED, WHITE, BLUE]]
    several = bytes([255, 0, 51])
    if name == "a.png":
        image.save(tmp_path / name, transparency=several)
        assert pixels(tmp_path / name) == [[RED, WHITE, (204, 204, 255)]]


def test_a_large_picture_is_converted_as_a_small_one(tmp_path: Path) -> None:
    """It is converted in bands, the last of which is smaller."""
    image = noise(1500, 1100).convert("RGBA")
    image.putalpha(noise(1500, 1100).getchannel(1))
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "a.png", compress_level=1, exif=exif)
    over_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    shown = open_image(tmp_path / "a.png", LIMIT)
    assert shown.tobytes() == over_white.transpose(Image.Transpose.ROTATE_180).tobytes()


# A picture of two rows, R G over B W, stored so that a viewer has to rotate it by `orientation` to get it back.
STORED: dict[int, list[list[tuple[int, ...]]]] = {
    1: [[RED, GREEN], [BLUE, WHITE]],
    2: [[GREEN, RED], [WHITE, BLUE]],  # left and right exchanged
    3: [[WHITE, BLUE], [GREEN, RED]],  # upside down
    4: [[BLUE, WHITE], [RED, GREEN]],
    5: [[RED, BLUE], [GREEN, WHITE]],  # rows are columns
    6: [[GREEN, WHITE], [RED, BLUE]],  # row 0 is the right-hand side
    7: [[WHITE, GREEN], [BLUE, RED]],
    8: [[BLUE, RED], [WHITE, GREEN]],  # row 0 is the left-hand side, from below
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
def test_images_are_rotated_according_to_their_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    image = Image.fromarray(np.array(STORED[orientation], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    assert pixels(tmp_path / name) == STORED[1]
    turned = open_image(tmp_path / name, LIMIT)
    assert ImageOps.exif_transpose(turned).tobytes() == turned.tobytes()  # nothing rotates it again


def test_a_rotated_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg", LIMIT).size == (20, 40)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_leaves_the_image_as_it_is(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_image(tmp_path / "a.jpg", LIMIT).size == (40, 20)


def test_the_first_picture_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.png", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert Image.open(tmp_path / name).n_frames == 3
        assert pixels(tmp_path / name) == [[RED] * 4] * 4


MPO = pytest.param(
    "MPO",
    marks=pytest.mark.skipif(
        tuple(map(int, PIL.__version__.split(".")[:2])) < (11, 3), reason="Pillow writes valid MPO from 11.3 on"
    ),
)


@pytest.mark.parametrize("form", ["JPEG", MPO])
def test_photographs_with_previews(tmp_path: Path, form: str) -> None:
    photo = noise(640, 480)
    preview = io.BytesIO()
    photo.resize((160, 120)).save(preview, "JPEG")
    exif = b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 0) + preview.getvalue()
    more: dict[str, Any] = {"save_all": True, "append_images": [photo] * 4} if form == "MPO" else {}
    photo.save(tmp_path / "photo.jpg", form, exif=exif, progressive=True, **more)
    assert Image.open(tmp_path / "photo.jpg").format == form
    assert preview.getvalue() in (tmp_path / "photo.jpg").read_bytes()
    assert open_image(tmp_path / "photo.jpg", LIMIT).size == (640, 480)


# --- what is rejected -------------------------------------------------------------------------------------


def test_the_size_is_checked_before_anything_is_decoded(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(header_only_png(20_000, 20_000))
    message = refusal(path)
    for part in ("400000000 pixels", "limit of 100000000", "--max-image-pixels"):
        assert part in message
    # A limit above Pillow's own counts too: what is wrong now is what the file holds.
    assert "limit" not in refusal(path, 400_000_000)
    # Between Pillow's warning and its error.
    path.write_bytes(header_only_png(10_000, 9_999))
    assert "limit" not in refusal(path)
    assert not recwarn.list


def test_the_limit_is_the_greatest_number_of_pixels_allowed(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", 24).size == (6, 4)
    assert "6×4 = 24 pixels, above the limit of 23" in refusal(tmp_path / "a.png", 23)


@pytest.mark.parametrize("size", [(601, 3), (3, 601)])
def test_how_long_and_thin_a_picture_may_be(tmp_path: Path, size: tuple[int, int]) -> None:
    """The limit of Qwen2.5-VL's processor, so that `check` rejects what would stop a run."""
    path = tmp_path / "a.png"
    Image.new("RGB", size).save(path)
    assert f"{size[0]}×{size[1]} pixels: one side is more than 200 times as long as the other" in refusal(path)
    Image.new("RGB", (min(size[0], 600), min(size[1], 600))).save(path)
    qwen_vl_utils.smart_resize(*open_image(path, LIMIT).size, factor=28)
    with pytest.raises(ValueError, match="must be smaller than 200"):
        qwen_vl_utils.smart_resize(*size, factor=28)


def test_pillows_own_limit_is_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None
    noise(50, 50).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])

    def read() -> None:
        for _ in range(20):
            open_image(tmp_path / "good.png", LIMIT)
            refusal(tmp_path / "bad.png")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("name", "most"), [("WEBP", 20), ("PNG", 12)])
def test_how_much_memory_a_transparent_picture_takes(tmp_path: Path, name: str, most: int) -> None:
    """It took 24 and 16 bytes per pixel when complete copies were made on the way."""
    path = tmp_path / "a"
    Image.new("RGBA", (5000, 4000)).save(path, name, **({"lossless": True} if name == "WEBP" else {}))
    script = r"""
import re, sys
from pathlib import Path
from icdsel.data.images import open_image
def most():
    return int(re.search(r"VmHWM:\s*([0-9]+)", Path("/proc/self/status").read_text())[1])
before = most()
image = open_image(Path(sys.argv[1]), 10**8)
print((most() - before) * 1024 / (image.width * image.height))
"""
    ended = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < most


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(50, 50).save(tmp_path / "a.png")
    inside, most = [], []
    load = PngImagePlugin.PngImageFile.load

    def slowly(image: PngImagePlugin.PngImageFile) -> Any:
        inside.append(1)
        time.sleep(0.02)
        most.append(len(inside))
        inside.pop()
        return load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", slowly)
    for large, together in ((2499, False), (2500, True)):
        most.clear()
        monkeypatch.setattr(images, "LARGE", large)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: open_image(tmp_path / "a.png", LIMIT), range(8)))
        assert (max(most) > 1) == together


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_file(tmp_path: Path, name: str) -> None:
    encoded = io.BytesIO()
    noise(64, 64).save(encoded, name)
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded.getvalue()[: len(encoded.getvalue()) // 2])
    message = refusal(path)
    if name in ("JPEG", "PNG"):
        assert "truncated" in message


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("<html><body>Not found</body></html>")


def write_pdf(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path, "PDF")


def write_ico(path: Path) -> None:
    Image.new("RGB", (16, 16)).save(path, "ICO")


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (write_nothing, "is empty (0 bytes)"),
        (write_text, "JPEG, PNG, GIF, WEBP, BMP, TIFF, PPM"),
        (write_text, "begins with b'<html><body>Not "),
        (write_pdf, "is not an image in a supported format"),
        (write_ico, "is not an image in a supported format"),  # Pillow could; only common formats are tried
        (Path.mkdir, "is a folder or a device"),
        (lambda path: None, "is missing"),
    ],
)
def test_what_is_no_image(tmp_path: Path, write: Callable[[Path], object], part: str) -> None:
    path = tmp_path / "photo.jpg"
    write(path)
    assert part in refusal(path)


def test_a_name_that_no_file_can_have() -> None:
    assert "is missing" in refusal(Path("a\0b.jpg"))


@settings(deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"]), st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    encoded = io.BytesIO()
    noise(8, 8).save(encoded, name)
    content = bytearray(encoded.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert open_image(path, 1_000_000).mode == "RGB"
        except ImageError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_the_header_tells_whether_there_are_more_pixels(kind: str):
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, kind)
    content = file.getvalue()
    assert (pixels_in(content, 1199), pixels_in(content, 1200), pixels_in(content, 5000)) == (1200, 1200, 1200)
    assert pixels_in(content, 10) == 11, "more than twice the limit, where Pillow raises an error"
    assert pixels_in(b"no image", 1) == pixels_in(b"", 1) == 0
