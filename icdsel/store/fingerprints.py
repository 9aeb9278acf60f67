"""Fingerprints of examples and files, which show whether they have changed."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from heapq import nsmallest
from pathlib import Path

from icdsel.errors import RunError
from icdsel.records import Example
from icdsel.store.files import size_of
from icdsel.store.reading import open_file

_SKETCH = 64
"""Examples in a sample."""


def fingerprint_examples(examples: Iterable[Example]) -> str:
    """The fingerprint of all fields of examples; of images, only name and size count."""
    digest, size = hashlib.sha256(), cache(size_of)
    for e in examples:
        row: list[object] = [
            e.question_id,
            e.image_id,
            e.image.name,
            size(e.image),
            e.question,
            e.answer,
            e.answers,
            e.raw_answers,
        ]
        if e.more_images or e.options or e.pool is not None:  # others keep the fingerprint from before these fields
            row += [[[image.name, size(image)] for image in e.more_images], e.options, e.pool]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def sketch_examples(examples: Iterable[Example]) -> list[str]:
    """A sample of examples that is the same whatever is added to them later: the smallest of their digests, sorted.

    An example is what a policy sees of it, its image (name and size) and question.
    """
    return nsmallest(_SKETCH, set(_digests(examples)))


def known_share(sketch: Iterable[str], examples: Iterable[Example]) -> float:
    """The share of a `sketch_examples` that is among these examples: 1 if they only grew, 0 for another dataset."""
    sample, known = set(sketch), set(_digests(examples))
    return len(sample & known) / max(1, len(sample))


def _digests(examples: Iterable[Example]) -> Iterator[str]:
    size = cache(size_of)
    for e in examples:
        images = [value for image in e.images for value in (image.name, size(image))]
        yield hashlib.sha256(json.dumps([*images, e.question]).encode()).hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """The fingerprint of a file's content, read up to its reported size, because some special files never end.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0 and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()[:16]


def fingerprint_of(content: bytes) -> str:
    """What `fingerprint_file` returns for a file with this content."""
    return hashlib.sha256(content).hexdigest()[:16]


def has_fingerprint(path: Path, fingerprint: object) -> bool:
    """Whether a file exists, can be read, and has this fingerprint."""
    try:
        return path.is_file() and fingerprint_file(path) == fingerprint
    except OSError:
        return False


@contextmanager
def unchanged(*paths: Path | None) -> Iterator[None]:
    """Guarantees that all reads of the files inside the block, fingerprints included, see the same version of them.

    Raises:
        RunError: A file was written or replaced meanwhile; the message names it.
    """
    before = {path: _version(path) for path in paths if path is not None}
    yield
    for path, version in before.items():
        if _version(path) != version:
            raise RunError(f"{path} was changed while it was being read: run the command again")


def _version(path: Path) -> tuple[int, ...] | None:
    """A value that changes when a file is written or replaced; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:  # the code that reads the file reports the error
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
