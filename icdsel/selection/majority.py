"""The selector that copies an answer instead of querying the VLM."""

from collections.abc import Sequence

from icdsel.records import Example
from icdsel.selection.nearest import Nearest
from icdsel.tasks.base import majority_answer


class Majority(Nearest):
    """The most common answer of the nearest neighbours: the strongest baseline that needs neither training nor VLM."""

    needs_vlm = False
    always_shown = True

    def __init__(self) -> None:
        super().__init__("majority", "both")

    def answer(self, icds: Sequence[Example]) -> str:
        """The ICDs' most common answer; ties go to the first in the prompt."""
        return majority_answer([icd.answer for icd in icds])
