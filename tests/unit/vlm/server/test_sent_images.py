"""What servers see of an image is what the scorer in this process sees."""

import asyncio
import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import ExifTags, Image

from icdsel.data.images import ImageError, open_image, within_pixels
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.server import images
from icdsel.vlm.server.images import SentImages

MOST = 10**6


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (12, 18, len(Image.new(mode, (1, 1)).getbands())), np.uint8)
    return Image.fromarray(drawn.squeeze(), mode)


def turned(kind: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        picture().save(path, kind, exif=exif)

    return save


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.arange(216, dtype=np.uint16).reshape(12, 18) * 300).save(path, "PNG")


KINDS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "jpeg": (lambda path: picture().save(path, "JPEG"), True),
    "grey jpeg": (lambda path: picture("L").save(path, "JPEG"), True),
    "png": (lambda path: picture().save(path, "PNG"), True),
    "grey png": (lambda path: picture("L").save(path, "PNG"), True),
    "turned jpeg": (turned("JPEG"), False),
    "turned png": (turned("PNG"), False),
    "cmyk": (lambda path: picture("CMYK").save(path, "JPEG"), False),
    "alpha": (lambda path: picture("RGBA").save(path, "PNG"), False),
    "grey alpha": (lambda path: picture("LA").save(path, "PNG"), False),
    "a transparent colour": (lambda path: picture().save(path, "PNG", transparency=(1, 2, 3)), False),
    "palette": (lambda path: picture().quantize(16).save(path, "PNG"), False),
    "one bit": (lambda path: picture("L").convert("1").save(path, "PNG"), False),
    "16 bits": (sixteen_bits, False),
    "animated png": (lambda path: picture().save(path, "PNG", save_all=True, append_images=[picture(seed=1)]), False),
    "gif": (lambda path: picture().save(path, "GIF"), False),
    "animation": (lambda path: picture().save(path, "GIF", save_all=True, append_images=[picture(seed=1)]), False),
    "webp": (lambda path: picture().save(path, "WEBP", lossless=True), False),
    "bmp": (lambda path: picture().save(path, "BMP"), False),
    "tiff": (lambda path: picture().save(path, "TIFF"), False),
    "ppm": (lambda path: picture().save(path, "PPM"), False),
}


def url_of(path: Path, **values: Any) -> str:
    sent = SentImages(VlmSettings(**values), MOST)
    try:
        return asyncio.run(sent.url(path))
    finally:
        sent.close()


def content(url: str) -> bytes:
    kind, _, coded = url.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return base64.b64decode(coded, validate=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_server_that_only_converts_sees_the_same_pixels(name: str, tmp_path: Path):
    save, as_it_is = KINDS[name]
    save(path := tmp_path / "image")
    sent = content(url_of(path))
    with Image.open(BytesIO(sent)) as image:
        assert image.convert("RGB").tobytes() == open_image(path, MOST).tobytes()
    assert (sent == path.read_bytes()) == as_it_is


@pytest.mark.parametrize("name", ["jpeg", "turned jpeg"])
def test_file_addresses_are_given_where_the_file_is_read_alike(name: str, tmp_path: Path):
    save, as_it_is = KINDS[name]
    save(path := tmp_path / "an image #1%.jpg")
    url = url_of(path, file_urls=True)
    assert url.startswith("file:///") == as_it_is
    assert not as_it_is or Path(unquote(urlsplit(url).path)) == path.resolve()


def test_limits_of_size_are_those_of_any_model(tmp_path: Path):
    picture().save(path := tmp_path / "image.png")
    for limits in ({"max_pixels": 100}, {"min_pixels": 1000}):
        with Image.open(BytesIO(content(url_of(path, **limits)))) as image:
            least, most = limits.get("min_pixels"), limits.get("max_pixels")
            assert image.tobytes() == within_pixels(open_image(path, MOST), least, most).tobytes()
            assert image.size != (18, 12)
    assert content(url_of(path, min_pixels=10, max_pixels=1000)) == path.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_an_image_that_cannot_be_read(damage: bytes | None, tmp_path: Path):
    path = tmp_path / "image.png"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(ImageError):
        url_of(path)


def test_an_image_is_read_once_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [tmp_path / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        picture(seed=n).resize((600, 400)).save(path)
    read: list[Path] = []

    def counted(path: Path, most: int) -> Image.Image:
        read.append(path)
        return open_image(path, most)

    monkeypatch.setattr(images, "open_image", counted)
    sent = SentImages(VlmSettings(image_cache_mb=1), MOST)

    async def ask() -> None:
        await asyncio.gather(*(sent.url(path) for path in paths[:2] * 4))
        assert sorted(read) == paths[:2]
        for path in paths[2:]:
            await sent.url(path)
        assert sum(map(len, sent._kept.values())) == sent._size <= 2**20 and 0 < len(sent._kept) < 6
        await sent.url(paths[0])  # had to go
        await sent.url(paths[0])

    asyncio.run(ask())
    sent.close()
    assert len(read) == 7
