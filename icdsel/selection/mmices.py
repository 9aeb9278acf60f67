"""The selector that shortlists by image, and ranks by question."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from icdsel.records import Pointer
from icdsel.selection.selector import Selector

if TYPE_CHECKING:
    from icdsel.selection.context import Context

SHORTLIST = 100
"""The largest number of candidates that are shortlisted by image."""
_SHARE = 4  # at most one candidate of so many: in a pool of 64, a shortlist of 100 would be no shortlist


class Mmices(Selector):
    """The most similar questions among the most similar images.

    MMICES: Chen et al., "Understanding and improving in-context learning on vision-language models", 2023
    (arXiv 2311.18021). The shortlist holds a quarter of the candidates, at most 100, found exactly; equal questions, of
    which real data have many, are ranked by image.
    """

    name = "mmices"
    needs_similarity = True

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The most similar question last: next to the query in the prompt."""
        return context.pointers(row[:shots][::-1] for row in self._ranked(context, shots))

    def _ranked(self, context: "Context", shots: int) -> Iterator[list[int]]:
        queries, train = (embeddings.question for embeddings in context.similar)  # (Q, d), (N, d)
        size = max(1, min(SHORTLIST, context.pools.smallest // _SHARE))
        for query, by_image in zip(queries, context.nearest("image", max(size, shots)), strict=True):
            shortlist, others = by_image[:size], by_image[size:]  # others if there are more shots than shortlisted
            order = (train[shortlist] @ query).sort(descending=True, stable=True).indices
            yield [shortlist[place] for place in order.tolist()] + others
