"""What stands in a line of RL data, and what is refused when it is read."""

import json
import math
from pathlib import Path

import pytest

from icdsel.artefacts.candidates import accuracies, prediction_of, score_candidate
from icdsel.artefacts.rl_data import read_rl_data
from icdsel.errors import RlDataError
from icdsel.records import Answer, Example, Proposal
from icdsel.settings.loading import settings_from
from icdsel.settings.tables import VlmSettings
from icdsel.stages.convert_rl_data import convert
from icdsel.tasks.vqa import answer_weights

ANSWERS = ("doni",) * 7 + ("gesa",) * 2 + ("no code",)
QUERY = Example(5, 5, Path("5.png"), "Which code?", "doni", ANSWERS)
PROPOSAL = Proposal((11, 12), "cosine-beam", rank=0, log_prob=-1.23456789)


def test_data_are_not_replaced_by_their_conversion(tmp_path):
    path = tmp_path / "rl.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RlDataError, match="is the file to be converted"):
        convert(settings_from({}), path, path)
    assert path.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        ({"pointer": [11, 12], "vqa_acc_score": 1e308}, "line 2: a score is no number, or out of range"),
        ({"pointer": [11, 12], "vqa_acc_score": "1"}, "line 2: a score is no number, or out of range"),
        ({"pointer": [11, 14], "vqa_acc_score": 1.0}, "line 2: an ICD is not in the pool"),
        ({"pointer": [11, 11], "vqa_acc_score": 1.0}, "line 2: an ICD stands twice"),
        ({"pointer": ["11"], "vqa_acc_score": 1.0}, "line 2: ValueError a pointer of it is no list"),
    ],
)
def test_what_no_training_would_take_is_not_converted(tmp_path, candidate, told):
    path = tmp_path / "rl.jsonl"
    failed = {"pointer": [11, 13], "eval_failed": True, "error": "out of memory"}  # which stays, marked
    path.write_text(line([failed]) + line([failed, candidate]))
    with pytest.raises(RlDataError, match=told):
        convert(settings_from({}), path)
    assert [*tmp_path.iterdir()] == [path]


def test_the_right_answers_probability_weighs_every_human_answer():
    # Accuracies as if each were predicted: 7 matches 1.0, 2 matches 0.6, 1 match 0.3.
    assert list(answer_weights(ANSWERS).values()) == pytest.approx([1.0, 0.6, 0.3])
    answer = Answer(" gesa", (math.log(0.5), math.log(0.2), math.log(0.01)), (2, 2, 4))
    record = score_candidate(PROPOSAL, answer, QUERY, VlmSettings(), "official")
    assert record["vqa_gt_prob"] == pytest.approx(0.5 + 0.6 * 0.2 + 0.3 * 0.01, rel=1e-5)
    # Geometric means per token: √0.5, √0.2, 0.01^¼.
    assert record["vqa_gt_prob_norm"] == pytest.approx(0.5**0.5 + 0.6 * 0.2**0.5 + 0.3 * 0.01**0.25, rel=1e-5)
    assert (record["vqa_pred_answer"], record["vqa_correct"], record["vqa_acc_score"]) == ("gesa", 1, 0.6)
    assert (record["pointer"], record["gen_method"], record["logprob_score"]) == ([11, 12], "cosine-beam", -1.23457)


def test_a_failed_call_has_a_reason_and_no_score():
    record = score_candidate(PROPOSAL, Answer("", error="out of memory"), QUERY, VlmSettings(), "official")
    assert (record["eval_failed"], record["error"]) == (True, "out of memory")
    assert not any(name.startswith("vqa_") for name in record)


