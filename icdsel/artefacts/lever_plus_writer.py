"""RL data of icdsel in Lever-Plus's form, for its trainer."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from icdsel import __version__
from icdsel.artefacts.lever_plus_rl_data import WRITTEN_BY
from icdsel.errors import RlDataError
from icdsel.records import DEFAULT_TASK, QueryGroup, QuestionId, ScoredPointer, id_order
from icdsel.tasks.cleaners import cut_answer

K64 = 64
"""The number of candidates that Lever-Plus's trainer reads of a pool."""


def lever_plus_json(
    groups: Iterable[QueryGroup], row: Mapping[QuestionId, int], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """One JSON value for a whole file, which `read_lever_plus` reads back as the same groups.

    A query whose pool has at most 64 candidates is written in the form K64 (pointers count within
    `candidate_pool_ids`, `pointer_global` within the training split), any other with pointers that count within
    the training split. For the latter Lever-Plus makes a pool of the pointers' ICDs.

    Args:
        groups: The groups, with their failed calls, which are marked as Lever-Plus marks them.
        row: question_id → rank in the training split.
        meta: The content of `_meta` (prompt, generation settings, seeds); `written_by` and, if every query is in the
            form K64, `version` are added.

    Returns:
        `_meta` and the queries' records by row, of plain JSON values.

    Raises:
        RlDataError: A question is not in the training split or is repeated, the data are not of the task VQA, or their
            pointers differ in length.
    """
    records: dict[str, dict[str, Any]] = {}
    lengths: set[int] = set()
    for group in groups:
        if group.task != DEFAULT_TASK:
            raise RlDataError(f"RL data of the task {group.task} cannot be converted: Lever-Plus knows only VQA")
        lengths |= {len(candidate.pointer) for candidate in group.candidates}
        if len(lengths) > 1 or 0 in lengths:
            raise RlDataError(
                f"RL data with pointers of {min(lengths)} to {max(lengths)} ICDs cannot be converted: Lever-Plus "
                "trains on pointers of one length. Generate RL data without --min-shots"
            )
        key, record = _record(group, row)
        if key in records:
            raise RlDataError(f"question {group.question_id} is repeated in the RL data")
        records[key] = record
    local = all("pointer_global" in c for record in records.values() for c in record["pointer_candidates"])
    return {"_meta": {**meta, **({"version": "k64"} if local else {}), WRITTEN_BY: f"icdsel {__version__}"}, **records}


def _record(group: QueryGroup, row: Mapping[QuestionId, int]) -> tuple[str, dict[str, Any]]:
    pool = group.pool or ()
    named = {group.question_id, *pool, *(icd for candidate in group.candidates for icd in candidate.pointer)}
    if unknown := [question_id for question_id in named if question_id not in row]:
        raise RlDataError(
            f"question {min(unknown, key=id_order)} is not in the training split, by which Lever-Plus numbers "
            f"questions: name the dataset of these RL data with --dataset (those of other splits cannot be converted)"
        )
    place = {i: k for k, i in enumerate(pool)} if 0 < len(pool) <= K64 else None
    query = {
        "query_id": row[group.question_id],
        "question_id": group.question_id,
        "image_id": group.image_id,
        "question": group.question,
        "gt_answers_raw": list(group.answers),
        "gt_answers_norm": list(map(cut_answer, group.answers)),
    }
    record: dict[str, Any] = {"query": query}
    if pool:
        record["candidate_pool_ids"] = [row[i] for i in pool]
    record["pointer_candidates"] = [_candidate(candidate, row, place) for candidate in group.candidates]
    return str(row[group.question_id]), record


def _candidate(
    candidate: ScoredPointer, row: Mapping[QuestionId, int], place: Mapping[QuestionId, int] | None
) -> dict[str, Any]:
    icds = [row[i] for i in candidate.pointer]
    if place is None:
        written: dict[str, Any] = {"pointer": icds, "pointer_pos": icds}
    else:
        written = {"pointer": [place[i] for i in candidate.pointer], "pointer_global": icds}
    written |= {k: v for k, v in candidate.to_json().items() if k not in ("pointer", "eval_failed", "error")}
    log_prob = candidate.log_prob
    written["beam_score"] = None if log_prob is None else math.exp(min(log_prob, 0.0))
    if candidate.error is None:
        return written | {"vqa_eval_mode": "vqaEval", "eval_split_used": "train", "eval_failed": False}
    failed = {"vqa_pred_answer": "", "vqa_correct": 0, "vqa_acc_score": 0.0, "error": candidate.error}
    return written | failed | {"vqa_eval_mode": "error", "eval_split_used": None, "eval_failed": True}
