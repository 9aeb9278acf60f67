"""Helpers for the modules that define readers."""

import json
from collections.abc import Callable
from pathlib import Path

from icdsel.check.paths import UNREADABLE, check
from icdsel.settings.loading import settings_from

DATA = Path(__file__).parents[1] / "data"
IDS = list(range(100, 140))
ROW = {question_id: row for row, question_id in enumerate(IDS)}


def lines(*values: object) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def lines_of(*values: object) -> Callable[[], list[bytes]]:
    """Seeds: all of these lines, the first one, and files without any."""
    return lambda: [lines(*values), lines(*values[:1]), b"", b"\n", b"[]\n"]


def json_of(*values: object) -> Callable[[], list[bytes]]:
    """Seeds: each value in a file of its own."""
    return lambda: [json.dumps(value).encode() for value in values]


def alone(name: str) -> Callable[[Path], Path]:
    """Prepares nothing beside the file."""
    return lambda folder: folder / name


def check_path(path: Path) -> None:
    """Runs `icdsel check` on one path in eight: it may list any problem, but must not fail."""
    if not path.is_dir() and path.stat().st_size % 8:
        return
    settings = settings_from({"data": {"dataset": str(path.with_name("none.jsonl"))}})
    for found in check(settings, [path])[0].findings:
        assert found.problem != UNREADABLE.problem or "Error:" not in str(found.examples), found


def ignore(*_: object) -> None:
    """Replaces callbacks."""
