"""A unit of queries: the VLM answers every proposal, and the records of RL data are made of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from icdsel.artefacts.candidates import score_candidate
from icdsel.records import Answer, Example, Proposal
from icdsel.stages.session import Session
from icdsel.tasks.vqa import answer_weights
from icdsel.vlm.engine import Request

UNIT = 32


class Tally:
    """Counts, over what this command asked the VLM, the pointers that it answered correctly."""

    def __init__(self) -> None:
        self.asked = self.correct = self.scored = 0

    def __call__(self, candidates: Iterable[Mapping[str, Any]]) -> str:
        """Takes more scored candidates in; the share of correct ones so far, in words."""
        for candidate in candidates:
            self.asked += 1
            if "error" not in candidate:
                self.scored += 1
                self.correct += candidate["vqa_correct"]
        return f"{self.correct / self.scored:.1%} correct" if self.scored else ""


def score_unit(
    session: Session,
    queries: Sequence[Example],
    pools: Sequence[Mapping[str, Any]],
    proposals: Sequence[Sequence[Proposal]],
    on_scored: Callable[[Sequence[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Asks the VLM about every proposal of some queries.

    Args:
        session: The training split, whose examples are the ICDs, and the VLM.
        queries: The queries.
        pools: What their records say of their pools.
        proposals: The pointers of each query.
        on_scored: Gets candidates as their answers come.

    Returns:
        The RL data's record of each query.

    Raises:
        CallsError: too many VLM calls failed.
    """
    settings = session.settings
    asked = [(query, proposal) for query, made in zip(queries, proposals, strict=True) for proposal in made]
    references = {query.question_id: tuple(answer_weights(query.written_answers)) for query in queries}
    requests = [
        Request(tuple(map(session.train.by_id, proposal.pointer)), query, references[query.question_id])
        for query, proposal in asked
    ]
    scored: dict[int, dict[str, Any]] = {}

    def score(answers: Mapping[int, Answer]) -> None:
        for i, answer in answers.items():
            query, proposal = asked[i]
            scored[i] = score_candidate(proposal, answer, query, settings.vlm, settings.data.metric)
        on_scored([scored[i] for i in answers])

    session.vlm.answer(requests, score)
    candidates = (scored[i] for i in range(len(asked)))
    return [
        {
            "question_id": query.question_id,
            "image_id": query.image_id,
            "question": query.question,
            "answers": list(query.answers),
            **pool,
            "pointer_candidates": list(islice(candidates, len(made))),
        }
        for query, pool, made in zip(queries, pools, proposals, strict=True)
    ]
