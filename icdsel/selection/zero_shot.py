"""The selector that shows nothing."""

from typing import TYPE_CHECKING

from icdsel.records import Pointer
from icdsel.selection.selector import Selector

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class ZeroShot(Selector):
    """The query alone, without ICDs."""

    name = "zero-shot"
    shows_icds = False
    always_shown = True
    reference_rank = 1

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:  # noqa: ARG002
        """An empty pointer for each query."""
        return [() for _ in context.queries]
