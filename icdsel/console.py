"""What a person sees while a command works: results on stdout, everything else on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Rate(TextColumn):
    """Steps per second so far."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task) -> Text:  # type: ignore[no-untyped-def]
        """The task's speed, once it has one."""
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="dim")


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with rate and time left; yields a function that advances it by so many steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


def note(message: str) -> None:
    """Says something about the work, on stderr."""
    err.print(Text(message, style="dim"))


def warn(message: str) -> None:
    """Says what a person should know of, on stderr."""
    err.print(Text.assemble(("warning: ", "yellow"), message))
