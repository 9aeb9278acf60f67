"""The selector that draws at random, each answer as often as any other."""

import random
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from icdsel.records import Pointer
from icdsel.selection.random_draws import RandomDraws

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class Balanced(RandomDraws):
    """ICDs drawn at random with different answers: an answer, all with the same probability, then one of its examples.

    No answer is repeated before each has been shown. Zhao et al., "Calibrate before use", ICML 2021, show that a model
    prefers the answer that most of its ICDs have; random draws show frequent answers most often.
    """

    name = "balanced"
    reference_rank = 0

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """Distinct rows, in the order drawn; they depend only on the seed, the query and the number of shots."""
        return context.pointers(self._balanced(context, shots))

    def _balanced(self, context: "Context", shots: int) -> Iterator[list[int]]:
        seed, pools, train = self.seed(context.settings), context.pools, context.train
        answers = [example.answer for example in train]
        shared = _by_answer(range(len(train)), answers) if pools.shared else None
        for q, query in enumerate(context.queries):
            rng = random.Random(f"balanced-{seed}-{query.question_id}")
            groups = shared if shared is not None else _by_answer(pools[q], answers)
            yield balanced_draws(groups, shots, pools.excluded[q] if shared is not None else frozenset(), rng)


def balanced_draws(
    groups: Sequence[Sequence[int]], count: int, excluded: AbstractSet[int], rng: random.Random
) -> list[int]:
    """Draws rows in rounds; each round draws one from every group, in random order.

    Args:
        groups: The rows by group; at least `count` rows are not excluded.
        count: How many rows.
        excluded: Rows that must not be drawn.
        rng: The source of the draws.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        # So many are enough for the first round, since each excluded row empties one group at most; if there are more
        # groups, there is no second round. So not all answers of a large training split need to be shuffled.
        for group in rng.sample(groups, min(len(groups), count + len(excluded))):
            taken = {*chosen, *excluded}
            drawn = rng.sample(group, min(len(group), len(taken) + 1))
            chosen += [row for row in drawn if row not in taken][:1]
    return chosen[:count]


def _by_answer(rows: Iterable[int], answers: Sequence[str]) -> list[list[int]]:
    """The rows by their answer, the answers in the order of the rows."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(answers[row], []).append(row)
    return list(groups.values())
