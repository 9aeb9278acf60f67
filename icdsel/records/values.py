"""Checks of JSON values, and the task of a record."""

from collections.abc import Callable
from typing import TypeGuard

DEFAULT_TASK = "vqa"
"""The task of a record without the field `task`."""

Bounds = tuple[float, float]
"""The lowest and the highest score of a task."""

BoundsOf = Callable[[str], Bounds]
"""Returns the bounds of a task's scores, by the task's name; raises ValueError for an unknown task."""


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value is a 64-bit integer, so that it fits in a tensor. Booleans are not ids."""
    return type(value) is int and -(2**63) <= value < 2**63


def are_ids(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of 64-bit integers."""
    return isinstance(value, list) and all(map(is_id, value))


def is_number(value: object, least: float, most: float) -> TypeGuard[float]:
    """Whether a value is a number from `least` to `most`; NaN and booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return is_number(value, -1e300, 1e300)


def task_entry(task: str) -> dict[str, str]:
    """The `task` entry of a JSON object. It is omitted for the default task, as in files from before other tasks."""
    return {} if task == DEFAULT_TASK else {"task": task}
