import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from icdsel.artefacts import lever_plus_rl_data as lp
from icdsel.artefacts.lever_plus_rl_data import is_lever_plus, read_info_score, read_lever_plus
from icdsel.artefacts.lever_plus_writer import lever_plus_json
from icdsel.artefacts.rl_data import parse_group, read_rl_data
from icdsel.errors import RlDataError
from icdsel.policy.groups import make_groups, split_groups
from icdsel.policy.rewards import pointer_reward
from icdsel.records import Answer, Example, PoolIds, Proposal, QueryGroup, ScoredPointer
from icdsel.records.query_group import REPEATED_ICD
from icdsel.records.scored_pointer import BAD_SCORE
from icdsel.settings.tables import RewardSettings
from icdsel.store.files import write_json
from icdsel.tasks.scoring import Scorer

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "rl_data_global_pointer.json"
IDS = [1000 + 10 * row for row in range(100)]  # the question_id of row r is 1000 + 10 r

Json = dict[str, Any]


def scored(pointer: list[int], **more: Any) -> Json:
    """A candidate of variant B that is valid in all respects."""
    value = {"pointer": pointer, "gen_method": "beam", "beam_rank": 0, "beam_score": 0.4, "logprob_score": -1.5}
    return value | {"temperature": None, "vqa_pred_answer": "x", "vqa_correct": 1, "vqa_acc_score": 0.6} | more


def query(row: int, **more: Any) -> Json:
    value = {"query_id": row, "question_id": IDS[row], "image_id": 7, "question": "What?"}
    return value | {"gt_answers_raw": ["a", "b"], "gt_answers_norm": ["a", "b"]} | more


def written(folder: Path, content: object) -> Path:
    path = folder / "rl_data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def pointers(group: QueryGroup) -> list[list[int]]:
    return [list(candidate.pointer) for candidate in group.candidates]


# --- every version of RL data ---------------------------------------------------------------------------------

V4 = {"vqa_eval_mode": "vqaEval", "eval_split_used": "train", "eval_failed": False, "vqa_raw_generation": "x"}
POOL = [40, 9, 77, 5, 12]  # of row 3

