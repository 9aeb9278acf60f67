"""The selector that knows the scores: an upper bound for the others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from icdsel.records import Pointer, QuestionId, id_order
from icdsel.selection.scored import Scored
from icdsel.selection.selector import Selector

if TYPE_CHECKING:
    from icdsel.selection.context import Context


class Oracle(Selector):
    """The best of the pointers that were scored for the query (`icdsel gen-rl-data --split validation`)."""

    name = "oracle"
    needs_rl_data = True
    upper_bound = True

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """By accuracy, then by the right answer's probability; None for a query without a pointer of this length."""
        return [_best(context.scored.get(query.question_id, ()), shots) for query in context.queries]


def _best(scored: Sequence[Scored], shots: int) -> Pointer | None:
    fitting = [entry for entry in scored if len(entry[-1]) == shots]
    return max(fitting, key=_rank)[-1] if fitting else None


def _rank(scored: Scored) -> tuple[float, float, list[tuple[bool, QuestionId]]]:
    """Ties of both scores are decided by the ICDs, so that the order of the file does not matter."""
    score, prob, pointer = scored
    return score, prob, [id_order(icd) for icd in pointer]
