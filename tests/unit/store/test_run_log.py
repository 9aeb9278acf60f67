"""Logs: what they hold, how they end, and that they never get in the way."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from icdsel.console import logger, note, out, warn
from icdsel.errors import UserError
from icdsel.store.run_log import history, logged_to

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
VERSIONS = {"torch": "2", "device": "cpu", "written": "now"}


def entries(path: Path) -> list[str]:
    """The entries of a log without their times; every line belongs to one."""
    found = STAMP.split(path.read_text())
    assert found[0] == ""
    return [entry.rstrip("\n") for entry in found[1:]]


def test_a_log_holds_everything_that_was_printed_from_the_beginning_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/somewhere/icdsel", "train", "--run", "a b"])
    path = tmp_path / "log.txt"

    @history()
    def stage() -> int:
        note("before\nwith a second line")
        with logged_to(path, VERSIONS):
            warn("mind [this]")
            table = Table("word")
            table.add_row(Text("in a table", style="red"))
            out.print(table)
            logger.debug("for the log only")
            return 7

    assert stage() == 7
    first, *rest = entries(path)
    assert first == f"$ icdsel train --run 'a b'\n    in {Path.cwd()}\n    torch 2, device cpu"
    assert rest[:2] == ["before\n    with a second line", "warning: mind [this]"]
    assert "│ in a table │" in rest[2] and "\x1b" not in rest[2]
    assert rest[3:] == ["for the log only", "finished after 0:00:00"]
    printed = capsys.readouterr()
    assert "in a table" in printed.out and "warning: mind [this]" in printed.err
    assert "for the log only" not in printed.out + printed.err
    note("after")
    assert entries(path)[-1] == "finished after 0:00:00"


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (UserError("wrong flag"), "ended by an error: wrong flag"),
        (ValueError("a bug"), "ended by an error: ValueError: a bug"),
    ],
)
def test_a_log_says_how_it_ended_and_is_continued_by_the_next_command(tmp_path, error, end):
    path = tmp_path / "log.txt"
    with pytest.raises(type(error)), logged_to(path, VERSIONS):
        raise error
    with logged_to(path, VERSIONS):
        pass
    found = entries(path)
    assert [found[1], found[3]] == [end, "finished after 0:00:00"]


def test_stages_inside_a_command_have_their_own_logs(tmp_path):
    @history()
    def inner(name: str) -> None:
        note(f"preparing {name}")
        with logged_to(tmp_path / name, VERSIONS):
            note(f"in {name}")

    @history()
    def outer() -> None:
        note("first")
        inner("one")
        inner("two")
        with logged_to(tmp_path / "outer", VERSIONS):
            note("last")

    outer()
    end = "finished after 0:00:00"
    assert entries(tmp_path / "one")[1:] == ["first", "preparing one", "in one", end]
    assert entries(tmp_path / "two")[1:] == ["first", "preparing two", "in two", end]
    assert entries(tmp_path / "outer")[1:] == ["first", "last", end]


def missing_folder(tmp_path: Path) -> Path:
    return tmp_path / "missing/log.txt"


def full_device(tmp_path: Path) -> Path:
    return Path("/dev/full")


@pytest.mark.parametrize("place", [missing_folder, full_device])
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys, place: Callable[[Path], Path]):
    with history():
        note("before")
        with logged_to(place(tmp_path), VERSIONS):
            note("inside")
    assert capsys.readouterr().err.count("no log is written") == 1
    assert not [*tmp_path.iterdir()]


def test_nothing_is_left_on_the_logger(tmp_path):
    before = [*logger.handlers]
    with pytest.raises(UserError), history(), logged_to(tmp_path / "log.txt", VERSIONS):
        raise UserError("wrong")
    assert logger.handlers == before


def test_messages_below_the_level_of_the_logger_are_not_logged(tmp_path):
    logger.setLevel(logging.WARNING)
    try:
        with history():
            note("before")
            with logged_to(tmp_path / "log.txt", VERSIONS):
                warn("inside")
    finally:
        logger.setLevel(logging.DEBUG)
    assert entries(tmp_path / "log.txt")[1:] == ["warning: inside", "finished after 0:00:00"]