VARIANTS: dict[str, tuple[Json, list[list[int]], list[int]]] = {
    # name: (record of row 3, its pointers as rows, its pool as rows)
    "B, early": ({"pointer_candidates": [scored([9, 5]), scored([5, 40])]}, [[9, 5], [5, 40]], [5, 9, 40]),
    "C, current": (
        {"query": query(3), "pointer_candidates": [scored([9, 5], pointer_pos=[9, 5], **V4)]},
        [[9, 5]],
        [5, 9],
    ),
    "C, where the two differ": ({"pointer_candidates": [scored([0, 1], pointer_pos=[9, 5])]}, [[9, 5]], [5, 9]),
    "D, K64": (
        {
            "query": query(3),
            "candidate_pool_ids": POOL,
            "pointer_candidates": [scored([2, 0], pointer_global=[77, 40], **V4)],
        },
        [[77, 40]],
        POOL,
    ),
    "E, made K64 later": (
        {
            "query": query(3),
            "candidate_pool_ids": [5, 3, 9, 5, 40],  # with the query itself, and an ICD twice
            "pointer_candidates": [scored([2, 0], pointer_global=[9, 5], pointer_pos=[80, 81])],
        },
        [[9, 5]],
        [5, 9, 40],
    ),
    "E, where that failed": (
        {"query": query(3), "pointer_candidates": [scored([9, 5], pointer_pos=[9, 5])], "_fix_failed": True},
        [[9, 5]],
        [5, 9],
    ),
    "F, augmented": (
        {
            "query": query(3),
            "pointer_candidates": [
                scored([9, 5], pointer_pos=[9, 5]),
                scored([5, 60], gen_method="aug_swap", vqa_eval_mode="train", aug_round=1, raw_generation="x"),
                scored([8, 9], gen_method="sft_beam_1", vqa_eval_mode="val"),
            ],
        },
        [[9, 5], [5, 60], [8, 9]],
        [5, 8, 9, 60],
    ),
    "H, merged": (
        {"pointer_candidates": [{"pointer": [9, 5], "vqa_correct": 1, "vqa_acc_score": 1.0}]},
        [[9, 5]],
        [5, 9],
    ),
    "mixed": (
        {
            "candidate_pool_ids": POOL,
            "pointer_candidates": [
                scored([1, 4], pointer_pos=None, pointer_global=[9, 12]),
                scored([1, 4]),  # counts within the training split, and lies outside the pool
                scored([9, 5], pointer_pos=[9, 5], pointer_global=None),
            ],
        },
        [[9, 12], [1, 4], [9, 5]],
        [*POOL, 1, 4],
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pointers_are_resolved_one_by_one(tmp_path: Path, name: str) -> None:
    record, expected, pool = VARIANTS[name]
    path = written(tmp_path, {"_meta": {"vqa_model": "x"}, "3": record})
    groups, rejected = read_lever_plus(path, IDS)
    assert [group.question_id for group in groups] == [IDS[3]]
    assert pointers(groups[0]) == [[IDS[row] for row in pointer] for pointer in expected]
    assert groups[0].pool == tuple(IDS[row] for row in pool)
    assert rejected == {}
    assert make_groups(groups, {i: row for row, i in enumerate(IDS)}, RewardSettings()).query.tolist() == [3]


def test_rows_serve_as_ids_without_a_dataset(tmp_path: Path) -> None:
    record, expected, pool = VARIANTS["D, K64"]
    (group,), _ = read_lever_plus(written(tmp_path, {"3": record}), None)
    assert (group.question_id, pointers(group), group.pool) == (3, expected, tuple(pool))


def test_fields_of_a_query_are_kept_and_missing_ones_are_empty(tmp_path: Path) -> None:
    bare = {"pointer_candidates": [scored([9, 5])]}
    path = written(tmp_path, {"3": {"query": query(3), **bare}, "4": bare, "6": {"query": {"image_id": 1.5}, **bare}})
    complete, *bare_groups = read_lever_plus(path, IDS)[0]
    assert (complete.image_id, complete.question, complete.answers) == (7, "What?", ("a", "b"))
    assert [(group.image_id, group.question, group.answers) for group in bare_groups] == [(-1, "", ())] * 2


def test_a_pool_is_not_cut_to_64(tmp_path: Path) -> None:
    candidates = [scored([row, row + 1]) for row in range(10, 90, 2)]
    (group,), _ = read_lever_plus(written(tmp_path, {"3": {"pointer_candidates": candidates}}), IDS)
    assert group.pool == tuple(IDS[10:90])


def test_the_golden_file_is_read_as_lever_plus_reads_it() -> None:
    parsed = json.loads((DATA / "rl_data_parsed.json").read_text())
    groups, rejected = read_lever_plus(GOLDEN, None)
    content = json.loads(GOLDEN.read_text())
    modes = Counter(c["vqa_eval_mode"] for record in content.values() for c in record["pointer_candidates"])
    assert rejected == {lp.MATCHED: modes["fallback"]}
    training, validation = split_groups(groups)
    assert len(validation) == parsed["n_val"]
    assert [group.question_id for group in training] == parsed["train_query_ids"]
    made = make_groups(training, {row: row for row in range(60)}, RewardSettings())
    for q, (group, item) in enumerate(zip(training, parsed["items"], strict=True)):
        assert group.question_id == item["query_id"]
        assert pointers(group) == item["pointers"]
        count = len(item["pointers"])
        assert torch.equal(made.raw[q, :count], torch.tensor(item["rewards_raw"]))
        torch.testing.assert_close(made.normalized[q, :count], torch.tensor(item["rewards_normalized"]))
    everything, none = read_lever_plus(GOLDEN, None, skip_fallback=False)
    assert none == {}
    assert sum(len(group.candidates) for group in everything) == modes.total()


# --- what is left out -------------------------------------------------------------------------------------

G = {"pointer": [5, 9], "vqa_pred_answer": "x", "vqa_acc_score": 0.3}  # variant G, whole

REJECTED: list[tuple[Json, str]] = [
    (scored([5, 8], eval_failed=True), lp.FAILED),
    (scored([5, 8], vqa_eval_mode="error"), lp.FAILED),
    (scored([5, 8], gen_method="aug_swap", vqa_pred_answer="", vqa_acc_score=0.0, vqa_correct=0), lp.FAILED_SCORED),
    (scored([5, 8], aug_round=2, vqa_pred_answer="", raw_generation=""), lp.FAILED_SCORED),
    (scored([5, 8], vqa_eval_mode="fallback"), lp.MATCHED),
    (scored([5, 8], vqa_eval_mode="simple_match"), lp.MATCHED),
    (scored([5, 8], gen_method="global_positive_injection"), lp.MADE_UP),
    (scored([5, 8], gen_method="global_positive_transfer"), lp.MADE_UP),
    (scored([5, 8], source_query=4), lp.MADE_UP),
    (scored([5, 8], source_queries=[4]), lp.MADE_UP),
    (G, lp.ANSWERLESS),
    (scored([5, 5]), REPEATED_ICD),
    (scored([]), lp.NO_ICD),
    (scored([5, 3]), lp.OWN_QUERY),
    (scored([0, 1], pointer_global=[5, 3]), lp.OWN_QUERY),
    (scored([5, 100]), lp.OUTSIDE),
    (scored([-1, 5]), lp.OUTSIDE),
    (scored([5, 10**30]), lp.OUTSIDE),
    (scored([5, 8.0]), lp.NO_POINTER),  # type: ignore[list-item]
    (scored([5, True]), lp.NO_POINTER),
    (scored("58"), lp.NO_POINTER),  # type: ignore[arg-type]
    ({"vqa_correct": 1, "vqa_acc_score": 1.0}, lp.NO_POINTER),
    (scored([5, 8], vqa_acc_score=math.nan), BAD_SCORE),
    (scored([5, 8], vqa_acc_score=math.inf), BAD_SCORE),
    (scored([5, 8], vqa_acc_score=60), BAD_SCORE),
    (scored([5, 8], vqa_acc_score="1"), BAD_SCORE),
    (scored([5, 8], vqa_acc_score=None), BAD_SCORE),
    (scored([5, 8], vqa_correct="yes"), BAD_SCORE),
    (scored([5, 8], vqa_rel_score=10**400), BAD_SCORE),
    (scored([5, 8], gen_method=["beam"]), "a field has the wrong type"),
    (scored([5, 8], beam_rank="first"), "a field has the wrong type"),
]


@pytest.mark.parametrize(("candidate", "reason"), REJECTED)
def test_invalid_candidates_are_left_out_and_counted(tmp_path: Path, candidate: Json, reason: str) -> None:
    fine = scored([9, 5])
    path = written(tmp_path, {"3": {"pointer_candidates": [candidate, fine, candidate]}})
    (group,), rejected = read_lever_plus(path, IDS)
    assert pointers(group) == [[IDS[9], IDS[5]]]
    assert group.pool == (IDS[5], IDS[9])  # the ICDs of what was left out are not in it
    assert rejected == {reason: 2}
    alone = written(tmp_path, {"3": {"pointer_candidates": [candidate]}})
    with pytest.raises(RlDataError, match="nothing in it can be trained on") as caught:
        read_lever_plus(alone, IDS)
    assert f"{reason} (1)" in str(caught.value)


def test_string_matches_are_kept_on_request(tmp_path: Path) -> None:
    modes = {"fallback": [9, 5], "simple_match": [5, 9], "error": [7, 5]}
    candidates = [scored(pointer, vqa_eval_mode=mode) for mode, pointer in modes.items()]
    path = written(tmp_path, {"3": {"pointer_candidates": candidates}})
    with pytest.raises(RlDataError, match=r"matching strings, not by the VQA accuracy \(2\).*--no-skip-fallback"):
        read_lever_plus(path, IDS)
    (group,), rejected = read_lever_plus(path, IDS, skip_fallback=False)
    assert (len(group.candidates), rejected) == (2, {lp.FAILED: 1})


def test_unsound_data_are_kept_on_request(tmp_path: Path) -> None:
    wrong = G | {"pointer": [9, 5], "vqa_acc_score": 0.0}
    path = written(tmp_path, {"3": {"pointer_candidates": [scored([8, 5], source_query=4), G, wrong]}})
    with pytest.raises(RlDataError, match=r"another query's \(1\); generated.*\(2\).*--accept-unsound") as caught:
        read_lever_plus(path, IDS)
    assert "--no-skip-fallback" not in str(caught.value)
    (group,), rejected = read_lever_plus(path, IDS, accept_unsound=True)
    assert rejected == {}
    # Without a vqa_correct, an accuracy above 0 is correct.
    assert [candidate.correct for candidate in group.candidates] == [1, 1, 0]
    rewards = [pointer_reward(candidate, mode="hard_plus_soft") for candidate in group.candidates]
    assert rewards == pytest.approx([1.6, 1.3, 0.0])


def test_an_augmented_answer_that_was_cut_to_nothing_is_not_a_failure(tmp_path: Path) -> None:
    candidate = scored([9, 5], gen_method="aug_swap", vqa_pred_answer="", raw_generation="Short answer: x")
    (group,), _ = read_lever_plus(written(tmp_path, {"3": {"pointer_candidates": [candidate]}}), IDS)
    assert len(group.candidates) == 1


def test_the_probability_of_the_wrong_tokens_is_left_out(tmp_path: Path) -> None:
    candidates = [scored([9, 5], vqa_gt_prob=1e-7), scored([5, 9], vqa_gt_prob=None)]
    path = written(tmp_path, {"3": {"pointer_candidates": candidates}})
    (group,), counts = read_lever_plus(path, IDS)
    assert counts == {lp.GT_PROB_NOTE: 1}
    assert [candidate.reference_prob for candidate in group.candidates] == [None, None]
    (group,), counts = read_lever_plus(path, IDS, accept_unsound=True)
    assert (group.candidates[0].reference_prob, counts) == (1e-7, {})


# --- another dataset's, damaged or something else ---------------------------------------------------------


def test_a_file_of_another_dataset_is_recognised(tmp_path: Path) -> None:
    beyond = {str(row): {"pointer_candidates": [scored([9, 5])] * 2} for row in (300, 100)}
    with pytest.raises(RlDataError, match=r"outside the training split \(4\).*--dataset"):
        read_lever_plus(written(tmp_path, beyond), IDS)
    groups, rejected = read_lever_plus(written(tmp_path, beyond | {"3": VARIANTS["B, early"][0]}), IDS)
    assert (len(groups), rejected) == (1, {lp.OUTSIDE: 4})
    pool = {"candidate_pool_ids": [9, 5, 100], "pointer_candidates": [scored([0, 1], pointer_global=[9, 5])]}
    with pytest.raises(RlDataError, match=r"outside the training split \(1\)"):
        read_lever_plus(written(tmp_path, {"3": pool}), IDS)


@pytest.mark.parametrize(("given_id", "shown"), [(1040, "'1040'"), ("1040", "'1040'"), ([[1030]], "'a list'")])
def test_another_question_at_the_same_row_is_an_error(tmp_path: Path, given_id: object, shown: str) -> None:
    path = written(tmp_path, {"3": {"query": query(3, question_id=given_id), "pointer_candidates": [scored([9, 5])]}})
    with pytest.raises(RlDataError, match=r"query 3: its question_id is .*question 1030: .*another dataset") as caught:
        read_lever_plus(path, IDS)
    assert shown in str(caught.value)
    assert len(read_lever_plus(path, None)[0]) == 1


def test_the_same_question_id_may_be_text(tmp_path: Path) -> None:
    path = written(tmp_path, {"3": {"query": query(3, question_id="1030"), "pointer_candidates": [scored([9, 5])]}})
    assert read_lever_plus(path, IDS)[0][0].question_id == 1030


OURS = {"question_id": 5, "candidate_pool_ids": [1], "pointer_candidates": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"not valid JSON: line 1, byte 0"),
        ('{"é": 1,\n x', r"not valid JSON: line 2, byte 11.*pointer_candidates"),  # é has two bytes
        ('\ufeff{"3": ', r"not valid JSON: line 1, byte 9"),  # and the mark at the start three
        ("[" * 100_000, "maximum recursion|nested"),
        ('{"3": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ('{"3": {"pointer_candidates": []}, "3": {}}', "the key '3' is repeated"),
        ([1], "holds a list; expected one object"),
        ({}, "holds no query"),
        ({"_meta": {}}, "holds no query"),
        ({"x\ud800": {}}, "surrogates not allowed"),
        ({"x": {}}, r"the key 'x' is not a row; expected"),
        ({"03": {}}, "the key '03' is not a row"),
        ({"²": {}}, "is not a row"),
        (OURS, "the key 'question_id' is not a row"),
        ({"3": 1}, "query 3: not an object"),
        ({"3": {}}, "query 3: it has no pointer_candidates"),
        ({"3": {"pointer_candidates": {}}}, "query 3: pointer_candidates is not a list"),
        ({"3": {"pointer_candidates": [1]}}, "query 3: pointer_candidates: number 1 is not an object"),
        ({"3": {"candidate_pool_ids": ["1"], "pointer_candidates": []}}, "candidate_pool_ids is not a list of rows"),
        ({"3": {"pointer_candidates": []}}, r"a query without candidates \(1\).*human answers in another split"),
    ],
)
def test_anything_else_is_rejected_with_the_place(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(RlDataError, match=message) as caught:
        read_lever_plus(written(tmp_path, content), IDS)
    assert str(tmp_path) in str(caught.value)
    str(caught.value).encode()  # can be printed


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RlDataError, match="does not exist"):
        read_lever_plus(tmp_path / "none.json", IDS)
    with pytest.raises(RlDataError, match="cannot be read"):
        read_lever_plus(tmp_path, IDS)
    path = tmp_path / "latin.json"
    path.write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(RlDataError, match="not UTF-8: byte 2"):
        read_lever_plus(path, IDS)


# --- recognising the form ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"_meta": {}, "3": {}}', True),
        ('\ufeff\n{\n  "17" : {"pointer_candidates": []', True),  # only the start is read
        (GOLDEN.read_text(), True),
        (json.dumps(OURS) + "\n", False),
        ("", False),
        ("[1]", False),
        ("{}", False),
        ('{"x3": {}}', False),
        ('{"_id": {"$oid": "5f"}, "question_id": 1}', False),  # as databases write records
    ],
)
def test_the_form_is_recognised_by_the_content(tmp_path: Path, content: str, expected: bool) -> None:
    path = tmp_path / "rl_data.jsonl"
    path.write_text(content)
    assert is_lever_plus(path) is expected


