"""Fingerprints of examples and files: whether something is the same as before."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from icdsel.errors import RunError
from icdsel.records import Example
from icdsel.store.files import size_of
from icdsel.store.reading import open_file


def fingerprint_examples(examples: Iterable[Example]) -> str:
    """Of everything an example says; images count by name and size."""
    digest, size = hashlib.sha256(), cache(size_of)
    for e in examples:
        row = [e.question_id, e.image_id, e.image.name, size(e.image), e.question, e.answer, e.answers, e.raw_answers]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """Of a file's content, of as many bytes as the system says it has: some that are no files on a disk never end.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0 and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()[:16]


def fingerprint_of(content: bytes) -> str:
    """Of what a file is to hold, as `fingerprint_file` has it."""
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def unchanged(*paths: Path | None) -> Iterator[None]:
    """What is read of files and fingerprinted within it is of one content: another may put a new one in their place.

    Raises:
        RunError: A file changed meanwhile; the message names it.
    """
    before = {}
    for path in paths:
        if path is not None:
            with suppress(OSError):  # whoever is to read it says what it lacks
                before[path] = fingerprint_file(path)
    yield
    for path, fingerprint in before.items():
        if not has_fingerprint(path, fingerprint):
            raise RunError(f"{path} was changed while it was read: give the same command again")


def has_fingerprint(path: Path, fingerprint: object) -> bool:
    """Whether there is such a file, which can be read, and its content is that of the fingerprint."""
    try:
        return path.is_file() and fingerprint_file(path) == fingerprint
    except OSError:
        return False
