"""Up to 2,000 damaged files per reader, 200,000 with `-m slow`; for more, `python -m tests.fuzz.run`."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from icdsel.errors import UserError

from .common import alone
from .harness import Hang, Reader, fuzz, limited_memory, run_case, warm_up
from .mutate import damaged_bytes
from .readers import READERS

CASES, SECONDS = 2000, 0.8

each = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Pillow's, about damaged files
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured in /proc, on Linux only"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@each
def test_damaged_files_are_read_or_rejected(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "then").mkdir()
    warm_up(reader, tmp_path / "first")
    with limited_memory():
        report = fuzz(reader, tmp_path / "then", Random(0), CASES, SECONDS, [])
    assert not report.failures, report.failures[0][0]
    assert report.cases >= len(reader.seeds()) and report.outcomes["read"]


@pytest.mark.slow
@each
def test_many_damaged_files_are_read_or_rejected(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "then").mkdir()
    warm_up(reader, tmp_path / "first")
    with limited_memory():
        report = fuzz(reader, tmp_path / "then", Random(1), 100 * CASES, 60, [])
    assert not report.failures, report.failures[0][0]


@each
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "one endless line"])
def test_a_reader_never_waits_for_a_pipe_or_reads_without_end(tmp_path: Path, reader: Reader, kind: str) -> None:
    path = reader.prepare(tmp_path)
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.touch()
        # Sparse. Files of safetensors are mapped, which takes no memory but counts towards the limit.
        os.truncate(path, 2**28 if path.suffix == ".safetensors" else 2**40)
    with limited_memory():
        outcome, failure = run_case(reader, path)
    assert not failure, failure
    assert not outcome.startswith("hang")


# --- the harness itself -----------------------------------------------------------------------------------


def failure_of(folder: Path, read: object) -> str:
    reader = Reader("x", alone("x"), lambda: [b"abc"], damaged_bytes, read, (UserError,))  # type: ignore[arg-type]
    with limited_memory():
        report = fuzz(reader, folder, Random(0), 3, 60, [])
    return report.failures[0][0] if report.failures else ""


def hang(_: Path) -> None:
    try:
        while True:
            time.sleep(0.01)
    except Exception as error:  # as a reader may handle an error of the file
        raise UserError("damaged") from error


def hoard(_: Path) -> None:
    try:
        bytearray(2**40)
    except MemoryError as error:
        raise UserError("damaged") from error


def complain(_: Path) -> None:
    raise KeyError("x")


def test_the_harness_reports_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "KeyError: 'x'" in failure_of(tmp_path, complain)
    assert failure_of(tmp_path, hoard).startswith("memory")
    assert failure_of(tmp_path, lambda path: bytearray(b"x") * 400_000_000).startswith("memory")
    assert failure_of(tmp_path, lambda path: path.read_bytes()) == ""
    monkeypatch.setattr("fuzz.harness.SECONDS_PER_CASE", 0.1)
    assert failure_of(tmp_path, hang).startswith("hang")
    assert not issubclass(Hang, Exception)