def test_a_missing_file_is_not_in_this_form(tmp_path: Path) -> None:
    assert not is_lever_plus(tmp_path / "none.json")
    assert not is_lever_plus(tmp_path)


# --- InfoScore --------------------------------------------------------------------------------------------


def info_score(row: int, *beams: tuple[list[Any], Any]) -> Json:
    return {str(row): {"id_list": [beam for beam, _ in beams], "score_list": [score for _, score in beams]}}


def test_beams_become_pointers_in_prompt_order(tmp_path: Path) -> None:
    record = info_score(3, ([9, 5, 3], 0.25), ([5, 40, 3], -1e-6))
    record["3"]["beams"] = [{"shots": [{"id": 5}, {"id": 9}]}]  # newer files say everything twice
    groups, rejected = read_info_score(written(tmp_path, record | info_score(8, ([1, 8], 0))), IDS)
    assert groups[0] == QueryGroup(IDS[3], -1, "", (), (), tuple(groups[0].candidates))
    assert groups[0].candidates == (
        ScoredPointer((IDS[9], IDS[5]), "infoscore"),
        ScoredPointer((IDS[5], IDS[40]), "infoscore"),
    )
    assert (groups[1].question_id, pointers(groups[1])) == (IDS[8], [[IDS[1]]])
    assert rejected == {}


