"""From what the VLM said to what it is worth: the cleaned answer, its accuracies, a candidate's record."""

import math
from collections.abc import Mapping
from typing import Any

from icdsel.records import Answer, Example, Proposal
from icdsel.settings.tables import Metric, VlmSettings
from icdsel.store.json_reading import is_number
from icdsel.tasks.lever_plus_answers import cut_answer
from icdsel.tasks.vqa import METRICS, accuracy, answer_weights, relevance

SCORER_VERSION = 3
"""Part of the identity of what the VLM said: raised when the answers or scores of the same prompts, or the draws of
pools and proposals, change."""

SCORE_RANGES = {
    "vqa_acc_score": (0.0, 1.0),
    "vqa_correct": (0.0, 1.0),
    "vqa_gt_prob": (0.0, 10.0),  # ten human answers of at most 1 each
    "vqa_rel_score": (0.0, 1.0),
}
"""The scores of a candidate that a reward can be made of, and between what they lie."""


def has_valid_scores(candidate: Mapping[str, Any]) -> bool:
    """Whether the accuracy is there and every score is a number within its range (or None)."""
    return candidate.get("vqa_acc_score") is not None and all(
        is_number(value, least, most)
        for name, (least, most) in SCORE_RANGES.items()
        if (value := candidate.get(name)) is not None
    )


def prediction_of(answer: Answer, settings: VlmSettings) -> str:
    """The text that is compared with the human answers: without outer spaces, or cut as Lever-Plus cuts it."""
    return cut_answer(answer.text) if settings.clean_answers == "lever-plus" else answer.text.strip()


def accuracies(prediction: str, query: Example, metric: Metric) -> dict[str, float]:
    """`accuracy` by `metric`, and `accuracy_<metric>` by each of the others."""
    others = {f"accuracy_{other}": accuracy(prediction, query.answers, other) for other in METRICS if other != metric}
    values = {"accuracy": accuracy(prediction, query.answers, metric)} | others
    return {name: round(value, 6) for name, value in values.items()}


def score_candidate(
    proposal: Proposal, answer: Answer, query: Example, settings: VlmSettings, metric: Metric
) -> dict[str, Any]:
    """A candidate's record: where it comes from, the answer, its correctness, the right answer's probability.

    `vqa_gt_prob` is Σ over distinct human answers of accuracy × probability (end of the turn included);
    `vqa_gt_prob_norm` the same with each probability's geometric mean per token. A failed call has `error` and
    `eval_failed` and no scores.
    """
    record: dict[str, Any] = {"pointer": list(proposal.pointer), "gen_method": proposal.method}
    record |= {"beam_rank": proposal.rank, "logprob_score": _rounded(proposal.log_prob)}
    record |= {"temperature": proposal.temperature}
    if answer.error is not None:
        return record | {"eval_failed": True, "error": answer.error}
    prediction = prediction_of(answer, settings)
    soft = accuracy(prediction, query.answers, metric)
    weights = answer_weights(query.written_answers).values()
    scored = list(zip(weights, answer.reference_log_probs, answer.reference_tokens, strict=True))
    return record | {
        "vqa_pred_answer": prediction,
        "vqa_correct": int(soft > 0),
        "vqa_acc_score": _rounded(soft),
        "vqa_gt_prob": _rounded(sum(weight * math.exp(log_prob) for weight, log_prob, _ in scored)),
        "vqa_gt_prob_norm": _rounded(sum(weight * math.exp(log_prob / n) for weight, log_prob, n in scored)),
        **{name: _rounded(value) for name, value in relevance(prediction, query.answers).items()},
    }


def _rounded(value: float | None) -> float | None:
    """Six significant digits: what a float32 model can vouch for."""
    return None if value is None else float(f"{value:.6g}")
