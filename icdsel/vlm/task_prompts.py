"""What the VLM is asked for a query with some ICDs, as the task shows examples. The only place that makes requests."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from icdsel.records import Example
from icdsel.settings.tables import DataSettings
from icdsel.tasks.base import Task
from icdsel.vlm.engine import Request


@dataclass(frozen=True)
class TaskPrompts:
    """Makes the requests of a task.

    Attributes:
        task: The task.
    """

    task: Task

    @classmethod
    def of(cls, settings: DataSettings) -> Self:
        """For the task of the settings.

        Raises:
            SettingsError: There is no such task.
        """
        return cls(settings.configured_task)

    def request(self, icds: Iterable[Example], query: Example, references: Iterable[str] = ()) -> Request:
        """The request for a query behind these ICDs."""
        shown = tuple(self._shown(icd, self.task.demonstration(icd)) for icd in icds)
        return Request(shown, self._shown(query, query.answer), tuple(references))

    def _shown(self, example: Example, answer: str) -> Example:
        question = self.task.question(example)
        same = question == example.question and answer == example.answer
        return example if same else replace(example, question=question, answer=answer)
