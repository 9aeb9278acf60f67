"""Scores answers: tasks with their metrics, and cleaners, which prepare an answer for scoring.

Importing a module of a task adds it to `icdsel.tasks.base.TASKS`.
"""

from icdsel.tasks import vqa as vqa  # isort: skip - the first task is the default
from icdsel.tasks import caption as caption
from icdsel.tasks import exact as exact
from icdsel.tasks import number as number
from icdsel.tasks import options as options
from icdsel.tasks.base import TASKS

__all__ = ["TASKS"]
