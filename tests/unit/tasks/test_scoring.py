"""From the VLM's answer to lines of RL data and predictions."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from toy_task import LETTERS

from icdsel.errors import SettingsError
from icdsel.records import Answer, Example, Prediction, Proposal
from icdsel.tasks.base import TASKS, Metric
from icdsel.tasks.scoring import Scorer
from icdsel.tasks.vqa_accuracy import answer_weights

ANSWERS = ("doni",) * 7 + ("gesa",) * 2 + ("no code",)
QUERY = Example(5, 5, Path("5.png"), "Which code?", "doni", ANSWERS)
PROPOSAL = Proposal((11, 12), "cosine-beam", rank=0, log_prob=-1.23456789)
VQA = Scorer.named("vqa", None, "strip")
REFERENCES = VQA.task.references(QUERY)


def test_the_probability_of_the_references_is_weighted_by_their_accuracy() -> None:
    # Accuracies as if each were predicted: 7 matches 1.0, 2 matches 0.6, 1 match 0.3.
    assert list(answer_weights(ANSWERS).values()) == pytest.approx([1.0, 0.6, 0.3])
    answer = Answer(" gesa", (math.log(0.5), math.log(0.2), math.log(0.01)), (2, 2, 4))
    scored = VQA.scored_pointer(PROPOSAL, answer, QUERY, REFERENCES)
    assert scored.reference_prob == pytest.approx(0.5 + 0.6 * 0.2 + 0.3 * 0.01, rel=1e-5)
    # Geometric means per token: √0.5, √0.2, 0.01^¼.
    assert scored.reference_prob_per_token == pytest.approx(0.5**0.5 + 0.6 * 0.2**0.5 + 0.3 * 0.01**0.25, rel=1e-5)
    assert (scored.prediction, scored.correct, scored.score) == ("gesa", 1, 0.6)
    assert (scored.pointer, scored.method, scored.rank, scored.log_prob) == ((11, 12), "cosine-beam", 0, -1.23457)
    # "gesa" is one of the answers, so nothing is more similar.
    assert (scored.token_f1, scored.edit_similarity, scored.relevance, scored.error) == (1.0, 1.0, 1.0, None)


def test_a_wrong_answer_scores_0_and_is_not_correct() -> None:
    scored = VQA.scored_pointer(PROPOSAL, Answer("cat", (-1.0, -1.0, -1.0), (1, 1, 1)), QUERY, REFERENCES)
    assert (scored.score, scored.correct) == (0.0, 0)


def test_references_that_were_not_asked_for_change_nothing_else() -> None:
    with_them = VQA.scored_pointer(PROPOSAL, Answer("gesa", (-1.0, -2.0, -3.0), (1, 1, 1)), QUERY, REFERENCES)
    without = VQA.scored_pointer(PROPOSAL, Answer("gesa"), QUERY, {})
    assert (without.reference_prob, without.reference_prob_per_token) == (None, None)
    assert replace(with_them, reference_prob=None, reference_prob_per_token=None) == without


def test_an_answer_without_the_references_that_were_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        VQA.scored_pointer(PROPOSAL, Answer("gesa"), QUERY, REFERENCES)


def test_a_failed_call_has_a_reason_and_no_score() -> None:
    scored = VQA.scored_pointer(PROPOSAL, Answer("", error="out of memory"), QUERY, REFERENCES)
    assert (scored.error, scored.score, scored.correct, scored.prediction) == ("out of memory", None, None, None)
    assert (scored.pointer, scored.method, scored.rank, scored.log_prob) == ((11, 12), "cosine-beam", 0, -1.23457)
    failed = Prediction(5, 1, (11,), error="no", image=QUERY.image_id)
    assert VQA.prediction(QUERY, (11,), Answer("", error="no")) == failed


def test_answers_are_compared_as_stored_and_as_people_wrote_them() -> None:
    # OK-VQA stores "ride" for "riding". The VLM may answer either, and both are right but by the official code.
    query = Example(5, 5, Path("5.png"), "What do they do?", "riding", ("ride",) * 10, ("riding",) * 9 + ("rides",))
    answer = Answer("riding, fast", (math.log(0.5), math.log(0.1), math.log(0.2)), (1, 1, 1))
    scored = Scorer.named("vqa", None, "lever-plus").scored_pointer(PROPOSAL, answer, query, VQA.task.references(query))
    assert (scored.prediction, scored.score) == ("riding", 1.0)
    assert scored.reference_prob == pytest.approx(0.5 + 0.1 + 0.2, rel=1e-5)
    official = Scorer.named("vqa", "official", "lever-plus")
    assert official.scored_pointer(PROPOSAL, Answer(answer.text), query, {}).score == 0.0


def test_a_prediction_has_the_scores_of_all_metrics() -> None:
    query = Example(5, 5, Path("5.png"), "What do they do?", "riding", ("ride",) * 10)
    made = Scorer.named("vqa", "openflamingo", "strip").prediction(query, (7, 8), Answer(" riding ", prompt_tokens=90))
    assert made.prompt_tokens == 90
    assert (made.question_id, made.shots, made.icds, made.prediction) == (5, 2, (7, 8), "riding")
    assert (made.score, made.other_scores) == (0.0, {"normalised": 0.0, "official": 0.0, "lemmatised": 1.0})


def test_scores_of_predictions_have_six_decimals() -> None:
    # One of three answers matches: (0/2 + 1/2 + 1/2) / 3.
    query = Example(5, 5, Path("5.png"), "?", "a", ("dog", "cat", "owl"))
    assert VQA.prediction(query, (), Answer("dog")).score == 0.333333


def test_a_task_without_correctness_relevance_and_references_leaves_them_unknown() -> None:
    query = Example(5, 5, Path("5.png"), "Which code?", "doni", ("doni",))
    scorer = Scorer(LETTERS, LETTERS.metrics["leading"], VQA.cleaner)
    scored = scorer.scored_pointer(PROPOSAL, Answer(" doti"), query, {})
    assert (scored.score, scored.correct, scored.relevance, scored.reference_prob) == (2.0, None, None, None)
    made = scorer.prediction(query, (7,), Answer("dini"))
    assert (made.score, made.other_scores, made.task) == (1.0, {"in-place": 2.0}, "letters")


@pytest.mark.parametrize("score", [-0.5, 3.5, math.inf, math.nan])
def test_a_score_outside_the_bounds_of_its_task_is_an_error(score: float) -> None:
    scorer = Scorer(LETTERS, Metric("broken", lambda prediction, query: score), VQA.cleaner)
    with pytest.raises(ValueError, match=r"the metric broken of the task letters gives .* within the task's bounds"):
        scorer.scored_pointer(PROPOSAL, Answer("doni"), QUERY, {})
    scorer = Scorer(LETTERS, LETTERS.metrics["leading"], VQA.cleaner)
    assert scorer.scored_pointer(PROPOSAL, Answer("doni"), QUERY, {}).score == 3.0


def test_a_score_may_miss_a_bound_by_a_rounding_error() -> None:
    scorer = Scorer(LETTERS, Metric("rounded", lambda prediction, query: 3 + 1e-9), VQA.cleaner)
    assert scorer.scored_pointer(PROPOSAL, Answer("doni"), QUERY, {}).score == 3.0


@pytest.mark.parametrize("names", [("vaq", None, "strip"), ("vqa", "cider", "strip"), ("vqa", None, "cut")])
def test_unknown_names_are_rejected(names: tuple[str, str | None, str]) -> None:
    with pytest.raises(SettingsError, match="unknown"):
        Scorer.named(*names)


def test_a_score_is_shown_alike_whatever_its_last_bit() -> None:
    # The mean of the same 800 scores in another order: one command showed 41.7, another 41.6.
    task = TASKS["vqa"]
    assert task.text(0.41650000000000004) == task.text(0.4165) == "41.6"
    assert task.in_unit(0.41650000000000004) == task.in_unit(0.4165) == 41.65
