"""What a format of answers for other programs has to do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from icdsel.records import Example, Prediction


@dataclass(frozen=True, slots=True)
class Answered:
    """A query and the answer to it.

    Attributes:
        query: The query.
        row: Its position in its split, from 0.
        prediction: The answer, or the error of a failed call.
    """

    query: Example
    row: int
    prediction: Prediction


class Format(ABC):
    """A format of file that another program reads: the answers to queries at one number of shots.

    Attributes:
        name: The name that users type.
        ending: The end of the file's name.
        needs_all: Whether every query needs an answer. Then no file is written if a call failed; else the file says
            which.
        needs_split: Whether the program that reads it wants answers to a whole split.
    """

    name: str
    ending: str
    needs_all = False
    needs_split = False

    def unfit(self, queries: Sequence[Example]) -> str:  # noqa: ARG002
        """Why answers to these queries cannot have this format, to follow "since"; "" if they can."""
        return ""

    @abstractmethod
    def content(self, answers: Sequence[Answered]) -> bytes:
        """The file. The same answers give the same bytes.

        Args:
            answers: In the order of the split. None is of a failed call if `needs_all`.
        """