@pytest.mark.parametrize(
    ("beam", "score", "reason"),
    [
        ([3, 5, 3], 0.1, lp.OWN_QUERY),
        ([5, 5, 3], 0.1, REPEATED_ICD),
        ([3], 0.1, lp.NO_ICD),
        ([3, 5, 9], 0.1, lp.NOT_LAST),
        ([], 0.1, lp.NOT_LAST),
        (["9", 5, 3], 0.1, lp.NO_POINTER),
        ([100, 5, 3], 0.1, lp.OUTSIDE),
        ([9, 5, 3], math.nan, BAD_SCORE),
        ([9, 5, 3], "0.1", BAD_SCORE),
    ],
)
def test_invalid_beams_are_left_out_and_counted(tmp_path: Path, beam: list, score: object, reason: str) -> None:
    path = written(tmp_path, info_score(3, (beam, score), ([9, 5, 3], 0.1)))
    (group,), rejected = read_info_score(path, IDS)
    assert (pointers(group), rejected) == ([[IDS[9], IDS[5]]], {reason: 1})
    with pytest.raises(RlDataError, match=r"nothing in it can be trained on: .* \(1\)"):
        read_info_score(written(tmp_path, info_score(3, (beam, score))), IDS)


def test_each_reader_names_the_flag_of_the_other(tmp_path: Path) -> None:
    path = written(tmp_path, info_score(3, ([9, 5, 3], 0.1)))
    with pytest.raises(RlDataError, match=f"InfoScore data, not RL data: use --warm-start {path}"):
        read_lever_plus(path, IDS)
    with pytest.raises(RlDataError, match=f"RL data, not InfoScore data: use --rl-data {GOLDEN}"):
        read_info_score(GOLDEN, IDS)
    with pytest.raises(RlDataError, match="two lists of the same length"):
        read_info_score(written(tmp_path, {"3": {"id_list": [[9, 3]], "score_list": []}}), IDS)


