"""What a person sees while a command works: results on stdout; notes, warnings and progress on stderr.

Messages are records of the logger `icdsel`, which programs that use icdsel as a library can route or silence like any
other; importing icdsel configures nothing. Levels: INFO for notes, DEBUG for what belongs only in log files, such as a
copy of the tables on stdout.
"""

import io
import logging
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

LOG_WIDTH = 120
SECONDS_BETWEEN_LINES = 60.0
"""How often the progress of long work is logged."""
_WIDE, _NARROW, _ANY_WIDTH = 100, 70, 10_000  # columns

logger = logging.getLogger("icdsel")

_UNPRINTABLE = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029, 0xFFFE, 0xFFFF], "\ufffd")
_UNPRINTABLE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], "\ufffd")


def shown(text: str) -> str:
    """A text without characters that control a terminal or reverse the direction of writing.

    Questions, answers, names and messages may come from untrusted files.
    """
    return text.translate(_UNPRINTABLE)


_LONGEST = 240  # characters of an example


def plain(value: object) -> str:
    """A text for any terminal and file: one line, without control characters, not too long."""
    text = " ".join(str(value)[: 4 * _LONGEST].split())
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def at_words(text: str, width: int) -> str:
    """A text broken into lines of this width at spaces, where a terminal would break words.

    A longer word, such as a path, is left whole, so that it can still be copied from the terminal.
    """
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
        for line in text.split("\n")
    )


class _Plain(Console):
    """A console that prints texts as they are: without markup, and without characters that control the terminal.

    On a terminal, texts are broken at words.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints `objects` as `rich.console.Console` does."""
        if self.is_terminal:
            objects = tuple(at_words(one, self.width) if isinstance(one, str) else one for one in objects)
        super().print(*objects, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments to print; only those of the console itself (colours, bars) control the terminal."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text), style, control)


class _Logged(_Plain):
    """A console that copies what it prints to the log."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints `objects` as `rich.console.Console` does."""
        super().print(*objects, **options)
        if logger.isEnabledFor(logging.DEBUG):
            copy = _Plain(file=io.StringIO(), width=LOG_WIDTH)
            copy.print(*objects)
            logger.debug(copy.file.getvalue())  # type: ignore[attr-defined]


out = _Logged()
err = _Plain(stderr=True)


class _ConsoleHandler(logging.Handler):
    """Prints messages on stderr; one that cannot be printed is dropped, and the work continues."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints notes dim, warnings and errors with a coloured prefix."""
        colour = "red" if record.levelno >= logging.ERROR else "yellow"
        style = "dim" if record.levelno < logging.WARNING else ""
        with suppress(OSError):
            start = prefix(record)
            text = f"{start}{record.getMessage()}"
            text = at_words(text, err.width) if err.is_terminal else text
            err.print(Text.assemble((start, colour), (text[len(start) :], style)))


_console = _ConsoleHandler(logging.INFO)


def show_messages() -> None:
    """Configures the logger for the command line: messages go to stderr. Calling it again changes nothing."""
    logger.setLevel(logging.DEBUG)
    logger.addHandler(_console)


def prefix(record: logging.LogRecord) -> str:
    """What precedes a message: "warning: ", "error: " or nothing."""
    return f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""


def note(message: str) -> None:
    """Logs a note about the work."""
    logger.info(message)


def warn(message: str) -> None:
    """Logs a warning."""
    logger.warning(message)


def tell_error(message: str) -> None:
    """Logs why a command fails."""
    logger.error(message)


class Fitted:
    """A table that leaves out its least important columns where the terminal is too narrow for all of them.

    Columns that wrap need as much as their longest word.

    Args:
        table: Makes the table, without the columns of these names.
        optional: The names of columns that may be left out, the least important first.
        elsewhere: Where they can be seen, for a note below the table.
    """

    def __init__(self, table: Callable[[Collection[str]], Table], optional: Sequence[str], elsewhere: str = "") -> None:
        self._table, self._optional, self._elsewhere = table, optional, elsewhere

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The widest version that fits, and a note about what it lacks."""
        left_out: list[str] = []
        wide = options.update(width=_ANY_WIDTH)

        def made() -> Table:
            table = self._table(left_out)
            for column in table.columns:
                if column.no_wrap:  # without this, rich would cut it
                    cells = (column.header, *column.cells)
                    column.min_width = max(Measurement.get(console, wide, cell).maximum for cell in cells)
            return table

        table = made()
        for name in self._optional:
            if Measurement.get(console, wide, table).minimum <= options.max_width:
                break
            left_out.append(name)
            table = made()
        yield table
        if left_out and self._elsewhere:
            note = f"Not shown at this width: {', '.join(left_out)} ({self._elsewhere})."
            yield Padding(Text(note, style="dim"), (0, 0, 0, 1))


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, steps: int, status: str = "") -> None:
        """Advances by `steps`; a `status` that is not empty, such as the accuracy so far, replaces the previous one."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr with rate, remaining time and status; yields a function that advances it.

    Without a terminal, a line is logged instead, once a minute, so that short work stays silent. A log file gets that
    line in any case.
    """
    # A narrow terminal shows less, rather than a bar of a few characters and half a description.
    wide, narrow = err.width >= _WIDE, err.width < _NARROW
    columns = (
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, max_width=err.width // (4 if narrow else 3)),
        ),
        BarColumn(bar_width=20 if wide else 10),
        MofNCompleteColumn(),
        *([_Rate(), TimeElapsedColumn()] if wide else []),
        *([] if narrow else [TextColumn("ETA")]),
        TimeRemainingColumn(compact=not wide),
        TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        bar.add_task(what, total=total, status="")
        [task] = bar.tasks
        last = time.monotonic()

        def advance(steps: int, status: str = "") -> None:
            nonlocal last
            bar.update(task.id, advance=steps, status=status or task.fields["status"])
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES and not task.finished:
                last = time.monotonic()
                logger.log(logging.DEBUG if err.is_terminal else logging.INFO, _line(task))

        yield advance


class _Rate(TextColumn):
    """Steps per second so far."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The speed of the task, once it is known."""
        return Text(_rate(task), style="dim")


def _rate(task: Task) -> str:
    return f"{task.speed:,.1f}/s" if task.speed else ""


def _line(task: Task) -> str:
    """The progress of a task in a line."""
    left = "" if task.time_remaining is None else f"ETA {timedelta(seconds=int(task.time_remaining))}"
    parts = (f"{task.completed:,.0f} of {task.total or 0:,.0f}", _rate(task), left, task.fields["status"])
    return f"{task.description}: {', '.join(part for part in parts if part)}"
