"""A log file beside every result: the command, versions and device, what was logged, and how it ended.

The messages of the logger `icdsel` are kept in memory (`history`) until it is known which result they belong to, so an
error found before then leaves no log file behind. Results never depend on logs; if a log cannot be written, the work
continues.
"""

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from icdsel.console import logger, prefix, shown, warn
from icdsel.errors import UserError


class _Entry(logging.Formatter):
    """The time and the message; further lines are indented, so every entry begins with a time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        lines = shown(f"{prefix(record)}{record.message}").strip("\n").splitlines()
        record.message = "\n    ".join(line.rstrip() for line in lines)
        return super().formatMessage(record)


class _History(logging.Handler):
    """Keeps the records that are logged, except while a nested history is active."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.started, self.began = time.time(), time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if self is _histories[-1]:
            self.records.append(record)


_histories: list[_History] = []
"""The histories of the running command and stages, outermost first."""


@contextmanager
def history() -> Iterator[None]:
    """Keeps what is logged inside, for the log of a result that is started inside; decorates commands and stages.

    If a command runs several stages, the log of each has the messages of that stage and of the command.
    """
    kept = _History()
    _histories.append(kept)
    logger.addHandler(kept)
    try:
        yield
    finally:
        logger.removeHandler(kept)
        _histories.remove(kept)


def command_words() -> list[str]:
    """The words of the running command as a user would type them."""
    program = Path(sys.argv[0])
    return ["icdsel" if program.stem in ("__main__", "icdsel") else program.name, *sys.argv[1:]]


class _LogFile(logging.Handler):
    """Appends entries to a file, until one cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(_Entry())
        self._path: Path | None = path

    def emit(self, record: logging.LogRecord) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(f"{self.format(record)}\n")
        except OSError as error:
            self._path = None
            warn(f"no log is written: {error}")


@contextmanager
def logged_to(path: Path, environment: Mapping[str, Any]) -> Iterator[None]:
    """Appends what is logged inside to a file, after the command, the environment and the history.

    Args:
        path: The file.
        environment: Versions and device.
    """
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "written")
    first = _record(f"$ {shlex.join(command_words())}\nin {Path.cwd()}\n{versions}")
    began = time.monotonic()
    if _histories:
        first.created, began = _histories[0].started, _histories[-1].began
    file = _LogFile(path)
    for record in (first, *(record for kept in _histories for record in kept.records)):
        file.handle(record)
    logger.addHandler(file)
    end = ""
    try:
        yield
        end = f"finished after {timedelta(seconds=round(time.monotonic() - began))}"
    except KeyboardInterrupt:
        end = "interrupted"
        raise
    except BaseException as error:  # errors of any class are logged and raised again
        end = f"ended by an error: {'' if isinstance(error, UserError) else f'{type(error).__name__}: '}{error}"
        raise
    finally:
        file.handle(_record(end))
        logger.removeHandler(file)


def _record(message: str) -> logging.LogRecord:
    return logger.makeRecord(logger.name, logging.INFO, "", 0, message, (), None)
