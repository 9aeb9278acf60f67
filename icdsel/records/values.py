"""Checks of JSON values, and the task of a record."""

from collections.abc import Callable
from typing import TypeGuard

DEFAULT_TASK = "vqa"
"""The task of a record that names none."""

Bounds = tuple[float, float]
"""The lowest and the highest score of a task."""

BoundsOf = Callable[[str], Bounds]
"""From the name of a task to the bounds of its scores; raises ValueError for an unknown task."""


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of 64 bits, as ids are in tensors. True is an integer too, but not an id."""
    return type(value) is int and -(2**63) <= value < 2**63


def are_ids(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of integers of 64 bits."""
    return isinstance(value, list) and all(map(is_id, value))


def is_number(value: object, least: float, most: float) -> TypeGuard[float]:
    """Whether a value is a number from `least` to `most`; neither NaN nor True is one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return is_number(value, -1e300, 1e300)


def task_entry(task: str) -> dict[str, str]:
    """The `task` of a JSON object: absent for the default task, as in files written before there were others."""
    return {} if task == DEFAULT_TASK else {"task": task}
