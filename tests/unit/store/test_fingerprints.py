import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from icdsel.errors import RunError
from icdsel.records import Example
from icdsel.store.fingerprints import (
    fingerprint_file,
    fingerprint_of,
    has_fingerprint,
    known_share,
    sketch_examples,
    unchanged,
)


def test_the_fingerprint_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    assert fingerprint_file(file) == fingerprint_of(b"x" * 3_000_000)
    assert has_fingerprint(file, fingerprint_of(b"x" * 3_000_000)) and not has_fingerprint(file, "0" * 16)


def test_a_special_file_is_read_as_far_as_its_reported_size() -> None:
    """One that is a regular file of size 0 but has hundreds of gigabytes; another one that cannot be read."""
    assert fingerprint_file(Path("/proc/self/pagemap")) == hashlib.sha256().hexdigest()[:16]
    assert not has_fingerprint(Path("/proc/self/mem"), "0" * 16)
    assert not has_fingerprint(Path("nowhere"), None)


def test_a_file_that_is_written_or_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"

    def write() -> None:
        file.write_text("two")

    def replace() -> None:
        other.write_text("two")
        os.utime(other, ns=(1, 1))
        other.replace(file)

    for change in (write, replace, file.unlink):
        file.write_text("one")
        os.utime(file, ns=(1, 1))
        with unchanged(file, tmp_path / "missing", None):
            assert file.read_text() == "one"
        with pytest.raises(RunError, match="file was changed while it was being read"), unchanged(file):
            change()


def test_a_sketch_shows_whether_examples_grew(tmp_path: Path) -> None:
    def examples(start: int, end: int) -> list[Example]:
        return [Example(n, n, tmp_path / f"{n}.png", f"Which {n}?", "a", ("a",)) for n in range(start, end)]

    sketch = sketch_examples(examples(0, 1000))
    assert len(set(sketch)) == 64 and sketch == sketch_examples(reversed(examples(0, 1000)))
    assert known_share(sketch, examples(0, 1001)) == known_share(sketch, examples(0, 50_000)) == 1
    assert known_share(sketch, examples(1000, 2000)) == 0
    assert 0.3 < known_share(sketch, examples(500, 2000)) < 0.7
    assert known_share(sketch_examples(examples(0, 3)), examples(0, 2)) == 2 / 3
    renamed = [replace(e, question_id=e.question_id + 7, answers=("b",)) for e in examples(0, 1000)]
    assert known_share(sketch, renamed) == 1  # what a policy sees is the same
    assert known_share(sketch, [replace(e, question="Why?") for e in examples(0, 1000)]) == 0
    assert known_share([], examples(0, 3)) == 0
