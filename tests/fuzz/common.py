"""What the modules of readers share."""

import json
from collections.abc import Callable
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
IDS = list(range(100, 140))
ROW = {question_id: row for row, question_id in enumerate(IDS)}


def lines(*values: object) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def lines_of(*values: object) -> Callable[[], list[bytes]]:
    """Seeds: all of these lines, the first alone, and files without any."""
    return lambda: [lines(*values), lines(*values[:1]), b"", b"\n", b"[]\n"]


def json_of(*values: object) -> Callable[[], list[bytes]]:
    """Seeds: each value in a file of its own."""
    return lambda: [json.dumps(value).encode() for value in values]


def alone(name: str) -> Callable[[Path], Path]:
    """Nothing stands beside the file."""
    return lambda folder: folder / name


def nothing(*_: object) -> None:
    """Takes the place of a bar."""
