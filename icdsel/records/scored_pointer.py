"""A pointer with the VLM's answer and its scores: the central record of RL data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, Self

from icdsel.records.examples import Pointer
from icdsel.records.values import Bounds, is_finite, is_int64, is_number, is_prompt_length

POINTER_KEY = "pointer"
_PREDICTION, _FAILED, _ERROR, _TOKENS = "vqa_pred_answer", "eval_failed", "error", "prompt_tokens"
_PROPOSAL_KEYS = {
    "method": "gen_method",
    "rank": "beam_rank",
    "log_prob": "logprob_score",
    "temperature": "temperature",
}
_SCORE_KEYS = {
    "correct": "vqa_correct",
    "score": "vqa_acc_score",
    "reference_prob": "vqa_gt_prob",
    "reference_prob_per_token": "vqa_gt_prob_norm",
    "token_f1": "vqa_rel_token_f1",
    "edit_similarity": "vqa_rel_edit_sim",
    "relevance": "vqa_rel_score",
    "margin": "vqa_margin",
}
REFERENCE_SCORES = ("reference_prob", "reference_prob_per_token")
"""The scores that need the probabilities of the reference answers; None where the VLM did not give them."""
_KEYS = {**_PROPOSAL_KEYS, "prediction": _PREDICTION, **_SCORE_KEYS}  # by attribute, in the order of the JSON
_MOST_REFERENCES = 10  # per query in VQA; each has a weight of at most the highest score


class RejectedError(ValueError):
    """A candidate cannot be trained on. The message is the reason; rejected candidates are counted by it."""


BAD_SCORE = "a score is not a number, or is out of range"
BAD_FIELD = "a field has the wrong type"


@dataclass(frozen=True, slots=True)
class ScoredPointer:
    """A proposal with the VLM's answer and its scores, or the error of a failed call.

    Attributes:
        pointer: The ICDs.
        method: How the pointer was proposed.
        rank: Its rank in the beam, or among the neighbours.
        log_prob: Its log-prob under the proposer.
        temperature: The temperature it was sampled at.
        prediction: The cleaned answer.
        correct: 1 if the prediction is correct, else 0; None if the task does not define correctness.
        score: The score of the prediction by the task's metric.
        reference_prob: Σ weight × probability over the reference answers, including the end of the turn; None if
            they were not scored.
        reference_prob_per_token: The same with the geometric mean of each answer's token probabilities.
        token_f1: Similarity of the prediction to the most similar reference, by tokens.
        edit_similarity: The same by characters.
        relevance: The larger of `token_f1` and `edit_similarity`.
        margin: How far the log-prob of the right option is above that of the best wrong one, in nats; None if the task
            has no options, or they were not scored.
        error: Why the call failed; in that case there is neither a prediction nor a score.
        prompt_tokens: The length of the prompt in tokens of the VLM, those of images included; None if it is not known:
            for a failed call, and in files from before it was recorded.
    """

    pointer: Pointer
    method: str | None = None
    rank: int | None = None
    log_prob: float | None = None
    temperature: float | None = None
    prediction: str | None = None
    correct: float | None = None
    score: float | None = None
    reference_prob: float | None = None
    reference_prob_per_token: float | None = None
    token_f1: float | None = None
    edit_similarity: float | None = None
    relevance: float | None = None
    margin: float | None = None
    error: str | None = None
    prompt_tokens: int | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any], bounds: Bounds) -> Self:
        """Validates a JSON object whose `pointer` is a list of ids.

        If `vqa_correct` is missing, it is derived by its definition in VQA: 1 if the score is above 0, else 0.

        Raises:
            RejectedError: A field has the wrong type, or a score is missing or out of range.
        """
        proposal = {name: value.get(key) for name, key in _PROPOSAL_KEYS.items()}
        rank, numbers = proposal["rank"], (proposal["log_prob"], proposal["temperature"])
        if not (
            isinstance(proposal["method"], str | None)
            and (rank is None or is_int64(rank))
            and all(number is None or is_finite(number) for number in numbers)
        ):
            raise RejectedError(BAD_FIELD)
        pointer = tuple(value[POINTER_KEY])
        if value.get(_FAILED):
            return cls(pointer, **proposal, error=str(value.get(_ERROR) or "no reason is given"))
        prediction = value.get(_PREDICTION)
        tokens = value.get(_TOKENS)
        if not isinstance(prediction, str | None) or not (tokens is None or is_prompt_length(tokens)):
            raise RejectedError(BAD_FIELD)
        scores = {name: value.get(key) for name, key in _SCORE_KEYS.items()}
        ranges = _ranges(bounds)
        if scores["score"] is None or not all(
            number is None or (is_finite(number) and is_number(number, *ranges[name]))
            for name, number in scores.items()
        ):
            raise RejectedError(BAD_SCORE)
        if _SCORE_KEYS["correct"] not in value:
            scores["correct"] = int(scores["score"] > 0)
        return cls(pointer, **proposal, prediction=prediction, **scores, prompt_tokens=tokens)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        keys = _KEYS if self.error is None else _PROPOSAL_KEYS
        value = {POINTER_KEY: list(self.pointer)} | {key: getattr(self, name) for name, key in keys.items()}
        if self.error is not None:
            return value | {_FAILED: True, _ERROR: self.error}
        if self.margin is None:  # a task without options has no such key
            del value[_SCORE_KEYS["margin"]]
        return value if self.prompt_tokens is None else value | {_TOKENS: self.prompt_tokens}


@cache
def _ranges(bounds: Bounds) -> Mapping[str, Bounds]:
    """The valid range of each score."""
    ranges = dict.fromkeys(_SCORE_KEYS, (0.0, 1.0)) | {"score": bounds}
    ranges |= dict.fromkeys(REFERENCE_SCORES, (0.0, _MOST_REFERENCES * max(1.0, bounds[1])))
    return ranges | {"margin": (-math.inf, math.inf)}


Candidate = ScoredPointer | Mapping[str, Any]
"""A scored pointer, or a mapping with its JSON keys."""


def score_key(name: str) -> str:
    """The JSON key of a score; `name` is an attribute of `ScoredPointer`."""
    return _SCORE_KEYS[name]


def size_of(candidate: Candidate) -> tuple[int, int | None]:
    """How many ICDs a candidate shows, and the length of its prompt in tokens, if that is known."""
    if isinstance(candidate, ScoredPointer):
        return len(candidate.pointer), candidate.prompt_tokens
    return len(candidate[POINTER_KEY]), candidate.get(_TOKENS)


def score_of(candidate: Candidate, name: str) -> float:
    """A score of a candidate, by attribute name; 0 if it is missing or None.

    In a mapping a missing `vqa_correct` is derived, as in `ScoredPointer.from_json`.

    Raises:
        ValueError: A mapping's value is not a finite number, or the call failed, which must not count as a score of 0.
    """
    if isinstance(candidate, ScoredPointer):
        if candidate.error is not None:
            raise ValueError(f"pointer {list(candidate.pointer)} has no {name}: its VLM call failed")
        return float(getattr(candidate, name) or 0.0)
    key = _SCORE_KEYS[name]
    if name == "correct" and key not in candidate:
        return float(score_of(candidate, "score") > 0)
    value = candidate.get(key)
    if value is None:
        return 0.0
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, not {value!r}")
    return float(value)
