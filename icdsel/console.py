"""What a person sees while a command works: results on stdout, everything else on stderr.

Everything that is said, bars aside, is also handed to `listeners` as plain text, for logs.
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.table import Column
from rich.text import Text

LOG_WIDTH = 120
SECONDS_BETWEEN_LINES = 60.0
"""How often the state of long work is said where no bar can be shown."""

listeners: list[Callable[[str], None]] = []
"""Called with everything that is said, as plain text."""


_UNSEEN = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029, 0xFFFE, 0xFFFF], "\ufffd")
_UNSEEN |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], "\ufffd")


def shown(text: str) -> str:
    """A text as it may be shown: what would command a terminal or turn the direction of writing is replaced.

    Questions, answers, names and messages may come from anyone's files.
    """
    return text.translate(_UNSEEN)


class _Plain(Console):
    """A console that shows texts as they are: no markup in them counts, and nothing in them commands the terminal."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of what is printed; those of the console itself (colours, bars) command the terminal."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text), style, control)


class _Heard(_Plain):
    """A console whose words reach the listeners too."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Prints `objects` as `rich.console.Console` does."""
        super().print(*objects, **how)
        if listeners:
            plain = _Plain(file=io.StringIO(), width=LOG_WIDTH)
            plain.print(*objects)
            _tell(plain.file.getvalue())  # type: ignore[attr-defined]


out = _Heard()
err = _Plain(stderr=True)


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, steps: int, said: str = "") -> None:
        """By `steps`; `said` is what is known so far, such as the accuracy (the last words stay where it is empty)."""


class _Rate(TextColumn):
    """Steps per second so far."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The task's speed, once it has one."""
        return Text(_rate(task), style="dim")


def _rate(task: Task) -> str:
    return f"{task.speed:,.1f}/s" if task.speed else ""


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr with rate, time left and what is known so far; yields a function that advances it.

    Where stderr is no terminal a line takes its place, once a minute, so that short work stays silent. A log gets
    that line in any case.
    """
    roomy = err.width >= 100
    columns = (
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, max_width=err.width // (3 if roomy else 5)),
        ),
        BarColumn(bar_width=20 if roomy else 4),
        MofNCompleteColumn(),
        _Rate(),
        *([TimeElapsedColumn()] if roomy else []),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        bar.add_task(what, total=total, said="")
        [task] = bar.tasks
        last = time.monotonic()

        def advance(steps: int, said: str = "") -> None:
            nonlocal last
            bar.update(task.id, advance=steps, said=said or task.fields["said"])
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES and not task.finished:
                last = time.monotonic()
                (_tell if err.is_terminal else note)(_state(task))

        yield advance


def _state(task: Task) -> str:
    """How far the work is, in a line."""
    left = "" if task.time_remaining is None else f"ETA {timedelta(seconds=int(task.time_remaining))}"
    parts = (f"{task.completed:,.0f} of {task.total or 0:,.0f}", _rate(task), left, task.fields["said"])
    return f"{task.description}: {', '.join(part for part in parts if part)}"


def note(message: str) -> None:
    """Says something about the work, on stderr."""
    err.print(Text(message, style="dim"))
    _tell(message)


def warn(message: str) -> None:
    """Says what a person should know of, on stderr."""
    err.print(Text.assemble(("warning: ", "yellow"), message))
    _tell(f"warning: {message}")


def tell_error(message: str) -> None:
    """Says on stderr why a command ends."""
    err.print(Text.assemble(("error: ", "red"), message))


def _tell(words: str) -> None:
    for listener in listeners:
        listener(shown(words))


_LONGEST = 240  # characters of an example


def plain(value: object) -> str:
    """A text that any terminal and file takes: in one line, without control characters, not too long."""
    told = " ".join(str(value)[: 4 * _LONGEST].split())
    told = "".join(sign if sign.isprintable() else "�" for sign in told)
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 1]}…"
