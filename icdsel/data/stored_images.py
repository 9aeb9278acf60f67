"""Datasets that contain their images are copied once: the rows as JSON lines, each distinct image as a file.

Images are copied as encoded, without decoding them. Equal images share a file, so that pools know the questions about
a query's own image.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from icdsel.console import progress
from icdsel.data.columns import Columns
from icdsel.data.parsing import has_value
from icdsel.errors import DataError
from icdsel.store.files import write_bytes, write_text

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""Endings of image files."""

Find = Callable[[str], Path | None]
"""Returns the image of a path that a row names, if the dataset may read it; None if not, or if there is none."""


def store_split(
    path: Path,
    below: Path,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    count: int,
    columns: Columns,
    find: Find | None = None,
) -> None:
    """Writes rows as JSON lines with the usual names of fields, and their images as files below the same folder.

    A row without an image gets the path of a file that does not exist.

    Args:
        path: The file of JSON lines; it is written last, so that its existence marks the split as complete.
        below: The folder of the images, relative to that of the file.
        name: The dataset and the split, for messages.
        rows: The rows, with images as `{"bytes": ..., "path": ...}`, bytes or base64, or lists of them.
        count: How many there are.
        columns: The columns of the fields.
        find: Finds images that are not in the rows, which are copied too; by default their paths stay as they are.

    Raises:
        DataError: A row has an unknown form, or a value cannot be written as JSON.
    """
    lines: list[str] = []
    with progress(f"Writing {name}", count) as advance:
        for number, row in enumerate(rows):
            try:
                for record in columns.records(dict(row)):
                    record["image"] = _stored(record.get("image"), path.parent, below, number, find)
                    if record.get("answer") in ("", None):  # then the most common answer is shown
                        record.pop("answer", None)
                    lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            except TypeError as error:  # dates, bytes
                raise DataError(f"{name}, row {number}: a value is not text: {error}") from None
            except ValueError as error:
                raise DataError(f"{name}, row {number}: {error}") from None
            advance(1)
    os.sync()  # the images, before writing the file whose existence marks the split as complete
    write_text(path, "".join(lines))


def content_of(image: Any) -> bytes | None:
    """The encoded image that a value contains; None if it contains none."""
    if isinstance(image, Mapping):
        image = image.get("bytes")
    if isinstance(image, bytes):
        return image
    return in_base64(image) if isinstance(image, str) else None


def in_base64(text: str) -> bytes | None:
    """The image that a text is in base64, as the columns of some tables; None if it is none, such as a path."""
    head, _, rest = text.partition(";base64,")
    encoded = rest if head.startswith("data:image/") else text
    if len(encoded) < 64 or not encoded.startswith(("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk")):
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None


def store_image(content: bytes, folder: Path, below: Path, ending: str = "") -> str:
    """Writes an image, named after its digest, and returns its path relative to `folder`."""
    place = below / (hashlib.sha256(content).hexdigest()[:32] + (ending if ending in ENDINGS else ""))
    path = folder / place
    if not path.exists():
        write_bytes(path, content)
    return place.as_posix()


def _stored(image: Any, folder: Path, below: Path, number: int, find: Find | None) -> Any:
    """The paths of a row's images: one, or a list with null where there is none."""
    images = image if isinstance(image, list) else [image]
    places = [_stored_one(one, folder, below, number, find) if has_value(one) else None for one in images]
    if not any(places):
        return _missing(below, number)
    return places[0] if len(places) == 1 else places


def _stored_one(image: Any, folder: Path, below: Path, number: int, find: Find | None) -> str | None:
    named = image.get("path") if isinstance(image, Mapping) else image
    content = content_of(image)
    source = Path(named) if isinstance(named, str) and (content is None or len(named) < 1024) else Path()
    if content is None and isinstance(named, str) and named:
        if find is None:
            return named
        content = found.read_bytes() if (found := find(named)) else None
        if content is None:
            return _missing(below, number)
    return None if content is None else store_image(content, folder, below, source.suffix.lower())


def _missing(below: Path, number: int) -> str:
    return (below / f"row-{number}-has-no-image").as_posix()
