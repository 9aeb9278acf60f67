"""Checks the pools that queries bring themselves: they name examples of the training split."""

from collections.abc import Collection, Iterable

from icdsel.data.parsing import quoted
from icdsel.errors import DataError, Refuse
from icdsel.records import Example, QuestionId


class UnknownPoolError(DataError):
    """The pools of `count` queries name examples that are not in the training split."""

    def __init__(self, where: object, query: QuestionId, unknown: Collection[QuestionId], count: int) -> None:
        more = f", and so do the pools of {count - 1} other queries" if count > 1 else ""
        super().__init__(
            f"{where}: the pool of question {query} names examples that are not in the training split, first "
            f"{quoted([*unknown][:3])}{more}. Name training examples by their ids, exactly as they are there (7 is not "
            '"7"), or ignore pools with --columns pool='
        )
        self.count = count


def require_known(where: object, queries: Iterable[Example], known: Collection[QuestionId], refuse: Refuse) -> None:
    """Calls `refuse` with one error if pools of queries name other ids than those `known` in the training split."""
    first: tuple[QuestionId, list[QuestionId]] | None = None
    count = 0
    for query in queries:
        if query.pool is not None and (unknown := [icd for icd in query.pool if icd not in known]):
            first = first or (query.question_id, unknown)
            count += 1
    if first is not None:
        refuse(UnknownPoolError(where, *first, count))
