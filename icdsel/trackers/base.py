"""What a tracker is, and what it is told of a training or a comparison."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from icdsel.errors import SettingsError

Row = Mapping[str, str | int | float | None]
"""A row of a comparison, by column; all rows have the same columns."""


@dataclass(frozen=True)
class Subject:
    """What is tracked: a training or a comparison.

    Attributes:
        kind: Which of them.
        name: The name of the run, or of the comparison.
        dataset: The name of the dataset's results.
        folder: The folder of the run, or of the comparison; files of trackers go into folders below it.
        results: The folder of the dataset's results, for files that trainings and comparisons share.
        settings: All settings by table, as plain values. They hold no key and nothing of the environment.
        id: Stays the same when a training is resumed; empty if no tracker needs it.
    """

    kind: Literal["training", "comparison"]
    name: str
    dataset: str
    folder: Path
    results: Path
    settings: Mapping[str, Mapping[str, Any]]
    id: str = ""

    def flat_settings(self) -> Iterator[tuple[str, Any]]:
        """The settings as `table.name` and value; those that are not set are left out."""
        for table, values in self.settings.items():
            yield from ((f"{table}.{name}", value) for name, value in values.items() if value is not None)


class Tracked:
    """A training or comparison in one tracker. Methods that are not overridden log nothing."""

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an epoch; epochs are counted over all phases from 1."""

    def log_recommended(self, checkpoint: str) -> None:
        """Logs the name of the recommended checkpoint."""

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Logs the table of a comparison."""

    def close(self, finished: bool) -> None:
        """Ends the logging; `finished` is whether the training or comparison has."""


class Tracker:
    """A place that metrics are logged to.

    Attributes:
        name: The name that users type.
        needs_id: Whether it has to recognise a training that is resumed.
        limit: Seconds that each of its calls has; then it counts as failed. None for calls that cannot hang, which are
            made in the same thread.
    """

    name: str
    needs_id: ClassVar[bool] = False
    limit: float | None = None

    def require(self) -> None:
        """Checks that it can be used.

        Raises:
            SettingsError: Its library is missing, or its configuration is wrong.
        """

    def start(self, subject: Subject) -> Tracked:
        """Starts or continues the logging of a training or comparison."""
        raise NotImplementedError


def require_libraries(tracker: str, *libraries: str) -> None:
    """Checks that the libraries of a tracker are installed; its extra has its name.

    Raises:
        SettingsError: One is not installed.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise SettingsError(
                f'the tracker {tracker} needs the library "{library}": pip install "icdsel[{tracker}]", or leave the '
                "tracker out (metrics.jsonl and the files of `icdsel compare` hold the same figures)"
            )
