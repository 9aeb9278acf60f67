"""Our RL data in Lever-Plus's form, so that its trainer can read them (specification §7.4, variants C and D)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from icdsel import __version__
from icdsel.artefacts.lever_plus_rl_data import FIELDS, WRITTEN_BY
from icdsel.errors import RlDataError
from icdsel.tasks.lever_plus_answers import cut_answer

K64 = 64
"""Lever-Plus's trainer looks at this many candidates of a pool."""


def lever_plus_json(
    groups: Iterable[Mapping[str, Any]], row: Mapping[int, int], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """One JSON value for a whole file, which `read_lever_plus` reads back as the same groups.

    A query whose pool has at most 64 candidates is written in the form K64 (pointers count within
    `candidate_pool_ids`, `pointer_global` within the training split), any other with pointers that count within
    the training split. For these Lever-Plus makes a pool of the pointers' ICDs by itself.

    Args:
        groups: The lines of our RL data, parsed; failed candidates are marked as the original marks them.
        row: question_id → rank in the training split.
        meta: What `_meta` is to tell (prompt, generation settings, seeds); `written_by` and, where every query is
            in the form K64, `version` are added.

    Returns:
        `_meta` and the queries' records by row, of plain JSON values.

    Raises:
        RlDataError: A question is not in the training split or stands twice, or the lines are not RL data of ours.
    """
    records: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(groups, 1):
        try:
            key, record = _record(group, row)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            told = f"{type(error).__name__} {error}"
            raise RlDataError(f"query number {number} of the RL data: {told}: no RL data of icdsel") from None
        if key in records:
            raise RlDataError(f"question {group['question_id']} stands twice in the RL data")
        records[key] = record
    local = all("pointer_global" in c for record in records.values() for c in record["pointer_candidates"])
    return {"_meta": {**meta, **({"version": "k64"} if local else {}), WRITTEN_BY: f"icdsel {__version__}"}, **records}


def _record(group: Mapping[str, Any], row: Mapping[int, int]) -> tuple[str, dict[str, Any]]:
    question_id, pool = group["question_id"], group.get("candidate_pool_ids") or []
    candidates, answers = group["pointer_candidates"], list(map(str, group["answers"]))
    named = {question_id, *pool, *(i for c in candidates for i in c["pointer"])}
    if unknown := [i for i in named if i not in row]:
        raise RlDataError(
            f"question {min(unknown)} is not in the training split, by which Lever-Plus numbers questions: name the "
            f"dataset of these RL data with --dataset (those of other splits have no such form)"
        )
    place = {i: k for k, i in enumerate(pool)} if 0 < len(pool) <= K64 else None
    query = {
        "query_id": row[question_id],
        "question_id": question_id,
        "image_id": group["image_id"],
        "question": group["question"],
        "gt_answers_raw": answers,
        "gt_answers_norm": list(map(cut_answer, answers)),
    }
    record: dict[str, Any] = {"query": query}
    if pool:
        record["candidate_pool_ids"] = [row[i] for i in pool]
    record["pointer_candidates"] = [_candidate(candidate, row, place) for candidate in candidates]
    return str(row[question_id]), record


def _candidate(candidate: Mapping[str, Any], row: Mapping[int, int], place: Mapping[int, int] | None) -> dict[str, Any]:
    icds = [row[i] for i in candidate["pointer"]]
    if place is None:
        written: dict[str, Any] = {"pointer": icds, "pointer_pos": icds}
    else:
        written = {"pointer": [place[i] for i in candidate["pointer"]], "pointer_global": icds}
    written |= {name: candidate[name] for name in FIELDS if name in candidate}
    log_prob = candidate.get("logprob_score")
    written["beam_score"] = None if log_prob is None else math.exp(log_prob)
    if candidate.get("eval_failed"):
        failed = {"vqa_pred_answer": "", "vqa_correct": 0, "vqa_acc_score": 0.0, "error": candidate.get("error")}
        return written | failed | {"vqa_eval_mode": "error", "eval_split_used": None, "eval_failed": True}
    return written | {"vqa_eval_mode": "vqaEval", "eval_split_used": "train", "eval_failed": False}
