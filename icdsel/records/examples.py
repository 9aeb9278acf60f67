"""Examples of a dataset, proposed pointers, and the VLM's answers."""

from dataclasses import dataclass
from pathlib import Path

from icdsel.records.values import QuestionId

Pointer = tuple[QuestionId, ...]
"""ICDs in prompt order, by question_id."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image, a question about it, and the reference answers.

    `answer` is the answer that a demonstration shows; `answers` are the (usually ten) human answers that a prediction
    is compared with. If these are not as people wrote them (OK-VQA stems them), `raw_answers` has the originals.
    `question_type` and `answer_type` are those of the annotations, if there are any; they decide nothing.
    """

    question_id: QuestionId
    image_id: QuestionId
    image: Path
    question: str
    answer: str
    answers: tuple[str, ...]
    raw_answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""

    @property
    def written_answers(self) -> tuple[str, ...]:
        """The human answers as people wrote them."""
        return self.raw_answers or self.answers


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pointer to score, and how it was proposed.

    `method` is "policy-beam", "cosine-beam", "policy-sample", "cosine-sample", "retrieval", "random", "answers",
    "pruned" or "zero-shot".
    `log_prob` is the pointer's log-prob under the proposer (for samples, at `temperature`); None if it has none.
    """

    pointer: Pointer
    method: str
    rank: int | None = None
    log_prob: float | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The VLM's answer to one prompt, and the log-probs of the reference answers.

    `reference_log_probs[i]` is the log-prob (nats) of the i-th reference including the end of the turn, summed over
    its `reference_tokens[i]` tokens. `cut` is True if the answer reached its maximum length before it ended. If the
    call failed, `error` is the reason, and the other fields are meaningless. `prompt_tokens` is the length of the
    prompt, the tokens of its images included, where the engine knows it.
    """

    text: str
    reference_log_probs: tuple[float, ...] = ()
    reference_tokens: tuple[int, ...] = ()
    error: str | None = None
    cut: bool = False
    prompt_tokens: int | None = None
