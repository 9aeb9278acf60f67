import io

import pytest
from rich.table import Table

from icdsel import console
from icdsel.console import err, note, out, progress, tell_error, warn

HOSTILE = "[red]a[/] :apple: \x1b[31m\x1b]0;title\x07\x9b2J \u202eturned \ud800 \r\x08"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    for one in (out, err):
        monkeypatch.setattr(one, "_file", written)
    return written


def test_texts_of_files_neither_command_the_terminal_nor_count_as_markup(shown: io.StringIO) -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    heard: list[str] = []
    console.listeners.append(heard.append)
    try:
        for say in (out.print, note, warn, tell_error):
            say(HOSTILE)
    finally:
        console.listeners.remove(heard.append)
    out.print(table)
    said = shown.getvalue()
    assert said.count("[red]a[/] :apple:") == 7 and said.count("\ufffd[31m\ufffd]0;title") == 7
    for text in (said, *heard):
        assert not set(text) & set("\x1b\x9b\x07\x08\u202e\ud800")
        text.encode()


def test_a_bar_shows_what_is_known_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "err", console._Plain(file=written, force_terminal=True, width=120))
    with progress("[red]x[/]", 2) as advance:
        advance(1, "\x1b]0;title\x07[red]y[/]")
    assert "[red]x[/]" in written.getvalue() and "\ufffd]0;title" in written.getvalue()
    assert "\x1b]0" not in written.getvalue()