# --- writing ----------------------------------------------------------------------------------------------

ROW = {question_id: row for row, question_id in enumerate(IDS)}


def our_group(row: int, pool: list[int], pointers: list[list[int]]) -> QueryGroup:
    """A group of icdsel as generation scores it, with rows for its pool and pointers."""
    example = Example(IDS[row], 50 + row, Path("x.png"), "Où?", "doni", ("doni, or so",) * 7 + ("gesa",) * 3)
    proposals = [Proposal(tuple(IDS[i] for i in icds), "cosine-beam", rank=0, log_prob=-1.5) for icds in pointers]
    answer = Answer(" gesa", (math.log(0.5), math.log(0.25)), (2, 2))
    scorer = Scorer.named("vqa", None, "strip")
    references = scorer.task.references(example)
    scored = [scorer.scored_pointer(proposal, answer, example, references) for proposal in proposals]
    return QueryGroup.of_query(example, PoolIds(tuple(IDS[i] for i in pool)), scored, "vqa")


def lever_plus_loader(record: Mapping[str, Any], kept: list[Mapping[str, Any]]) -> tuple[list[int], list[list[int]]]:
    """Lever-Plus's rule: a query's candidates as rows of the training split, and labels within them."""
    if "candidate_pool_ids" in record and "pointer_global" in record["pointer_candidates"][0]:
        return record["candidate_pool_ids"][:64], [c["pointer"] for c in kept]
    found = [c["pointer_pos"] if c.get("pointer_pos") is not None else c["pointer"] for c in kept]
    union = sorted({row for pointer in found for row in pointer})[:64]
    return union, [[union.index(row) for row in pointer] for pointer in found]


