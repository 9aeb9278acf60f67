"""A log beside every result: the command, versions and device, all that was said, and how it ended. Plain text.

A stage is `logged`: what is said while it runs is kept in memory until the stage knows its result and calls
`log_to`, so a mistake that is found before leaves no log behind. Stages may call one another. A log is never part
of a result's identity, and one that cannot be written stops nothing.
"""

import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

from icdsel.console import listeners, warn
from icdsel.errors import UserError
from icdsel.store.files import open_plain
from icdsel.store.metadata import environment

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


class _Log:
    """What is said while a stage runs; lines wait until there is a file for them."""

    def __init__(self) -> None:
        self.started = _now()
        self.lines: list[str] = []
        """What the stage itself said, without the stages that it called."""
        self._path: Path | None = None

    def hear(self, words: str) -> None:
        """Takes words in; lines after the first are indented, so that every entry begins with a time."""
        entry = f"{_now()} " + "\n    ".join(line.rstrip() for line in words.strip("\n").splitlines()) + "\n"
        if self is _running[-1]:
            self.lines.append(entry)
        self._write(entry)

    def open(self, path: Path, beginning: str) -> None:
        """Writes to `path` from now on, after what is there."""
        self._path = path
        self._write(beginning)

    def _write(self, entry: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8", errors="replace", opener=open_plain) as file:
                file.write(entry)
        except OSError as error:
            self._path = None  # first: the warning is heard too
            warn(f"no log is written: {error}")


_running: list[_Log] = []
"""The logs of the stages that run, outermost first."""


def logged(stage: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Makes a function a stage, whose log ends with how it ended."""

    @functools.wraps(stage)
    def run(*args: _Given.args, **values: _Given.kwargs) -> _Made:
        with _heard() as log:
            started = time.monotonic()
            try:
                made = stage(*args, **values)
            except KeyboardInterrupt:
                log.hear("interrupted")
                raise
            except BaseException as error:  # whatever it is: it is written down and goes on
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                log.hear(f"ended by an error: {kind}{error}")
                raise
            log.hear(f"finished after {timedelta(seconds=round(time.monotonic() - started))}")
            return made

    return run


@contextmanager
def _heard() -> Iterator[_Log]:
    log = _Log()
    _running.append(log)
    listeners.append(log.hear)
    try:
        yield log
    finally:
        listeners.remove(log.hear)
        _running.remove(log)


def log_to(path: Path, device: str) -> None:
    """Opens the log of the stage that runs, after what an earlier command wrote there.

    It begins with the command, versions and device, and what was said before.

    Args:
        path: The file.
        device: What the VLM runs on.
    """
    program = Path(sys.argv[0])
    words = ["icdsel" if program.stem in ("__main__", "icdsel") else program.name, *sys.argv[1:]]
    made_with = ", ".join(f"{name} {value}" for name, value in environment(device).items() if name != "written")
    beginning = f"{_running[0].started} $ {shlex.join(words)}\n    in {Path.cwd()}\n    {made_with}\n"
    _running[-1].open(path, beginning + "".join(line for log in _running for line in log.lines))


def log_only(words: str) -> None:
    """Writes something to the log of the stage that runs, not to the screen."""
    for log in _running:
        log.hear(words)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
