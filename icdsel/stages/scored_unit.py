"""A unit of queries: the VLM answers the prompt of every proposal, and each query becomes a line of RL data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from icdsel.errors import VlmError
from icdsel.policy.references import references_needed_by, scores_references
from icdsel.records import Answer, Example, PoolIds, Proposal, QueryGroup, ScoredPointer
from icdsel.stages.answer_cache import ask
from icdsel.stages.session import Session
from icdsel.tasks.base import Task
from icdsel.tasks.scoring import Scorer
from icdsel.vlm.task_prompts import TaskPrompts

UNIT = 32


def require_references(session: Session) -> None:
    """Checks that the VLM gives the log-probs of reference answers.

    Raises:
        VlmError: It does not.
    """
    if not session.vlm.can_score_references:
        reader = references_needed_by(session.settings) or "--references labels"
        raise VlmError(
            f"{session.vlm.name} does not give the log-probs of reference answers, which {reader} needs: "
            f"{session.vlm.why_no_references}. Use another --engine, or settings that do not need them"
        )


class Tally:
    """The running quality of the pointers scored by this command.

    Args:
        task: Decides what the quality is: the share of correct predictions, else the mean score.
    """

    def __init__(self, task: Task) -> None:
        self.requests = 0
        """Prompts, failed ones included."""
        self._task, self._scored, self._total = task, 0, 0.0

    @property
    def none_correct(self) -> bool:
        """Whether nothing has scored above 0 yet."""
        return not self._total

    def __call__(self, candidates: Iterable[ScoredPointer]) -> str:
        """Counts more candidates; returns the quality as text."""
        task = self._task
        for candidate in candidates:
            self.requests += 1
            if candidate.error is None:
                self._scored += 1
                self._total += (candidate.score if task.correctness is None else candidate.correct) or 0.0
        if not self._scored:
            return ""
        mean = self._total / self._scored
        return f"mean {task.short_name} {task.text(mean)}" if task.correctness is None else f"{mean:.1%} correct"


def score_unit(
    session: Session,
    queries: Sequence[Example],
    pools: Sequence[PoolIds],
    proposals: Sequence[Sequence[Proposal]],
    scorer: Scorer,
    on_scored: Callable[[Sequence[ScoredPointer]], None],
    references: bool | None = None,
) -> list[QueryGroup]:
    """Has the VLM answer the prompts of every proposal of some queries.

    Args:
        session: The training split, whose examples are the ICDs, and the VLM.
        queries: The queries.
        pools: Their pools.
        proposals: The pointers of each query.
        scorer: That of the split of the queries (`Session.scorer`).
        on_scored: Called with candidates as their answers arrive.
        references: Whether reference answers are scored too; by default as the settings say.

    Returns:
        The group of each query, with its failed calls.

    Raises:
        CallsError: Too many VLM calls failed.
        VlmError: Reference answers are to be scored, and the VLM gives no log-probs of them.
        SettingsError: `--references none` forbids what something needs.
    """
    task = scorer.task
    pairs = [(query, proposal) for query, proposed in zip(queries, proposals, strict=True) for proposal in proposed]
    wanted = scores_references(session.settings) if references is None else references
    weights = {query.question_id: task.references(query) if wanted else {} for query in queries}
    prompts = TaskPrompts(task)
    requests = [
        prompts.request(map(session.train.by_id, proposal.pointer), query, weights[query.question_id])
        for query, proposal in pairs
    ]
    if any(weights.values()):
        require_references(session)
    scored: dict[int, ScoredPointer] = {}

    def score(answers: Mapping[int, Answer]) -> None:
        for i, answer in answers.items():
            query, proposal = pairs[i]
            scored[i] = scorer.scored_pointer(proposal, answer, query, weights[query.question_id])
        on_scored([scored[i] for i in answers])

    ask(session, requests, score)
    candidates = (scored[i] for i in range(len(pairs)))
    return [
        QueryGroup.of_query(query, pool, islice(candidates, len(proposed)), task.name)
        for query, pool, proposed in zip(queries, pools, proposals, strict=True)
    ]
