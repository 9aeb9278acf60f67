"""Images of a table that rows share: in VLMEvalKit's TSV, a short `image` is the `index` of a row that holds it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from icdsel.errors import DataError, Refuse
from icdsel.store.reading import open_file

INDEX, IMAGE = "index", "image"
_SHORTEST = 65  # characters of an encoded image, in VLMEvalKit too

Cells = dict[str, str]
"""The cells of a row that are not empty, by column."""
Placed = tuple[str, Cells, tuple[int, int]]
"""A row's place, its cells, and where it begins and ends in the file, in bytes."""


def may_share(columns: Sequence[str]) -> bool:
    """Whether rows of a table with these columns may share images."""
    return INDEX in columns and IMAGE in columns


def with_shared_images(
    path: Path, rows: Iterator[Placed], parse: Callable[[bytes], Cells], refuse: Refuse
) -> Iterator[tuple[str, Cells]]:
    """Puts images in place of the indices of rows that hold them.

    Images are read again from the file, so that memory holds one at a time. Rows whose image comes later are moved to
    the end.

    Args:
        path: The file.
        rows: Its rows.
        parse: Gives the cells of a row by its bytes.
        refuse: Called with the error of each row whose image is not the index of another.
    """
    bytes_of: dict[str, tuple[int, int]] = {}
    waiting: list[tuple[str, Cells]] = []

    def shared(row: Cells) -> Cells:
        start, end = bytes_of[row[IMAGE].strip()]
        with open_file(path) as file:
            file.seek(start)
            return row | {IMAGE: parse(file.read(end - start))[IMAGE]}

    for place, row, where in rows:
        image = row.get(IMAGE, "").strip()
        if len(image) >= _SHORTEST and INDEX in row:
            bytes_of.setdefault(row[INDEX].strip(), where)
        if image and image in bytes_of and len(image) < _SHORTEST:
            yield place, shared(row)
        elif image.isdecimal() and INDEX in row:
            waiting.append((place, row))
        else:
            yield place, row
    for place, row in waiting:
        if (image := row[IMAGE].strip()) in bytes_of:
            yield place, shared(row)
        else:
            told = f"its image is {image[:80]}, but no row with this index holds an image"
            remedy = "An image is encoded in base64, a path, or the index of a row with an encoded image"
            refuse(DataError(f"{path}: {place}: {told}. {remedy}"))
