"""The selector that has another one choose from the whole training split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from icdsel.records import Example, Pointer
from icdsel.selection.selector import Selector
from icdsel.settings.loading import Settings
from icdsel.settings.values import PoolSize

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class FromWholeSplit(Selector):
    """Another selector, choosing from the whole training split, whatever the candidate pools are.

    Args:
        selector: The other one; this one is called `<its name>-all`.
    """

    whole_split = True

    def __init__(self, selector: Selector) -> None:
        self.selector, self.name = selector, f"{selector.name}-all"
        self.needs_similarity, self.needs_vlm = selector.needs_similarity, selector.needs_vlm

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The other selector's choice from the whole training split without what is excluded for the query."""
        return self.selector.choose(context.whole_split, shots)

    def answer(self, icds: Sequence[Example]) -> str:
        """As the other selector answers."""
        return self.selector.answer(icds)

    def seed(self, settings: Settings) -> int | None:
        """The seed of the other selector."""
        return self.selector.seed(settings)

    def over(self, pool_size: PoolSize) -> Selector:
        """The other selector, where the candidate pools are the whole training split anyway."""
        return self.selector if pool_size == "all" else self
