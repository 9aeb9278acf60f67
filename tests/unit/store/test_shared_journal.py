import subprocess
import sys
import time
from pathlib import Path

import pytest

from icdsel.store.shared_journal import SharedJournal

WRITER = """
import sys
from pathlib import Path
from icdsel.store.shared_journal import SharedJournal
journal = SharedJournal(Path(sys.argv[1]))
for k in range(40):
    journal.append({"writer": sys.argv[2], "k": k, "text": "x" * 5000} for _ in range(2))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder/shared.jsonl"


def test_readers_see_what_others_have_added_since(path: Path) -> None:
    one, other = SharedJournal(path), SharedJournal(path)
    assert list(one.new()) == []
    assert one.append([{"a": 1}, {"a": 2}]) == []
    assert list(one.new()) == []
    assert other.append([{"a": 3}]) == [{"a": 1}, {"a": 2}]
    assert list(one.new()) == [{"a": 3}] and list(one.new()) == []
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def test_a_torn_line_is_ignored_and_cut_off_by_the_next_append(path: Path) -> None:
    SharedJournal(path).append([{"a": 1}])
    with path.open("ab") as file:
        file.write('{"a": "caf\u00e9'.encode()[:-1])
    journal = SharedJournal(path)
    assert list(journal.new()) == [{"a": 1}]
    journal.append([{"a": 2}])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("damage", [b"\0\0\0", b"{", b'"\xff"', b"[" * 10_000, b'{"a": NaN'])
def test_a_damaged_line_is_skipped(path: Path, damage: bytes) -> None:
    SharedJournal(path).append([{"a": 1}])
    with path.open("ab") as file:
        file.write(damage + b"\n")
    SharedJournal(path).append([{"a": 2}])
    assert list(SharedJournal(path).new()) == [{"a": 1}, {"a": 2}]


def test_a_file_that_was_removed_meanwhile_is_begun_again(path: Path) -> None:
    journal = SharedJournal(path)
    journal.append([{"a": 1}, {"a": 2}])
    path.unlink()
    journal.append([{"a": 3}])
    assert path.read_text() == '{"a": 3}\n'
    path.write_text("")
    journal.append([{"a": 4}])
    assert path.read_text() == '{"a": 4}\n'


def test_processes_that_write_at_the_same_time_lose_nothing(path: Path) -> None:
    started = time.monotonic()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)]) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    seen = [(value["writer"], value["k"]) for value in SharedJournal(path).new()]
    assert sorted(seen) == sorted((str(n), k) for n in range(3) for k in range(40) for _ in range(2))
    for number in range(3):  # each in its own order
        assert [k for writer, k in seen if writer == str(number)] == sorted(k for k in range(40) for _ in range(2))
    assert time.monotonic() - started < 60
