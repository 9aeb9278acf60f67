"""How many ICDs a row of predictions shows: a number, or as many as its selector decides, query by query."""

import re
from typing import TypeGuard

from icdsel.records.values import is_int64

Shots = int | str
"""A number of ICDs, or `auto` where the selector may stop, at zero too.

`auto+1.5` stops more readily: 1.5 (nats) is added to the log-odds of stopping at every step. `auto-1.5` stops less
readily.
"""

AUTO = "auto"
"""As many as the selector decides."""

_MOST_SHOTS = 10_000
_AUTO = re.compile(rf"{AUTO}([+-](?:0|[1-9]\d{{0,3}})(?:\.\d{{1,6}})?)?")


def auto_shots(offset: float) -> str:
    """The name of `auto` with an offset (nats, at most six decimals) for STOP: `auto`, `auto+1`, `auto-0.5`."""
    rounded = round(offset, 6)
    return f"{AUTO}{rounded:+.6f}".rstrip("0").rstrip(".") if rounded else AUTO


def stop_offset(shots: str) -> float:
    """The offset of `auto` in nats, 0 without one.

    Raises:
        ValueError: It is not `auto` with or without an offset.
    """
    match = _AUTO.fullmatch(shots)
    if match is None:
        raise ValueError(f"{shots!r} is neither {AUTO} nor {AUTO} with an offset, such as {AUTO}+1 or {AUTO}-0.5")
    return float(match[1] or 0)


def parsed_shots(text: str) -> Shots:
    """What a user typed: a number, or `auto` with or without an offset.

    Raises:
        ValueError: It is neither.
    """
    word = text.strip()
    if word.isdecimal() and word.isascii() and len(word) <= len(str(_MOST_SHOTS)):
        return int(word)
    if _AUTO.fullmatch(word) is None:
        raise ValueError(
            f"{text!r} is neither a number nor {AUTO}: give numbers, {AUTO}, or {AUTO} with an offset for "
            f"stopping, such as {AUTO}+1"
        )
    return auto_shots(stop_offset(word))


def is_shots(value: object) -> TypeGuard[Shots]:
    """Whether a value is a number of shots, or `auto` as `auto_shots` writes it."""
    if isinstance(value, str):
        return _AUTO.fullmatch(value) is not None and auto_shots(stop_offset(value)) == value
    return is_int64(value) and 0 <= value <= _MOST_SHOTS


def shots_order(shots: Shots) -> tuple[bool, float]:
    """The key by which rows are sorted: numbers, then `auto`, what stops least readily last."""
    return (True, -stop_offset(shots)) if isinstance(shots, str) else (False, shots)


def shots_text(shots: Shots) -> str:
    """`1 shot`, `2 shots`, `auto`."""
    return shots if isinstance(shots, str) else f"{shots} shot{'s' * (shots != 1)}"
