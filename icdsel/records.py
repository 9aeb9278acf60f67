"""The typed records that travel between the stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Pointer = tuple[int, ...]
"""ICDs in prompt order, by question_id."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image, a question about it, and what people answered.

    `answer` is what a demonstration shows; `answers` are the (usually ten) human answers that a prediction is
    compared with. Where these are not what people wrote (OK-VQA stems them), `raw_answers` are that.
    """

    question_id: int
    image_id: int
    image: Path
    question: str
    answer: str
    answers: tuple[str, ...]
    raw_answers: tuple[str, ...] = ()

    @property
    def written_answers(self) -> tuple[str, ...]:
        """The human answers as people wrote them."""
        return self.raw_answers or self.answers


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pointer to try, and where it comes from.

    `method` is "policy-beam", "cosine-beam", "policy-sample", "cosine-sample", "retrieval" or "random".
    `log_prob` is the proposer's (at `temperature`, for samples); None where it has none.
    """

    pointer: Pointer
    method: str
    rank: int | None = None
    log_prob: float | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the VLM said to one prompt, and what it thought of each reference answer.

    `reference_log_probs[i]` is the log-prob (nats) of the i-th reference with the end of the turn, summed over
    its `reference_tokens[i]` tokens. Where the call failed, `error` says why and nothing else counts.
    """

    text: str
    reference_log_probs: tuple[float, ...] = ()
    reference_tokens: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """One query's pool and its scored pointers: a line of the RL data.

    `pool` holds question_ids of the training split; None is the whole of it without the `excluded` ones. Every
    candidate is a mapping with the original's names (`pointer` as question_ids, `gen_method`, `vqa_pred_answer`,
    `vqa_correct`, `vqa_acc_score`, `vqa_gt_prob`, …).
    """

    question_id: int
    image_id: int
    question: str
    answers: tuple[str, ...]
    pool: tuple[int, ...] | None
    candidates: tuple[Mapping[str, Any], ...] = field(repr=False)
    excluded: tuple[int, ...] = ()
    derived: bool = False
    """Whether nothing but the pointers says what the pool was: it holds their ICDs."""
