"""The task that a dataset says it is for, without reading more than its first record."""

from collections.abc import Iterator
from typing import Any

from icdsel.data.columns import Columns
from icdsel.data.datasets import own_tables
from icdsel.data.rows import Table
from icdsel.errors import DataError, UserError
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.tables import DataSettings
from icdsel.settings.worlds import is_world
from icdsel.tasks import TASKS

__all__ = ["implied_task", "with_implied_task"]


def with_implied_task(settings: Settings) -> Settings:
    """The settings with the task that the dataset says it is for, if none was named."""
    if "task" in settings.data.model_fields_set or is_world(settings.data.dataset):
        return settings
    task = implied_task(settings.data)
    return with_values(settings, {"data": {"task": task}}) if task else settings


def implied_task(settings: DataSettings) -> str:
    """The task of data of your own: that of their form, as of captions, or that of the field `task`.

    Empty if they say none. Also if they cannot be read: whoever reads them for their examples tells why.
    """
    try:
        tables = own_tables(settings)
        told = next((table.task for table in tables if table.task), "")
        return told or next((task for table in tables[:1] for task in _of_first_row(table, settings)), "")
    except DataError:
        return ""


def _of_first_row(table: Table, settings: DataSettings) -> Iterator[str]:
    columns = Columns({} if table.stored else settings.columns_by_field)
    for _, record in table.rows(_ignore):
        try:
            task: Any = next(columns.records(record), {}).get("task")
        except ValueError:
            return
        if isinstance(task, str) and task in TASKS:
            yield task
        return


def _ignore(error: UserError) -> None:
    del error
