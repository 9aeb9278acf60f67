"""Checks of JSON values, and the task of a record."""

import re
from collections.abc import Callable
from typing import TypeGuard

DEFAULT_TASK = "vqa"
"""The task of a record without the field `task`."""

Bounds = tuple[float, float]
"""The lowest and the highest score of a task."""

BoundsOf = Callable[[str], Bounds]
"""Returns the bounds of a task's scores, by the task's name; raises ValueError for an unknown task."""


QuestionId = int | str
"""The id of a question or an image, as the dataset writes it: a 64-bit integer, or text that is never converted."""

LONGEST_ID = 256
"""The maximum length of an id that is text, in characters."""

_MOST_TOKENS = 10**9

_NOT_IN_IDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Control characters and line ends, because messages show ids; unpaired surrogates cannot be written.


def is_int64(value: object) -> TypeGuard[int]:
    """Whether a value is a 64-bit integer. Booleans are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_id(value: object) -> TypeGuard[QuestionId]:
    """Whether a value can be an id: a 64-bit integer, or a text of up to `LONGEST_ID` characters on one line."""
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST_ID and not _NOT_IN_IDS.search(value)
    return is_int64(value)


def are_ids(value: object) -> TypeGuard[list[QuestionId]]:
    """Whether a value is a list of ids."""
    return isinstance(value, list) and all(map(is_id, value))


def id_order(value: QuestionId) -> tuple[bool, QuestionId]:
    """The key by which ids are sorted: integers by number, then texts by their characters' code points."""
    return isinstance(value, str), value


def is_number(value: object, least: float, most: float) -> TypeGuard[float]:
    """Whether a value is a number from `least` to `most`; NaN and booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_prompt_length(value: object) -> TypeGuard[int]:
    """Whether a value can be the length of a prompt in tokens."""
    return is_int64(value) and is_number(value, 1, _MOST_TOKENS)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return is_number(value, -1e300, 1e300)


def task_entry(task: str) -> dict[str, str]:
    """The `task` entry of a JSON object. It is omitted for the default task, as in files from before other tasks."""
    return {} if task == DEFAULT_TASK else {"task": task}
