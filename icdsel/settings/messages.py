"""Turns pydantic's validation errors into messages for users: which setting is wrong, and what is allowed."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from icdsel.errors import SettingsError
from icdsel.settings.kinds import API_KEY_VARIABLE
from icdsel.settings.names import every_setting, flag
from icdsel.settings.tables import TABLES


@contextmanager
def explained() -> Iterator[None]:
    """Raises a SettingsError with a line for each setting that pydantic rejects."""
    try:
        yield
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in _merged(error.errors()))) from None


def _merged(problems: Iterable[Any]) -> list[Any]:
    """One problem for each setting; pydantic has one for each type of a union."""
    merged: dict[tuple[Any, ...], Any] = {}
    for problem in problems:
        place = problem["loc"] if problem["type"] == "extra_forbidden" else problem["loc"][:2]
        same = merged.setdefault(place, problem)
        if same is not problem:
            message = problem["msg"].removeprefix("Input should be ")
            merged[place] = same | {"msg": f"{same['msg']}, or {message}"}
    return list(merged.values())


def _explain(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    known = {f"{table}.{name}": field for table, name, field in every_setting()}
    dotted = ".".join(place[:2])
    if problem["type"] == "extra_forbidden":
        inside = place[0] if len(place) > 1 else None
        names = list(TABLES[inside].model_fields) if inside in TABLES else list(TABLES)
        close = difflib.get_close_matches(place[-1], names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"
        if "key" in place[-1].lower() and inside == "vlm":
            hint = f"a server's key is read from the variable {API_KEY_VARIABLE} alone, never from a file or flag"
        return f"unknown setting {'.'.join(place)!r} ({hint})"
    if problem["type"] == "model_type":
        return f"[{place[0]}] must be a table (dictionary) of settings, got {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if dotted not in known:
        return f"[{place[0]}] {message}" if place else message
    spelled, extra = flag(place[1], known[dotted]), known[dotted].json_schema_extra
    if isinstance(extra, dict) and not extra.get("quoted", True):  # it may contain a password
        return f"{spelled} ({dotted}): {message}"
    try:
        return f"{spelled} ({dotted}): {message}, got {problem['input']!r}"
    except ValueError:  # an integer of thousands of digits
        return f"{spelled} ({dotted}): {message}"
