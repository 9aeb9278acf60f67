"""How good an answer is: tasks with their metrics, and what is done to an answer before it is scored.

Importing a module of a task adds it to `icdsel.tasks.base.TASKS`.
"""

from icdsel.tasks import vqa as vqa
from icdsel.tasks.base import TASKS

__all__ = ["TASKS"]
