"""Reads a split whose examples the task can use."""

from icdsel.data.datasets import Split, load_split
from icdsel.errors import DataError
from icdsel.settings.tables import DataSettings

__all__ = ["load_fit_split"]


def load_fit_split(settings: DataSettings, name: str) -> Split:
    """Reads one split of a dataset, and checks that its examples are fit for the task.

    Raises:
        DataError: As for `load_split`, or an example is unfit; the message names the first, and what to do.
    """
    split = load_split(settings, name)
    task = settings.configured_task
    unfit = [(example, fault) for example in split if (fault := task.fault(example)) is not None]
    if unfit:
        (example, fault), more = unfit[0], f" ({len(unfit)} such examples)" if len(unfit) > 1 else ""
        raise DataError(f"{settings.dataset}, split {name}, question {example.question_id}: {fault}{more}")
    return split
