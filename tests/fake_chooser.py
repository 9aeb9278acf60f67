"""A chooser for tests of the proxy: it shows the candidates whose mean colours are nearest to that of the query."""

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from icdsel.data.datasets import Split
from icdsel.data.images import ImageError, open_image
from icdsel.errors import SettingsError
from icdsel.records import Example, Shots
from icdsel.settings import load_settings


@dataclass(frozen=True)
class FakeChoice:
    query: Example
    icds: tuple[Example, ...]
    scores: tuple[float, ...] | None


@dataclass(frozen=True)
class FakeEncoded:
    queries: Sequence[Example]
    colours: np.ndarray
    broken: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeBundle:
    train: Split


class FakeChooser:
    """Chooses by colour.

    Args:
        candidates: The candidates.
        colours: Their mean colours, float (N, 3).
        encode_seconds: What encoding costs.

    Attributes:
        held: How many images are held now.
        batches: The sizes of all batches so far.
    """

    names = ("policy", "random", "zero-shot")
    can_stop = False

    def __init__(self, candidates: Sequence[Example], colours: np.ndarray, encode_seconds: float = 0.0) -> None:
        self.bundle, self._colours, self._seconds = FakeBundle(Split("train", candidates)), colours, encode_seconds
        self.settings = load_settings({"data": {"max_image_pixels": 1_000_000}})
        self._folder = tempfile.TemporaryDirectory()
        self.batches: list[int] = []

    @property
    def held(self) -> int:
        return len(list(Path(self._folder.name).iterdir()))

    def hold(self, image: bytes) -> Path:
        path = Path(self._folder.name) / hashlib.sha256(image).hexdigest()
        part = path.with_suffix(f".{os.urandom(8).hex()}")
        part.write_bytes(image)
        part.replace(path)  # another request may be reading the same one
        try:
            open_image(path, self.settings.data.max_image_pixels)
        except ImageError as error:
            path.unlink()
            raise ImageError(str(error).replace(str(path), "the image")) from None
        return path

    def forget(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def query(self, image: Path, question: str) -> Example:
        digest = hashlib.sha256(f"{image.name}{question}".encode()).hexdigest()
        return Example(f"query-{digest[:24]}", image.name[:32], image, question, "", ())

    def encode(self, queries: Sequence[Example]) -> FakeEncoded:
        self.batches.append(len(queries))
        time.sleep(self._seconds)
        colours = [colour_of(open_image(query.image, 10**8)) for query in queries]
        return FakeEncoded(queries, np.array(colours))

    def choose_encoded(
        self, encoded: FakeEncoded, shots: Shots, selector: str, scored: bool = True
    ) -> list[FakeChoice]:
        if isinstance(shots, str):
            raise SettingsError(f"{selector} cannot decide how many ICDs to show: give a number of shots")
        count = 0 if selector == "zero-shot" else shots
        chosen = []
        for query, colour in zip(encoded.queries, encoded.colours, strict=True):
            far = ((self._colours - colour) ** 2).sum(axis=1)
            rows = np.argpartition(far, count)[:count] if count else np.array([], int)
            rows = rows[np.argsort(-far[rows], kind="stable")]  # the nearest is last
            icds = tuple(self.bundle.train[int(row)] for row in rows)
            chosen.append(FakeChoice(query, icds, tuple(-float(far[row]) for row in rows) if scored else None))
        return chosen

    def close(self) -> None:
        self._folder.cleanup()


def colour_of(picture: Image.Image) -> np.ndarray:
    """The mean colour of a picture, (3,)."""
    return np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1))


def candidates_in(folder: Path, count: int, images: int = 50) -> tuple[list[Example], np.ndarray]:
    """Candidates of plain colours, and the colours; images are shared by several where `count` is larger."""
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (min(count, images), 3))
    paths = []
    for at, colour in enumerate(colours):
        paths.append(folder / f"{at}.png")
        Image.new("RGB", (16, 16), tuple(map(int, colour))).save(paths[-1])
    examples = [
        Example(100 + k, k % len(paths), paths[k % len(paths)], f"What is {k}?", f"answer {k}", (f"answer {k}",))
        for k in range(count)
    ]
    jitter = rng.normal(0, 1, (count, 3)) * (count > images)
    return examples, colours[np.arange(count) % len(paths)] + jitter


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (8, 8)) -> bytes:
    """A picture of one colour as PNG."""
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()