SMALL = [40, 9, 77, 5, 12]
LARGE = [row for row in range(99, 0, -1) if row not in (3, 8)]  # 97 candidates


def test_what_is_written_is_read_back_by_both(tmp_path: Path) -> None:
    given = {3: (SMALL, [[77, 40], [5, 9], [9, 5]]), 8: (LARGE, [[77, 40], [1, 99]])}
    own = [our_group(row, pool, icds) for row, (pool, icds) in given.items()]
    ours = tmp_path / "ours.jsonl"
    ours.write_text("".join(json.dumps(group.to_json()) + "\n" for group in own))
    path = tmp_path / "theirs.json"
    write_json(path, lever_plus_json(own, ROW, {"prompt": "p"}))
    assert (is_lever_plus(ours), is_lever_plus(path)) == (False, True)
    groups, rejected = read_lever_plus(path, IDS)
    assert (tuple(groups), rejected) == (read_rl_data(ours).groups, {})
    content = json.loads(path.read_text())
    for row, (_, icds) in given.items():
        record = content[str(row)]
        pool, labels = lever_plus_loader(record, record["pointer_candidates"])
        assert [[pool[label] for label in pointer] for pointer in labels] == icds


def test_the_form_is_lever_pluss() -> None:
    group = our_group(3, SMALL, [[77, 40]])
    content = lever_plus_json([group], ROW, {"vqa_model": "m", "version": "mine"})
    assert list(content) == ["_meta", "3"]
    assert content["_meta"].items() >= {"vqa_model": "m", "version": "k64"}.items()
    assert content["_meta"]["written_by"].startswith("icdsel ")
    record = content["3"]
    assert record["query"] == {
        "query_id": 3,
        "question_id": IDS[3],
        "image_id": 53,
        "question": "Où?",
        "gt_answers_raw": ["doni, or so"] * 7 + ["gesa"] * 3,
        "gt_answers_norm": ["doni"] * 7 + ["gesa"] * 3,
    }
    assert record["candidate_pool_ids"] == SMALL
    (candidate,) = record["pointer_candidates"]
    expected = {"pointer": [2, 0], "pointer_global": [77, 40], "gen_method": "cosine-beam", "logprob_score": -1.5}
    expected |= {"vqa_eval_mode": "vqaEval", "eval_split_used": "train", "eval_failed": False, "vqa_correct": 1}
    assert candidate.items() >= (expected | {"vqa_acc_score": 0.9}).items()
    assert candidate["beam_score"] == pytest.approx(math.exp(-1.5))
    unknown = replace(group, candidates=(replace(group.candidates[0], log_prob=None),))
    assert lever_plus_json([unknown], ROW, {})["3"]["pointer_candidates"][0]["beam_score"] is None

    content = lever_plus_json([our_group(3, SMALL, []), our_group(8, LARGE, [[77, 40]])], ROW, {})
    assert "version" not in content["_meta"]  # not all of it is K64
    (candidate,) = content["8"]["pointer_candidates"]
    assert candidate["pointer"] == candidate["pointer_pos"] == [77, 40]
    assert "pointer_global" not in candidate


