"""Examples of a dataset, proposed pointers, and the VLM's answers."""

from dataclasses import dataclass
from pathlib import Path

from icdsel.records.values import QuestionId

PLACE = "\ufffc"
"""Stands in a question where one of several images belongs: Unicode's character for an embedded object."""

Pointer = tuple[QuestionId, ...]
"""ICDs in prompt order, by question_id."""


@dataclass(frozen=True, slots=True)
class Example:
    """One or more images, a question about them, and the reference answers.

    Attributes:
        question_id: Its id.
        image_id: The id of its image, or of its images together.
        image: The first image.
        question: The question. Images are shown in front of it, or where a `PLACE` stands for each of them.
        answer: The answer that a demonstration shows.
        answers: The (usually ten) human answers that a prediction is compared with.
        raw_answers: The same as people wrote them, if `answers` are not (OK-VQA stems them).
        question_type: That of the annotations, if there is any; it decides nothing.
        answer_type: The same of the answer.
        more_images: The images after the first one.
        options: The answers to choose from, if the question names them.
        pool: The examples from which demonstrations are chosen for this query alone, if it brings its own.
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
    more_images: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    pool: Pointer | None = None

    @property
    def images(self) -> tuple[Path, ...]:
        """All images, in the order in which they are shown."""
        return (self.image, *self.more_images)

    @property
    def text(self) -> str:
        """The question without the places of images."""
        return " ".join(self.question.replace(PLACE, " ").split()) if PLACE in self.question else self.question

    @property
    def readable(self) -> str:
        """The question as tables show it: with `[image]` where an image stands."""
        return self.question.replace(PLACE, "[image]")

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
