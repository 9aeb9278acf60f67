"""Selectors that show the nearest neighbours of the query."""

from typing import TYPE_CHECKING

from icdsel.records import Pointer
from icdsel.retrieval.samplers import Kind
from icdsel.selection.selector import Selector

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class Nearest(Selector):
    """The training examples most similar to the query.

    Liu et al., "What makes good in-context examples for GPT-3?", 2022; by image, as RICES: Yang et al., "An empirical
    study of GPT-3 for few-shot knowledge-based VQA", AAAI 2022.

    Args:
        name: What users type.
        kind: What similarity is measured on.
    """

    needs_similarity = True

    def __init__(self, name: str, kind: Kind) -> None:
        self.name, self.kind = name, kind

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The nearest rows, the most similar last: next to the query in the prompt."""
        return context.pointers(row[:shots][::-1] for row in context.nearest(self.kind))