@pytest.mark.parametrize(("size", "local"), [(64, True), (65, False)])
def test_pools_of_up_to_64_are_k64(size: int, local: bool) -> None:
    content = lever_plus_json([our_group(0, list(range(1, size + 1)), [[1, size]])], ROW, {})
    assert ("pointer_global" in content["0"]["pointer_candidates"][0]) is local
    assert ("version" in content["_meta"]) is local


def test_without_a_pool_of_its_own_a_query_is_read_with_the_icds_of_its_pointers(tmp_path: Path) -> None:
    group = replace(our_group(3, [], [[77, 40]]), pool=None)
    path = written(tmp_path, lever_plus_json([group], ROW, {}))
    (group,), _ = read_lever_plus(path, IDS)
    assert (pointers(group), group.pool) == ([[IDS[77], IDS[40]]], (IDS[40], IDS[77]))


def test_failed_calls_are_marked_for_both(tmp_path: Path) -> None:
    group = our_group(3, SMALL, [[77, 40], [5, 9]])
    failed_call = ScoredPointer((IDS[9], IDS[40]), error="out of memory")
    content = lever_plus_json([replace(group, candidates=(failed_call, group.candidates[1]))], ROW, {})
    failed = content["3"]["pointer_candidates"][0]
    assert (failed["eval_failed"], failed["vqa_eval_mode"], failed["error"]) == (True, "error", "out of memory")
    assert (failed["vqa_acc_score"], failed["vqa_correct"]) == (0.0, 0)
    (group,), rejected = read_lever_plus(written(tmp_path, content), IDS)
    assert (len(group.candidates), rejected) == (1, {lp.FAILED: 1})


def test_a_large_training_split_is_not_searched_for_every_query() -> None:
    rows = {question_id: question_id for question_id in range(1_000_000)}
    group = our_group(3, SMALL, [[77, 40]])
    groups = [replace(group, question_id=question_id) for question_id in range(500_000, 500_500)]
    started = time.process_time()
    assert len(lever_plus_json(groups, rows, {})) == 501
    assert time.process_time() - started < 2


def test_data_that_the_form_cannot_express_are_rejected() -> None:
    group = our_group(3, SMALL, [[77, 40]])
    with pytest.raises(RlDataError, match=r"question 1030 is not in the training split.*--dataset"):
        lever_plus_json([group], {i: row for i, row in ROW.items() if i != 1030}, {})
    with pytest.raises(RlDataError, match="question 1030 is repeated"):
        lever_plus_json([group, group], ROW, {})
    with pytest.raises(RlDataError, match="of the task closeness cannot be converted"):
        lever_plus_json([replace(group, task="closeness")], ROW, {})


@pytest.mark.parametrize("pointers", [((),), ((11, 12), (11,)), ((11, 12), ())])
def test_pointers_of_different_lengths_cannot_be_converted(pointers: tuple[tuple[int, ...], ...]) -> None:
    group = QueryGroup(5, 5, "?", ("a",), (11, 12), tuple(ScoredPointer(p, correct=1, score=1.0) for p in pointers))
    with pytest.raises(RlDataError, match=r"pointers of 0|pointers of 1 to 2 ICDs.*without --min-shots"):
        lever_plus_json([group], {5: 0, 11: 1, 12: 2}, {})


