"""Scores the VLM's answers for RL data and predictions."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

from icdsel.records import Answer, Example, Pointer, Prediction, Proposal, ScoredPointer, Shots
from icdsel.tasks.base import TASKS, Metric, Task
from icdsel.tasks.cleaners import CLEANERS, Cleaner
from icdsel.tasks.corpus import Judged

SCORER_VERSION = 4
"""Part of the inputs of every result that contains answers of the VLM. It is increased when a change to the code
changes answers or scores for the same prompts, or the pools and proposals that are drawn."""


ChoiceBy = Literal["generate", "rank", "rank-per-token"]
"""How an option becomes the answer: the VLM names it, or it has the highest log-prob, or the highest one per token."""
GENERATE: ChoiceBy = "generate"
RANK_PER_TOKEN: ChoiceBy = "rank-per-token"


@dataclass(frozen=True)
class Scorer:
    """How answers are cleaned and scored."""

    task: Task
    metric: Metric
    cleaner: Cleaner
    choice_by: ChoiceBy = GENERATE

    @classmethod
    def named(cls, task: str, metric: str | None, cleaner: str) -> Self:
        """Creates a scorer from names; `metric` None selects the task's default.

        Raises:
            SettingsError: A name is unknown.
        """
        own = TASKS.named(task)
        chosen = own.metrics.named(metric or own.default_metric)
        return cls(own.named_by(chosen.name), chosen, CLEANERS.named(cleaner))

    @property
    def ranks(self) -> bool:
        """Whether the option with the highest log-prob counts as the answer."""
        return self.choice_by != GENERATE

    def prepared(self, examples: Iterable[Example]) -> Self:
        """The scorer for queries of a split, whose examples these are (`Task.prepared`)."""
        task = self.task.prepared(examples)
        if task is self.task:
            return self
        name = self.metric.name
        return replace(self, task=task.named_by(name), metric=task.metrics.named(name))

    def scored_pointer(
        self, proposal: Proposal, answer: Answer, query: Example, references: Mapping[str, float]
    ) -> ScoredPointer:
        """Scores the answer to a proposal, to six significant digits; for a failed call, records the error.

        Args:
            proposal: The pointer.
            answer: The VLM's answer, with the log-probs of the references in their order.
            query: The query.
            references: The references that the VLM was asked for, with their weights; empty if for none.

        Raises:
            ValueError: The answer has the log-probs of more or fewer references.
        """
        task = self.task
        how = (proposal.pointer, proposal.method, proposal.rank, _rounded(proposal.log_prob), proposal.temperature)
        if answer.error is not None:
            return ScoredPointer(*how, error=answer.error)
        prediction = self._prediction(answer, query)
        score, correct = self._score(self.metric, prediction, query), None
        if task.correctness is not None:
            correct = int(task.correctness.is_correct(score))
        relevance = task.relevance(prediction, query)
        given = list(zip(references.values(), answer.reference_log_probs, answer.reference_tokens, strict=True))

        def expected(prob: Callable[[float, int], float]) -> float | None:
            return _rounded(sum(w * prob(log_prob, n) for w, log_prob, n in given)) if given else None

        return ScoredPointer(
            *how,
            prediction=prediction,
            correct=correct,
            score=_rounded(score),
            reference_prob=expected(lambda log_prob, _: math.exp(log_prob)),
            reference_prob_per_token=expected(lambda log_prob, n: math.exp(log_prob / n)),
            token_f1=_rounded(relevance and relevance.token_f1),
            edit_similarity=_rounded(relevance and relevance.edit_similarity),
            relevance=_rounded(relevance and relevance.score),
            margin=_rounded(self._margin(answer, references)),
            prompt_tokens=answer.prompt_tokens,
        )

    def prediction(self, query: Example, icds: Pointer, answer: Answer, shots: Shots | None = None) -> Prediction:
        """Scores the answer to a query by all metrics, to six decimals; for a failed call, records the error.

        A query without reference answers gets no scores.

        Args:
            query: The query.
            icds: The ICDs that were shown with it.
            answer: The VLM's answer.
            shots: How many were to be shown; by default their number.
        """
        shots = len(icds) if shots is None else shots
        made = partial(Prediction, query.question_id, shots, icds, task=self.task.name, image=query.image_id)
        if answer.error is not None:
            return made(error=answer.error)
        text = self._prediction(answer, query)
        if not query.answers:
            return made(prediction=text, prompt_tokens=answer.prompt_tokens)
        scores = {metric.name: round(self._score(metric, text, query), 6) for metric in self.task.metrics.values()}
        score = scores.pop(self.metric.name)
        judged = Judged(text, tuple(self._values(answer)) if self.ranks else ())
        found = {metric.name: metric.statistic(judged, query) for metric in self.task.corpus_metrics.values()}
        return made(
            prediction=text,
            score=score,
            other_scores=scores,
            prompt_tokens=answer.prompt_tokens,
            statistics={name: statistic for name, statistic in found.items() if statistic is not None},
        )

    def _prediction(self, answer: Answer, query: Example) -> str:
        """The prediction that an answer is. If options are ranked, its references are the task's candidates.

        An answer that is not the VLM's, as that of `majority`, has no log-probs to rank.
        """
        if not (self.ranks and answer.reference_log_probs):
            return self.task.read(self.cleaner.clean(answer.text), query)
        values = self._values(answer)
        return query.options[max(range(len(values)), key=values.__getitem__)]  # the first of equal ones

    def _values(self, answer: Answer) -> list[float]:
        """What options are ranked by: their log-probs (nats), or those per token."""
        per_token = self.choice_by == RANK_PER_TOKEN
        pairs = zip(answer.reference_log_probs, answer.reference_tokens, strict=True)
        return [log_prob / count if per_token else log_prob for log_prob, count in pairs]

    def _margin(self, answer: Answer, references: Mapping[str, float]) -> float | None:
        """How far the right option is ahead of the best wrong one; None without options or their log-probs."""
        if not (self.task.has_options and references):
            return None
        values = list(zip(references.values(), self._values(answer), strict=True))
        right, wrong = ([value for weight, value in values if bool(weight) is is_right] for is_right in (True, False))
        return max(right) - max(wrong) if right and wrong else None

    def _score(self, metric: Metric, prediction: str, query: Example) -> float:
        score, (lowest, highest) = metric.score(prediction, query), self.task.bounds
        # As files round it; readers reject files with a score that lies outside.
        if not (lowest <= round(score, 6) <= highest and math.isfinite(score)):
            raise ValueError(
                f"the metric {metric.name} of the task {self.task.name} gives {score} for {prediction!r}: "
                f"a score must lie within the task's bounds, {lowest} to {highest}"
            )
        return score


def _rounded(value: float | None) -> float | None:
    """Rounds to six significant digits, the precision of float32 results."""
    return None if value is None else float(f"{value:.6g}")
