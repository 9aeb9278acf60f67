"""The interface of a reader of one form of data."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from icdsel.data.rows import Rows, Table
from icdsel.settings.tables import DataSettings

CAPTION_TASK, CLASS_TASK = "caption", "classify"
"""The tasks that a form of data may imply (`Table.task`)."""
CLASS_QUESTION = "What is shown?"
"""The question about images of which only the class is known."""


class Reader(ABC):
    """Reads data of one form, which it recognises by a look at the path.

    Attributes:
        name: Its name in messages.
        form: What data of this form look like, for the message about a path that no reader recognises.
    """

    name: str
    form: str

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether the existing path has this form. Looks at names, and at most at the beginning of a file."""

    @abstractmethod
    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """The tables of the data, in an order that depends on names alone.

        Raises:
            DataError: A file is damaged, or a library that reads it is not installed.
        """


class FileReader(Reader):
    """Reads files, which it recognises by their ending.

    Attributes:
        endings: Endings of their names, in lower case.
    """

    endings: tuple[str, ...]

    def recognises(self, path: Path) -> bool:
        """By the ending of its name."""
        return path.is_file() and path.suffix.lower() in self.endings

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """One table; its images are beside the file."""
        return [Table(path, self.rows(path, settings), path.parent)]

    @abstractmethod
    def rows(self, path: Path, settings: DataSettings) -> Rows:
        """The rows of a file."""
