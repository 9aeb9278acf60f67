"""One query's pool and its scored pointers: a line of an RL data file."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from icdsel.records.examples import Example, Pointer
from icdsel.records.scored_pointer import POINTER_KEY, RejectedError, ScoredPointer
from icdsel.records.values import DEFAULT_TASK, BoundsOf, QuestionId, are_ids, is_id, task_entry

_POOL, _CANDIDATES, _EXCLUDED, _WHOLE_SPLIT = "candidate_pool_ids", "pointer_candidates", "excluded_ids", "all"
GROUP_KEYS = (_POOL, _CANDIDATES)
"""The JSON keys by which a line of RL data is recognised."""

# Reasons for rejecting a candidate, in addition to those of `ScoredPointer`.
OUTSIDE_POOL = "an ICD is not in the pool"
REPEATED_ICD = "an ICD is repeated"


class Rejected(NamedTuple):
    """A candidate that cannot be trained on, and why."""

    reason: str
    pointer: Pointer


class PoolIds(NamedTuple):
    """A query's pool as question_ids of the training split; if `ids` is None, the whole split without `excluded`."""

    ids: tuple[QuestionId, ...] | None
    excluded: tuple[QuestionId, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """One query's pool and its scored pointers: a line of RL data.

    Attributes:
        question_id: The query.
        image_id: Its image; -1 if unknown (in Lever-Plus's data).
        question: Its question; "" if unknown (in Lever-Plus's data).
        answers: The reference answers.
        pool: question_ids of the training split; None for the whole split without the `excluded` ones.
        candidates: The scored pointers. They include failed calls only in files that generation writes.
        excluded: Examples that this query must not get, if the pool is the whole split.
        derived: Whether the pool was missing from the data and was derived as the union of the pointers' ICDs.
        task: The task by which the pointers were scored.
    """

    question_id: QuestionId
    image_id: QuestionId
    question: str
    answers: tuple[str, ...]
    pool: tuple[QuestionId, ...] | None
    candidates: tuple[ScoredPointer, ...] = field(repr=False)
    excluded: tuple[QuestionId, ...] = ()
    derived: bool = False
    task: str = DEFAULT_TASK

    @classmethod
    def of_query(cls, query: Example, pool: PoolIds, candidates: Iterable[ScoredPointer], task: str) -> Self:
        """Creates the group of a query of a dataset."""
        return cls(
            question_id=query.question_id,
            image_id=query.image_id,
            question=query.question,
            answers=query.answers,
            pool=pool.ids,
            candidates=tuple(candidates),
            excluded=pool.excluded,
            task=task,
        )

    @classmethod
    def from_json(cls, value: Any, bounds_of: BoundsOf) -> tuple[Self, list[Rejected]]:
        """Validates a line of RL data.

        Returns:
            The group, with the candidates that can be trained on and the failed calls; and the rejected candidates.

        Raises:
            ValueError: It is not a line of RL data, or its pool is invalid.
        """
        if not isinstance(value, dict):
            raise ValueError("not an object")
        required = ("question_id", "image_id", "question", "answers", *GROUP_KEYS)
        if missing := [key for key in required if key not in value]:
            raise ValueError(f"it has no {missing[0]}")
        question_id, image_id, question, answers, pool_ids, candidates = (value[key] for key in required)
        excluded, task = value.get(_EXCLUDED, []), value.get("task", DEFAULT_TASK)
        whole = pool_ids == _WHOLE_SPLIT
        if not (is_id(question_id) and is_id(image_id) and are_ids(excluded) and (whole or are_ids(pool_ids))):
            raise ValueError("one of its ids, or an id in its pool, is neither a 64-bit integer nor a text of one line")
        if not isinstance(answers, list) or not all(isinstance(text, str) for text in (question, task, *answers)):
            raise ValueError("its question, its task or one of its answers is not a string")
        if not isinstance(candidates, list):
            raise ValueError(f"{_CANDIDATES} is not a list")
        pool = None if whole else tuple(pool_ids)
        members, hidden = frozenset(pool or ()), frozenset(excluded)
        if pool is not None and (len(members) < len(pool) or question_id in members):
            raise ValueError("its pool contains an example twice, or the query itself")
        bounds = bounds_of(task)
        kept: list[ScoredPointer] = []
        rejected: list[Rejected] = []
        for candidate in candidates:
            pointer = candidate.get(POINTER_KEY) if isinstance(candidate, dict) else None
            if not are_ids(pointer):
                raise ValueError("the pointer of a candidate is missing, or not a list of ids")
            try:
                if not hidden.isdisjoint(pointer) if pool is None else not members.issuperset(pointer):
                    raise RejectedError(OUTSIDE_POOL)
                if len(set(pointer)) < len(pointer):
                    raise RejectedError(REPEATED_ICD)
                kept.append(ScoredPointer.from_json(candidate, bounds))
            except RejectedError as reason:
                rejected.append(Rejected(str(reason), tuple(pointer)))
        group = cls(
            question_id=question_id,
            image_id=image_id,
            question=question,
            answers=tuple(answers),
            pool=pool,
            candidates=tuple(kept),
            excluded=tuple(excluded),
            task=task,
        )
        return group, rejected

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        whole = self.pool is None
        return {
            **task_entry(self.task),
            "question_id": self.question_id,
            "image_id": self.image_id,
            "question": self.question,
            "answers": list(self.answers),
            _POOL: _WHOLE_SPLIT if self.pool is None else list(self.pool),
            **({_EXCLUDED: list(self.excluded)} if whole else {}),
            _CANDIDATES: [candidate.to_json() for candidate in self.candidates],
        }

    @property
    def failed(self) -> int:
        """The number of candidates that are failed calls."""
        return sum(candidate.error is not None for candidate in self.candidates)

    def without_failed(self) -> "QueryGroup":
        """Returns the group without failed calls, as training requires."""
        return replace(self, candidates=tuple(c for c in self.candidates if c.error is None)) if self.failed else self
