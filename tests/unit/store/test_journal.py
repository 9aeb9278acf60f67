"""Journals grow line by line; what is torn, invalid or not wanted is cut off by the next append."""

import json
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import RlDataError
from icdsel.store.journal import Journal, journal_of


def number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError
    return value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "numbers.jsonl.part"


def test_it_is_named_after_its_file() -> None:
    assert journal_of(Path("a/x.jsonl")) == Path("a/x.jsonl.part")


def test_records_are_appended_and_read_again(path: Path) -> None:
    journal = Journal(path)
    journal.append([1, {"ü": [2]}])
    journal.append_lines(["[3.0]"])
    assert path.read_text(encoding="utf-8") == '1\n{"ü": [2]}\n[3.0]\n'
    assert list(Journal(path).read(lambda value: value)) == [1, {"ü": [2]}, [3.0]]
    assert list(Journal(path.with_name("missing")).read(number)) == []


@pytest.mark.parametrize("rest", [b"3", b'{"half', b"\xff\n", b'"not valid"\n4\n', b"{\n5\n"])
def test_what_follows_the_valid_lines_is_dropped_by_the_next_append(path: Path, rest: bytes) -> None:
    Journal(path).append([1, 2])
    with path.open("ab") as file:
        file.write(rest)
    torn = path.read_bytes()
    journal = Journal(path)
    assert list(journal.read(number)) == [1, 2]
    assert path.read_bytes() == torn  # reading changes nothing
    journal.append([3])
    assert path.read_bytes() == b"1\n2\n3\n"


@pytest.mark.parametrize(("rest", "logged"), [(b'{"torn', 0), (b"3", 0), (b"{\n", 1), (b'"not valid"\n', 1)])
def test_damaged_lines_are_logged_and_torn_ones_are_not(path: Path, caplog, rest: bytes, logged: int) -> None:
    Journal(path).append([1, 2])
    path.write_bytes(path.read_bytes() + rest)
    assert list(Journal(path).read(number)) == [1, 2]
    assert [f"{path}, line 3: " in message for message in caplog.messages] == [True] * logged


def test_only_lines_that_are_kept_stay(path: Path) -> None:
    Journal(path).append([1, 2, 3, 4])
    journal = Journal(path)
    list(journal.read(number))
    journal.keep(2)
    journal.append([5])
    journal.keep(3)
    journal.append([6])
    assert path.read_bytes() == b"1\n2\n5\n6\n"
    journal.keep(9)
    journal.trim()
    assert path.read_bytes() == b"1\n2\n5\n6\n"


def test_lines_behind_the_last_one_that_was_read_are_not_kept(path: Path) -> None:
    Journal(path).append([1, 2, 3])
    journal = Journal(path)
    assert next(journal.read(number)) == 1
    journal.trim()
    assert path.read_bytes() == b"1\n"


def test_a_journal_that_is_not_read_is_started_again(path: Path) -> None:
    Journal(path).append([1, 2, 3])
    Journal(path).append([4])
    assert path.read_bytes() == b"4\n"


def test_it_becomes_the_result_without_its_torn_line(path: Path) -> None:
    Journal(path).append([1, 2])
    with path.open("ab") as file:
        file.write(b'{"half')
    journal = Journal(path)
    list(journal.read(number))
    journal.rename(path.with_suffix(""))
    assert path.with_suffix("").read_bytes() == b"1\n2\n" and not path.exists()


def test_a_result_without_lines_is_an_empty_file(path: Path) -> None:
    Journal(path).rename(path.with_suffix(""))
    assert path.with_suffix("").read_bytes() == b"" and not path.exists()


def test_one_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RlDataError, match=f"{tmp_path} cannot be read: Is a directory"):
        list(Journal(tmp_path, RlDataError).read(number))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Journal(tmp_path / "file/journal").append([1])


def test_every_value_is_a_line_of_json(path: Path) -> None:
    values = ["a\nb", "\u2028", None, {"x": 1.5e-300}]
    Journal(path).append(values)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == values
