import io
import logging
import re
import subprocess
import sys
from collections.abc import Collection, Iterator

import pytest
from rich.console import Console
from rich.table import Table

from icdsel import console
from icdsel.console import Fitted, err, logger, note, out, progress, show_messages, tell_error, warn

HOSTILE = "[red]a[/] :apple: %s \x1b[31m\x1b]0;title\x07\x9b2J \u202eturned \ud800 \r\x08"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed on both streams."""
    stream = io.StringIO()
    for one in (out, err):
        monkeypatch.setattr(one, "_file", stream)
    return stream


@pytest.fixture
def no_handlers() -> Iterator[None]:
    """The logger as it is after an import."""
    handlers, level = [*logger.handlers], logger.level
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_texts_neither_control_the_terminal_nor_count_as_markup(printed: io.StringIO, monkeypatch) -> None:
    monkeypatch.setattr(logger, "propagate", False)  # pytest-xdist cannot send half of a surrogate pair
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for log in (out.print, note, warn, tell_error):
        log(HOSTILE)
    out.print(table)
    text = printed.getvalue()
    assert text.count("[red]a[/] :apple: %s") == 7 and text.count("\ufffd[31m\ufffd]0;title") == 7
    assert not set(text) & set("\x1b\x9b\x07\x08\u202e\ud800")
    text.encode()


def test_notes_warnings_and_errors_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", console._Plain(file=stream, force_terminal=True, color_system="standard"))
    note("a note")
    warn("a warning")
    tell_error("an error")
    assert stream.getvalue().splitlines() == [
        "\x1b[2ma note\x1b[0m",
        "\x1b[33mwarning: \x1b[0ma warning",
        "\x1b[31merror: \x1b[0man error",
    ]


def test_a_program_that_uses_icdsel_routes_its_messages(no_handlers: None, capsys: pytest.CaptureFixture[str]) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    note("a note")
    warn("100% [sure]")
    out.print("a result")
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("INFO", "a note"),
        ("WARNING", "100% [sure]"),
    ]
    assert capsys.readouterr().err == ""


def test_configuring_twice_prints_once(no_handlers: None, capsys: pytest.CaptureFixture[str]) -> None:
    show_messages()
    show_messages()
    note("a note")
    assert capsys.readouterr().err == "a note\n"


def test_importing_configures_nothing() -> None:
    code = "import logging, icdsel.stages.train; print(logging.getLogger('icdsel').handlers, logging.root.handlers)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout == "[] []\n"


def test_a_bar_shows_its_status_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", console._Plain(file=stream, force_terminal=True, width=120))
    with progress("[red]x[/]", 2) as advance:
        advance(1, "\x1b]0;title\x07[red]y[/]")
    assert "[red]x[/]" in stream.getvalue() and "\ufffd]0;title" in stream.getvalue()
    assert "\x1b]0" not in stream.getvalue()


def test_without_a_terminal_the_progress_of_long_work_is_logged(monkeypatch, capsys) -> None:
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


def test_with_a_terminal_it_goes_to_logs_only(monkeypatch, caplog, capsys) -> None:
    monkeypatch.setattr(console, "err", console._Plain(file=io.StringIO(), force_terminal=True, width=120))
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with progress("Scoring", 900) as advance:
        advance(500)
    assert [record.levelname for record in caplog.records] == ["DEBUG"] and "500 of 900" in caplog.text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_is_useful_at_every_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", console._Plain(file=stream, force_terminal=True, width=width))
    with progress("policy run 12", 3200) as advance:
        advance(1600, "accuracy 41.6")
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    shown = next(frame for frame in frames if "1600/3200" in frame)
    assert max(map(len, frames)) <= width
    assert shown.startswith("policy run 12 ") and "accuracy 41.6" in shown
    assert len(re.findall(r"[━╸╺]", shown)) >= 10


@pytest.mark.parametrize(("width", "columns"), [(100, ["a", "b", "c"]), (20, ["a", "c"]), (9, ["a"])])
def test_a_table_leaves_out_its_least_important_columns(width: int, columns: list[str]) -> None:
    def table(left_out: Collection[str]) -> Table:
        made = Table(box=None, padding=0)
        for name in "abc":
            if name not in left_out:
                made.add_column(name, no_wrap=True)
        made.add_row(*["x" * 9] * len(made.columns))
        return made

    screen = Console(width=width, file=io.StringIO())
    screen.print(Fitted(table, ["b", "c"], "in the file"))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert text.splitlines()[0].split() == columns
    missing = [name for name in "bc" if name not in columns]
    assert (f"Not shown at this width: {', '.join(missing)} (in the file)." in " ".join(text.split())) == bool(missing)


def test_messages_are_broken_at_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, no_handlers: None) -> None:
    message = (
        "RL data: 9,600 scored pointers of 800 queries, in results/world/generated_data/" + "x" * 60 + ".jsonl now"
    )
    screens = {}
    for terminal in (True, False):
        stream = io.StringIO()
        screen = console._Plain(file=stream, force_terminal=terminal, width=40)
        monkeypatch.setattr(console, "err", screen)
        show_messages()
        warn(message)
        screen.print(message)
        screens[terminal] = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert screens[False] == [f"warning: {message}", message]
    assert screens[True][:2] == ["warning: RL data: 9,600 scored pointers", "of 800 queries, in"]
    path = next(line for line in screens[True] if "generated_data" in line)
    assert path.endswith(".jsonl") and " ".join(screens[True]) == f"warning: {message} {message}"
