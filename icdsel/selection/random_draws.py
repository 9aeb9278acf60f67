"""The selector that draws at random."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from icdsel.records import Pointer
from icdsel.selection.selector import Selector
from icdsel.settings.loading import Settings

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class RandomDraws(Selector):
    """ICDs drawn uniformly from the pool; the usual reference of a comparison."""

    name = "random"
    reference_rank = 2

    def seed(self, settings: Settings) -> int:
        """The setting `infer.random_seed`, by default the general seed, `data.seed`."""
        return settings.data.seed if settings.infer.random_seed is None else settings.infer.random_seed

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """Distinct rows, in the order drawn; they depend only on the seed, the query and the number of shots."""
        return context.pointers(self._drawn(context, shots))

    def _drawn(self, context: "Context", shots: int) -> Iterator[list[int]]:
        seed, pools = self.seed(context.settings), context.pools
        for q, query in enumerate(context.queries):
            rng = random.Random(f"random-{seed}-{query.question_id}")
            if pools.shared:  # avoids a list of the whole training split for each query
                excluded = pools.excluded[q]
                drawn = rng.sample(range(len(context.train)), shots + len(excluded))
                yield [row for row in drawn if row not in excluded][:shots]
            else:
                yield rng.sample(pools[q], shots)