def test_answers_are_compared_with_the_official_ones_and_scored_as_people_wrote_them():
    # OK-VQA: "riding" was stored as "ride". The VLM is asked how likely "riding" is; "riding" as a prediction
    # is wrong to the official code, right where predictions are lemmatised.
    query = Example(5, 5, Path("5.png"), "What do they do?", "riding", ("ride",) * 10, ("riding",) * 9 + ("biking",))
    answer = Answer("riding, fast", (math.log(0.5), math.log(0.1)), (1, 1))
    record = score_candidate(PROPOSAL, answer, query, VlmSettings(clean_answers="lever-plus"), "lemmatised")
    assert (record["vqa_pred_answer"], record["vqa_acc_score"]) == ("riding", 1.0)
    assert record["vqa_gt_prob"] == pytest.approx(1.0 * 0.5 + 0.3 * 0.1, rel=1e-5)
    assert accuracies("riding", query, "official") == {
        "accuracy": 0.0,
        "accuracy_openflamingo": 0.0,
        "accuracy_lemmatised": 1.0,
    }
    assert prediction_of(Answer(" red, white "), VlmSettings()) == "red, white"


def test_a_pool_of_the_whole_split_is_told_by_what_it_excludes(tmp_path):
    path = tmp_path / "x.jsonl"
    told = {"candidate_pool_ids": "all", "excluded_ids": [5, 13]}
    candidates = [{"pointer": [11, 12], "vqa_acc_score": 1.0}, {"pointer": [11, 13], "vqa_acc_score": 1.0}]
    path.write_text(line(candidates, **told))
    data = read_rl_data(path)
    assert (data.groups[0].pool, data.groups[0].excluded) == (None, (5, 13))
    assert len(data.groups[0].candidates) == 1
    assert data.rejected == {"an ICD is not in the pool": 1}


def line(candidates: list[dict], **changes: object) -> str:
    group = {"question_id": 5, "image_id": 5, "question": "?", "answers": ["a"], "candidate_pool_ids": [11, 12, 13]}
    return json.dumps(group | {"pointer_candidates": candidates} | changes) + "\n"


def test_what_cannot_be_trained_on_is_rejected_and_counted(tmp_path):
    fine = {"pointer": [11, 12], "vqa_acc_score": 1.0}
    candidates = [
        fine,
        {"pointer": [12, 11], "eval_failed": True, "error": "x"},
        {"pointer": [11, 99], "vqa_acc_score": 1.0},
        {"pointer": [11, 11], "vqa_acc_score": 1.0},
        {"pointer": [], "vqa_acc_score": 1.0},
        {"pointer": [13, 11], "vqa_acc_score": math.nan},
        {"pointer": [13, 11], "vqa_acc_score": 900},
        {"pointer": [13, 11], "vqa_acc_score": True},
        {"pointer": [13, 11], "vqa_acc_score": 1.0, "vqa_correct": "yes"},
        {"pointer": [13, 11], "vqa_acc_score": 1.0, "vqa_gt_prob": math.nan},
        {"pointer": [13, 11], "vqa_acc_score": 1.0, "vqa_rel_score": "a"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text(line(candidates) + line([candidates[1]], question_id=6))
    data = read_rl_data(path)
    assert [group.candidates for group in data.groups] == [(fine,)]
    assert data.rejected == {
        "the VLM call failed": 2,
        "an ICD is not in the pool": 1,
        "an ICD stands twice, or none at all": 2,
        "a score is no number, or out of range": 6,
    }


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\ufeff" + line([{"pointer": [11, 12], "vqa_acc_score": 1.0}]))
    assert read_rl_data(path).groups[0].question_id == 5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("[1]\n", "line 1: not an object"),
        (line([{"pointer": [11, 12], "vqa_acc_score": 1.0}]) + "{", "line 2 is damaged: Expecting property name"),
        (line([]), "no candidate can be used"),
        (line([{"vqa_acc_score": 1.0}]), "line 1: KeyError 'pointer'"),
        (line([], candidate_pool_ids=["x"]), "line 1: ValueError"),
        (line([], candidate_pool_ids=[5, 6]), "the query itself"),
        (line([], candidate_pool_ids=[6, 6]), "an example twice"),
    ],
)
def test_damaged_files_are_refused_with_the_place(tmp_path, content, told):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(RlDataError) as caught:
        read_rl_data(path)
    assert told in str(caught.value)


def test_a_missing_file_names_what_is_there_and_what_to_type(tmp_path):
    (tmp_path / "rl_data_other.jsonl").write_text("")
    with pytest.raises(RlDataError, match=r"rl_data_other\.jsonl.*icdsel gen-rl-data"):
        read_rl_data(tmp_path / "rl_data_x.jsonl")
