"""Readers of RL data, of icdsel and of Lever-Plus."""

import contextlib
from pathlib import Path
from typing import Any

from icdsel.artefacts.lever_plus_rl_data import read_info_score
from icdsel.artefacts.lever_plus_writer import lever_plus_json
from icdsel.artefacts.rl_data import merge, read_groups, read_rl_data
from icdsel.errors import RlDataError
from icdsel.policy.groups import make_groups
from icdsel.settings.tables import RewardSettings

from .common import ROW, alone, check_path, json_of, lines_of
from .harness import Reader
from .mutate import damaged_json, damaged_lines


def candidate(*pointer: int, **more: Any) -> dict[str, Any]:
    fields = {"pointer": list(pointer), "gen_method": "cosine-beam", "beam_rank": 0, "logprob_score": -1.5}
    fields |= {"temperature": None, "vqa_pred_answer": "a", "vqa_correct": 1, "vqa_acc_score": 0.6, "vqa_gt_prob": 0.5}
    return fields | {"vqa_rel_score": 0.5} | more


def rl_record(question_id: int, candidates: list[dict[str, Any]], pool: Any = None) -> dict[str, Any]:
    pool = [i for i in range(110, 118) if i != question_id] if pool is None else pool
    record = {"question_id": question_id, "image_id": 7, "question": "What?", "answers": ["a", "b"]}
    return record | {"candidate_pool_ids": pool, "pointer_candidates": candidates}


FAILED_CANDIDATE = {"pointer": [110, 113], "gen_method": "random", "eval_failed": True, "error": "no memory"}
RL_RECORDS = [
    rl_record(100, [candidate(110, 111), candidate(111, 112, vqa_acc_score=0.0), FAILED_CANDIDATE]),
    rl_record(101, [candidate(112, 111), candidate(113, 110)]),
    rl_record(102, [candidate(112, 111)], pool="all") | {"excluded_ids": [102, 103]},
]


def use_rl_data(path: Path) -> None:
    check_path(path)
    data = read_rl_data(path)
    groups = merge([data.groups, data.groups])
    use_as_tensors(groups)
    with contextlib.suppress(RlDataError):
        lever_plus_json([group for group, _ in read_groups(path)], ROW, {})


def use_as_tensors(groups: Any) -> None:
    with contextlib.suppress(RlDataError):
        made = make_groups(groups, ROW, RewardSettings())
        assert made.raw.nan_to_num().isfinite().all()


LEVER_PLUS_POOL = [40, 9, 77, 5, 12]
LEVER_PLUS = [
    {"3": {"pointer_candidates": [candidate(9, 5), candidate(5, 40)]}},
    {
        "_meta": {"version": "k64"},
        "3": {
            "query": {"question_id": 3, "image_id": 7, "question": "?", "gt_answers_raw": ["a"]},
            "candidate_pool_ids": LEVER_PLUS_POOL,
            "pointer_candidates": [candidate(2, 0, pointer_global=[77, 40], vqa_eval_mode="vqaEval")],
        },
    },
    {
        "4": {
            "query": {},
            "candidate_pool_ids": [5, 3, 9, 5, 40],
            "pointer_candidates": [
                candidate(2, 0, pointer_global=[9, 5], pointer_pos=[80, 81]),
                candidate(5, 6, gen_method="aug_swap", vqa_eval_mode="train", aug_round=1, raw_generation="x"),
                candidate(8, 9, vqa_eval_mode="fallback"),
                candidate(7, 9, vqa_correct=None),
            ],
        }
    },
    {"_meta": {"written_by": "icdsel 1"}, "0": {"pointer_candidates": [candidate(1, 2), {"pointer": [1]}]}},
]
INFO_SCORE = [
    {"3": {"id_list": [[9, 5, 3], [5, 9, 3]], "score_list": [0.1, -0.1]}, "4": {"id_list": [], "score_list": []}}
]


def use_lever_plus(path: Path) -> None:
    check_path(path)
    even = path.stat().st_size % 2 == 0
    data = read_rl_data(path, list(range(200)) if even else None, accept_unsound=even, skip_fallback=not even)
    for group in data.groups:
        f"{group.question_id} {group.image_id} {group.question} {group.answers}".encode()
    use_as_tensors(merge([data.groups]))


READERS = [
    Reader("rl-data", alone("x.jsonl"), lines_of(*RL_RECORDS), damaged_lines, use_rl_data, (RlDataError,)),
    Reader("lever-plus", alone("x.json"), json_of(*LEVER_PLUS), damaged_json, use_lever_plus, (RlDataError,)),
    Reader(
        "info-score",
        alone("x.json"),
        json_of(*INFO_SCORE, *LEVER_PLUS[:1]),
        damaged_json,
        lambda path: read_info_score(path, None),
        (RlDataError,),
    ),
]
