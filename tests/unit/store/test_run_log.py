"""Logs: what they hold, how they end, and that they never stand in the way."""

import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from icdsel import console
from icdsel.console import note, out, progress, warn
from icdsel.errors import UserError
from icdsel.store.run_log import log_only, log_to, logged

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


def entries(path: Path) -> list[str]:
    """The log's entries without their times; every line belongs to one."""
    found = STAMP.split(path.read_text())
    assert found[0] == ""
    return [entry.rstrip("\n") for entry in found[1:]]


def test_a_log_holds_all_that_was_said_from_the_beginning_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/somewhere/icdsel", "train", "--run", "a b"])
    path = tmp_path / "deep/log.txt"

    @logged
    def stage() -> int:
        note("before")
        log_to(path, "cpu")
        warn("mind [this]")
        table = Table("word")
        table.add_row(Text("in a table", style="red"))
        out.print(table)
        log_only("unseen")
        return 7

    assert stage() == 7
    first, *rest = entries(path)
    assert first.startswith("$ icdsel train --run 'a b'\n")
    assert "torch " in first and "device cpu" in first
    assert rest[:2] == ["before", "warning: mind [this]"]
    assert "│ in a table │" in rest[2] and "\x1b" not in rest[2]
    assert rest[3:] == ["unseen", "finished after 0:00:00"]
    shown = capsys.readouterr()
    assert "unseen" not in shown.out + shown.err
    note("after")
    assert entries(path)[-1] == "finished after 0:00:00"
    assert not console.listeners


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (UserError("wrong flag"), "ended by an error: wrong flag"),
        (ValueError("a bug"), "ended by an error: ValueError: a bug"),
    ],
)
def test_a_log_says_how_it_ended_and_goes_on_later(tmp_path, error, told):
    @logged
    def stage(failing: bool) -> None:
        log_to(tmp_path / "log.txt", "cpu")
        if failing:
            raise error

    with pytest.raises(type(error)):
        stage(True)
    stage(False)
    found = entries(tmp_path / "log.txt")
    assert [found[1], found[3]] == [told, "finished after 0:00:00"]


def test_a_stage_within_another_has_a_log_of_its_own(tmp_path):
    @logged
    def inner(name: str) -> None:
        log_to(tmp_path / name, "cpu")
        note(f"in {name}")

    @logged
    def outer() -> None:
        note("at first")
        inner("one")
        inner("two")
        log_to(tmp_path / "outer", "cpu")
        note("at last")

    outer()
    ended = "finished after 0:00:00"
    assert entries(tmp_path / "one")[1:] == ["at first", "in one", ended]
    assert entries(tmp_path / "two")[1:] == ["at first", "in two", ended]
    assert entries(tmp_path / "outer")[1:] == ["at first", "at last", ended]


def test_without_a_result_there_is_no_log_and_one_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")

    @logged
    def stage(path: Path | None) -> str:
        note("said")
        if path:
            log_to(path, "cpu")
        note("said again")
        return "made"

    assert stage(None) == "made"
    assert stage(tmp_path / "file/log.txt") == "made"
    assert capsys.readouterr().err.count("no log is written") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_long_work_says_how_far_it_is_where_no_bar_is_shown(monkeypatch, capsys):
    with progress("Scoring", 900) as advance:
        advance(500, "41.5% correct")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with progress("Scoring", 900) as advance:
        advance(500, "41.5% correct")
        advance(200)
        advance(200)
    lines = capsys.readouterr().err.splitlines()
    assert [line[: line.index(",")] for line in lines] == ["Scoring: 500 of 900", "Scoring: 700 of 900"]
    assert all(line.endswith("41.5% correct") for line in lines)
