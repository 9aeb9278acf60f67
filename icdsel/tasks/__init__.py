"""Scores answers: tasks with their metrics, and cleaners, which prepare an answer for scoring.

Importing a module of a task adds it to `icdsel.tasks.base.TASKS`.
"""

from icdsel.tasks import vqa as vqa
from icdsel.tasks.base import TASKS

__all__ = ["TASKS"]
