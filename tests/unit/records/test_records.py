"""Records and their JSON: what is read is written again, and what is invalid is rejected by name."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from icdsel.records import (
    EpochMetrics,
    Example,
    PoolIds,
    Prediction,
    QueryGroup,
    Rejected,
    RejectedError,
    ScoredPointer,
    id_order,
    score_key,
    score_of,
)
from icdsel.records.values import are_ids, is_finite, is_int64, is_number
from icdsel.tasks.base import bounds_of

Json = dict[str, Any]

SCORED: Json = {
    "pointer": [11, 12],
    "gen_method": "cosine-beam",
    "beam_rank": 0,
    "logprob_score": -1.5,
    "temperature": None,
    "vqa_pred_answer": "gesa",
    "vqa_correct": 1,
    "vqa_acc_score": 0.6,
    "vqa_gt_prob": 0.5,
    "vqa_gt_prob_norm": 0.7,
    "vqa_rel_token_f1": 0.5,
    "vqa_rel_edit_sim": 0.25,
    "vqa_rel_score": 0.5,
}
FAILED: Json = {
    "pointer": [12, 13],
    "gen_method": "cosine-sample",
    "beam_rank": None,
    "logprob_score": -2.5,
    "temperature": 1.3,
    "eval_failed": True,
    "error": "out of memory",
}
GROUP: Json = {
    "question_id": 5,
    "image_id": 7,
    "question": "Où?",
    "answers": ["a", "b"],
    "candidate_pool_ids": [13, 11, 12],
    "pointer_candidates": [SCORED, FAILED],
}


def read(value: Any) -> tuple[QueryGroup, list[Rejected]]:
    return QueryGroup.from_json(value, bounds_of)


# --- scored pointers --------------------------------------------------------------------------------------


def test_a_scored_pointer_is_written_as_it_was_read() -> None:
    for value in (SCORED, FAILED):
        assert json.dumps(ScoredPointer.from_json(value, (0, 1)).to_json()) == json.dumps(value)


def test_what_is_missing_is_unknown_but_correctness_is_derived() -> None:
    right, wrong = (ScoredPointer.from_json({"pointer": [1], "vqa_acc_score": score}, (0, 1)) for score in (0.3, 0))
    assert (right.correct, wrong.correct, right.method, right.reference_prob) == (1, 0, None, None)
    unknown = ScoredPointer.from_json({"pointer": [1], "vqa_acc_score": 0.3, "vqa_correct": None}, (0, 1))
    assert unknown.correct is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vqa_acc_score": None}, "a score"),
        ({"vqa_acc_score": "1"}, "a score"),
        ({"vqa_acc_score": True}, "a score"),
        ({"vqa_acc_score": 1.1}, "a score"),
        ({"vqa_acc_score": math.nan}, "a score"),
        ({"vqa_correct": 2}, "a score"),
        ({"vqa_gt_prob": 11}, "a score"),
        ({"vqa_gt_prob_norm": -0.1}, "a score"),
        ({"vqa_rel_score": 10**400}, "a score"),
        ({"vqa_rel_token_f1": "0"}, "a score"),
        ({"gen_method": 5}, "a field"),
        ({"beam_rank": 0.5}, "a field"),
        ({"logprob_score": math.inf}, "a field"),
        ({"temperature": "hot"}, "a field"),
        ({"vqa_pred_answer": ["gesa"]}, "a field"),
    ],
)
def test_an_invalid_field_rejects_the_candidate(change: Json, reason: str) -> None:
    with pytest.raises(RejectedError, match=reason):
        ScoredPointer.from_json(SCORED | change, (0, 1))


def test_scores_lie_within_the_bounds_of_the_task() -> None:
    assert ScoredPointer.from_json(SCORED | {"vqa_acc_score": 2.5}, (0, 3)).score == 2.5
    assert ScoredPointer.from_json(SCORED | {"vqa_acc_score": -9e9}, (-math.inf, 0)).score == -9e9
    with pytest.raises(RejectedError):
        ScoredPointer.from_json(SCORED | {"vqa_acc_score": -math.inf}, (-math.inf, 0))


def test_only_a_candidate_marked_as_failed_has_an_error() -> None:
    assert ScoredPointer.from_json(SCORED | {"error": "a remark"}, (0, 1)).error is None
    assert ScoredPointer.from_json({"pointer": [1], "eval_failed": True}, (0, 1)).error == "no reason is given"


def test_scores_of_a_record_and_of_a_mapping_are_the_same() -> None:
    record = ScoredPointer.from_json(SCORED, (0, 1))
    for name in ("correct", "score", "reference_prob", "relevance"):
        assert score_of(record, name) == score_of(SCORED, name) == SCORED[score_key(name)]


# --- lines of RL data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        GROUP,
        GROUP | {"pointer_candidates": []},
        {"task": "vqa"} | GROUP,
        {**{k: v for k, v in GROUP.items() if k != "pointer_candidates"}, "candidate_pool_ids": "all"}
        | {"excluded_ids": [5, 6], "pointer_candidates": [SCORED]},
    ],
)
def test_a_line_of_rl_data_is_written_as_it_was_read(value: Json) -> None:
    group, rejected = read(value)
    expected = {key: entry for key, entry in value.items() if key != "task"}  # which is the default
    assert (json.dumps(group.to_json()), rejected) == (json.dumps(expected), [])


def test_ids_that_are_text_are_written_as_they_were_read() -> None:
    ids = {"question_id": "007", "image_id": "n3", "candidate_pool_ids": ["q 1", "0", 7, "é/ü"]}
    value = GROUP | ids | {"pointer_candidates": [SCORED | {"pointer": ["0", 7]}, FAILED | {"pointer": ["é/ü", "q 1"]}]}
    group, rejected = read(value)
    assert (json.dumps(group.to_json()), rejected) == (json.dumps(value), [])
    assert read(value | {"pointer_candidates": [SCORED | {"pointer": ["7"]}]})[1]  # "7" is not 7
    prediction = {"question_id": "007", "shots": 2, "icds": ["0", 7], "prediction": "a", "accuracy": 1.0}
    assert Prediction.from_json(prediction, bounds_of).to_json() == prediction


def test_ids_are_sorted_by_number_then_by_text() -> None:
    assert sorted(["b", 10, "B", "10", 9, "9", -1], key=id_order) == [-1, 9, 10, "10", "9", "B", "b"]


def test_a_group_of_a_query_has_what_the_dataset_says() -> None:
    query = Example(5, 7, Path("7.png"), "Où?", "a", ("a", "b"))
    candidates = [ScoredPointer.from_json(value, (0, 1)) for value in (SCORED, FAILED)]
    group = QueryGroup.of_query(query, PoolIds((13, 11, 12)), candidates, "vqa")
    assert group.to_json() == GROUP and group == read(GROUP)[0]
    assert QueryGroup.of_query(query, PoolIds(None, (5,)), [], "vqa").to_json()["excluded_ids"] == [5]


def test_failed_calls_are_left_out_for_training() -> None:
    group = read(GROUP)[0]
    assert (group.failed, len(group.candidates)) == (1, 2)
    assert [candidate.pointer for candidate in group.without_failed().candidates] == [(11, 12)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": ""}, "64-bit integer"),
        ({"question_id": "a\nb"}, "64-bit integer"),
        ({"question_id": "x" * 257}, "64-bit integer"),
        ({"question_id": 5.0}, "64-bit integer"),
        ({"question_id": 2**63}, "64-bit integer"),
        ({"image_id": True}, "64-bit integer"),
        ({"candidate_pool_ids": [None]}, "64-bit integer"),
        ({"excluded_ids": None}, "64-bit integer"),
        ({"candidate_pool_ids": [5, 6]}, "the query itself"),
        ({"candidate_pool_ids": [6, 6]}, "an example twice"),
        ({"question": None}, "is not a string"),
        ({"answers": "a"}, "is not a string"),
        ({"answers": [1]}, "is not a string"),
        ({"task": 1}, "is not a string"),
        ({"task": "vaq"}, "unknown task 'vaq'"),
        ({"pointer_candidates": {}}, "pointer_candidates is not a list"),
        ({"pointer_candidates": [1]}, "the pointer of a candidate is missing"),
        ({"pointer_candidates": [{"vqa_acc_score": 1.0}]}, "the pointer of a candidate is missing"),
        ({"pointer_candidates": [{"pointer": [[11]]}]}, "the pointer of a candidate is missing, or not a list"),
    ],
)
def test_an_invalid_line_of_rl_data_is_an_error(change: Json, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(GROUP | change)


@pytest.mark.parametrize("key", ["question_id", "image_id", "question", "answers", *("candidate_pool_ids",)])
def test_a_missing_field_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"it has no {key}"):
        read({name: value for name, value in GROUP.items() if name != key})
    with pytest.raises(ValueError, match="not an object"):
        read([GROUP])


def test_pointers_outside_their_pool_are_rejected_with_the_reason() -> None:
    pointers = [[11, 14], [11, 11], [], [11, 12]]
    value = GROUP | {"pointer_candidates": [SCORED | {"pointer": pointer} for pointer in pointers]}
    group, rejected = read(value)
    assert [candidate.pointer for candidate in group.candidates] == [(), (11, 12)]  # () is the query alone
    assert rejected == [("an ICD is not in the pool", (11, 14)), ("an ICD is repeated", (11, 11))]
    hidden = GROUP | {"candidate_pool_ids": "all", "excluded_ids": [12]}
    assert [pointer for _, pointer in read(hidden)[1]] == [(11, 12), (12, 13)]


def test_rl_data_of_real_size_are_read_in_seconds() -> None:
    text = json.dumps(GROUP | {"candidate_pool_ids": list(range(10, 74)), "pointer_candidates": [SCORED] * 15})
    started = time.process_time()
    groups = [read(json.loads(text))[0] for _ in range(5000)]
    assert time.process_time() - started < 8  # 1.5 s on one idle core
    assert len(groups) == 5000


# --- predictions ------------------------------------------------------------------------------------------

PREDICTION: Json = {
    "question_id": 5,
    "shots": 2,
    "icds": [11, 12],
    "prediction": "gesa",
    "accuracy": 0.6,
    "accuracy_openflamingo": 1.0,
    "accuracy_lemmatised": 0.6,
}


@pytest.mark.parametrize(
    "value",
    [
        PREDICTION,  # from before images were recorded
        {"question_id": 5, "image_id": 7, **{key: PREDICTION[key] for key in list(PREDICTION)[1:]}},
        PREDICTION | {"prompt_tokens": 215},
        PREDICTION | {"shots": "auto", "icds": [11]},
        PREDICTION | {"shots": "auto+0.5", "icds": []},
        {"question_id": 5, "image_id": "cat.png", "shots": 0, "icds": [], "error": "out of memory"},
    ],
)
def test_a_prediction_is_written_as_it_was_read(value: Json) -> None:
    read = Prediction.from_json(value, bounds_of)
    assert json.dumps(read.to_json()) == json.dumps(value)
    assert read.prompt == (5, value["shots"], tuple(value["icds"]))
    assert read.shown == {2: 2, 0: 0, "auto": 1, "auto+0.5": 0}[value["shots"]]
    assert read.image == value.get("image_id")
    assert read.prompt_tokens == value.get("prompt_tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": None}, "question_id"),
        ({"shots": -1}, "shots"),
        ({"shots": 10_001}, "shots"),
        ({"shots": "2"}, "shots"),
        ({"shots": "auto+0"}, "shots"),
        ({"shots": "auto+1.50"}, "shots"),
        ({"icds": [1.5]}, "icds"),
        ({"prediction": 1}, "prediction"),
        ({"accuracy": 1.5}, "accuracy"),
        ({"accuracy": "1"}, "accuracy"),
        ({"accuracy_other": -0.1}, "accuracy_other"),
        ({"error": None}, "error"),
        ({"task": []}, "task"),
        ({"image_id": [1]}, "image_id"),
        ({"image_id": True}, "image_id"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"prompt_tokens": 21.5}, "prompt_tokens"),
    ],
)
def test_an_invalid_prediction_is_an_error_that_names_the_field(change: Json, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} is missing or invalid"):
        Prediction.from_json(PREDICTION | change, bounds_of)


# --- metrics, values --------------------------------------------------------------------------------------


def test_metrics_of_an_epoch_are_written_as_they_were_read() -> None:
    value = {"phase": "grpo", "epoch": 3, "kl_beta": 0.1, "grpo_loss": None}
    assert json.dumps(EpochMetrics.from_json(value).to_json()) == json.dumps(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no phase or no epoch"),
        ({"phase": "rce"}, "no phase or no epoch"),
        ({"phase": 1, "epoch": 1}, "no phase or no epoch"),
        ({"phase": "rce", "epoch": 1, "loss": "low"}, "loss is not a finite number"),
        ({"phase": "rce", "epoch": 1, "loss": math.nan}, "loss is not a finite number"),
    ],
)
def test_invalid_metrics_are_an_error(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochMetrics.from_json(value)


def test_ids_and_numbers() -> None:
    assert [is_int64(value) for value in (0, -(2**63), 2**63, True, 1.0, "1", None)] == [True, True] + [False] * 5
    assert [are_ids(value) for value in ([], [1, 2], [1, True], (1,), None)] == [True, True, False, False, False]
    assert [is_number(value, 0, 1) for value in (0, 1.0, 1.1, True, math.nan, "1")] == [True, True] + [False] * 4
    assert [is_finite(value) for value in (1e299, -5, math.inf, math.nan, 10**400)] == [True, True] + [False] * 3


def test_an_answer_to_a_query_without_references_has_no_score() -> None:
    value = {"question_id": "t1", "shots": 1, "icds": [3], "prediction": "a cat", "accuracy": None}
    prediction = Prediction.from_json(value, bounds_of)
    assert prediction.unscored and prediction.to_json() == value
    assert not Prediction.from_json(value | {"accuracy": 0.0}, bounds_of).unscored
    assert not Prediction.from_json(value | {"error": "x"}, bounds_of).unscored
    with pytest.raises(ValueError, match="accuracy"):
        Prediction.from_json({name: part for name, part in value.items() if name != "accuracy"}, bounds_of)