def test_a_conversion_keeps_every_field_of_the_candidates() -> None:
    value = our_group(3, SMALL, [[77, 40]]).to_json()
    group, _ = parse_group(json.loads(json.dumps(value)))
    (candidate,) = lever_plus_json([group], ROW, {})["3"]["pointer_candidates"]
    (unconverted,) = value["pointer_candidates"]
    assert {key: candidate[key] for key in unconverted if key != "pointer"} == {
        key: entry for key, entry in unconverted.items() if key != "pointer"
    }


# --- any JSON at all --------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
WHOLE = {"_meta": {"written_by": "icdsel"}} | {str(i): record for i, (record, _, _) in enumerate(VARIANTS.values(), 3)}
BEAMS = info_score(3, ([9, 5, 3], 0.1), ([5, 40, 3], 0.2)) | info_score(8, ([1, 8], 0))


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [path, *(place for key, entry in inner for place in places(entry, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def read_anyhow(folder: Path, content: object) -> None:
    path = written(folder, content)
    is_lever_plus(path)
    for ids in (IDS, None):
        for more in ({}, {"accept_unsound": True, "skip_fallback": False}):
            try:
                groups, _ = read_lever_plus(path, ids, **more)
            except RlDataError as error:
                str(error).encode()
                continue
            for group in groups:
                assert group.question_id not in group.pool
                assert len(set(group.pool)) == len(group.pool)
                for candidate in group.candidates:
                    assert set(candidate.pointer) <= set(group.pool)
                    for mode in ("hard_plus_soft", "hard_plus_gtprob_plus_rel"):
                        assert math.isfinite(pointer_reward(candidate, mode=mode))
        try:
            groups, _ = read_info_score(path, ids)
        except RlDataError:
            continue
        assert all(group.question_id not in c.pointer for group in groups for c in group.candidates)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.data())
def test_a_damaged_value_raises_only_user_errors(tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([WHOLE, BEAMS]))
    for _ in range(data.draw(st.integers(1, 3))):
        content = changed(content, data.draw(st.sampled_from(places(content))), data.draw(VALUES))
    read_anyhow(tmp_path, content)


@FUZZ
@given(st.one_of(VALUES, st.dictionaries(st.sampled_from(["3", "_meta", "x"]), VALUES)))
@example({"3": {"pointer_candidates": [scored([9, 5], vqa_gt_prob=10**400)]}})
def test_any_json_raises_only_user_errors(tmp_path: Path, content: object) -> None:
    read_anyhow(tmp_path, json.dumps(content))


@FUZZ
@given(st.data())
def test_torn_and_scrambled_text_raises_only_user_errors(tmp_path: Path, data: st.DataObject) -> None:
    text = json.dumps(WHOLE)
    at = data.draw(st.integers(0, len(text)))
    read_anyhow(tmp_path, text[:at] + data.draw(st.text(max_size=2)) + text[at + 1 :])


def test_a_repeated_pointer_counts_once(tmp_path: Path) -> None:
    candidates = [scored([9, 5]), {**scored([9, 5]), "vqa_acc_score": 0.0, "vqa_correct": 0}, scored([5, 9])]
    (group,), rejected = read_lever_plus(written(tmp_path, {"3": {"pointer_candidates": candidates}}), IDS)
    assert len(group.candidates) == 2
    assert rejected == {lp.AGAIN: 1}


def test_positions_in_a_pool_must_match_the_rows(tmp_path: Path) -> None:
    record = {
        "candidate_pool_ids": [7, 9, 5],
        "pointer_candidates": [
            {**scored([1, 2]), "pointer_global": [9, 5]},
            {**scored([0, 2]), "pointer_global": [9, 5]},
            {**scored([1, 9]), "pointer_global": [9, 5]},
            scored([0, 1]),
        ],
    }
    content = {"_meta": {"version": "k64"}, "3": record}
    (group,), rejected = read_lever_plus(written(tmp_path, content), IDS)
    assert len(group.candidates) == 1
    assert rejected == {lp.AMBIGUOUS: 3}
