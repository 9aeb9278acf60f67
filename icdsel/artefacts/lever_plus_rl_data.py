"""Lever-Plus's RL data and InfoScore data, read as query groups.

Both are one JSON object for the whole file, from a query's row to its record; a row is a rank by question_id in
the training split. There are many versions of RL data. Candidates of one file may be numbered differently, within
their query's pool or within the training split, so each is resolved by itself. What Lever-Plus's scripts made up,
failed to score, or scored by something other than the VQA accuracy is left out and counted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from icdsel.errors import RlDataError
from icdsel.records import DEFAULT_TASK, Pointer, QueryGroup, QuestionId, RejectedError, ScoredPointer, id_order
from icdsel.records.query_group import REPEATED_ICD
from icdsel.records.scored_pointer import BAD_SCORE
from icdsel.records.values import is_id, is_number
from icdsel.store.json_reading import LARGEST_FILE, parsed
from icdsel.store.reading import open_file, read_whole
from icdsel.tasks.base import bounds_of

WRITTEN_BY = "written_by"
"""The key in `_meta` that names icdsel in files that it wrote in this form."""
# Why a candidate is left out.
FAILED = "the VLM call failed"
FAILED_SCORED = "the VLM call failed and was scored as a wrong answer"
MATCHED = "scored by matching strings, not by the VQA accuracy"
MADE_UP = "its score is another query's"
ANSWERLESS = "generated without the demonstrations' answers"
NO_POINTER = "the pointer is not a list of rows"
NO_ICD = "the pointer is empty"
OWN_QUERY = "the query is its own ICD"
NOT_LAST = "the beam does not end with its query"
OUTSIDE = "a row outside the training split"
AGAIN = "the pointer is a repetition"
AMBIGUOUS = "in data with pools of 64, its positions are clear neither within its pool nor within the training split"
EMPTY = "a query without candidates"

GT_PROB_NOTE = "vqa_gt_prob left out (measured over the wrong tokens), candidate kept"
"""Counted with the reasons, although these candidates are kept."""

_RL, _INFO_SCORE = "pointer_candidates", "id_list"
_MADE_UP_METHODS = ("global_positive_injection", "global_positive_transfer")
_ROW = re.compile(r"0|[1-9][0-9]{0,17}")
_FIRST_KEY = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:[0-9]+|_meta)"\s*:')
_START = 4096  # bytes read to recognise the form


def is_lever_plus(path: Path) -> bool:
    """Whether a file is in Lever-Plus's form: its first key is a row or `_meta`, those of icdsel are names.

    Reads only the start of the file. A missing file is not in this form.

    Raises:
        RlDataError: The file cannot be read.
    """
    if not path.is_file():
        return False
    try:
        with open_file(path) as file:
            return _FIRST_KEY.match(file.read(_START)) is not None
    except OSError as error:
        raise RlDataError(f"{path} cannot be read: {error.strerror}") from None


def read_lever_plus(
    path: Path, question_ids: Sequence[QuestionId] | None, *, skip_fallback: bool = True, accept_unsound: bool = False
) -> tuple[list[QueryGroup], dict[str, int]]:
    """Reads RL data of any version, including files that icdsel wrote in this form.

    A query's pool is its `candidate_pool_ids` in their order, without repetitions and the query itself, followed by
    any further ICDs of its pointers. Without that field, the pool is all ICDs of its kept pointers in the order of
    the training split (Lever-Plus cuts it to 64). A field that is missing is "" for the question, no answers, or -1
    for the image.

    `vqa_gt_prob` is left out unless icdsel wrote it or `accept_unsound` is set: for Qwen, Lever-Plus measured it over
    the tokens of the images and demonstrations, about 1e-7 for every pointer.

    Args:
        path: The file.
        question_ids: Those of the training split, ascending; None uses the rows as ids.
        skip_fallback: Leave out candidates that were scored by matching strings.
        accept_unsound: Keep candidates whose score was copied from another query, or that were generated without the
            demonstrations' answers. The latter have no field for correctness: an accuracy above 0 counts
            as correct.

    Returns:
        Queries that keep a candidate, in the file's order, and how many candidates were left out for which reason
        (with `GT_PROB_NOTE`).

    Raises:
        RlDataError: The file is missing, damaged or in another form, belongs to another dataset, or no candidate is
            left.
    """
    loaded = _load(path)
    meta = loaded.get("_meta")
    author = meta.get(WRITTEN_BY) if isinstance(meta, dict) else None
    ours = isinstance(author, str) and author.startswith("icdsel")
    meta_k64 = isinstance(meta, dict) and meta.get("version") == "k64"
    rules = _Rules(skip_fallback, accept_unsound, keep_gt_prob=ours or accept_unsound)
    rows = _Rows(question_ids)
    groups = []
    rejected = Counter[str]()
    for row, record in _queries(path, loaded, _RL):
        place = f"{path}, query {row}"
        candidates = _list_of_objects(record[_RL], f"{place}: {_RL}")
        query = record["query"] if isinstance(record.get("query"), dict) else {}
        try:
            question_id = rows.ids([row])[0]
            _require_same_query(place, query.get("question_id"), question_id, question_ids)
            pool = rows.ids(_pool(record, place))
        except RejectedError as reason:
            rejected[str(reason)] += len(candidates)
            continue
        rejected[EMPTY] += not candidates
        kept: dict[Pointer, ScoredPointer] = {}
        for candidate in candidates:
            try:
                if meta_k64 and candidate.get("pointer_global") is None:
                    raise RejectedError(AMBIGUOUS)
                icds = rows.ids(_pointer(candidate, row, rules))
                _require_local(candidate, record)
                scored = _scored(icds, candidate, rules, rejected)
                if icds in kept:
                    raise RejectedError(AGAIN)
                kept[icds] = scored
            except RejectedError as reason:
                rejected[str(reason)] += 1
        if kept:
            used = sorted({icd for icds in kept for icd in icds}, key=id_order)
            pool = tuple(icd for icd in dict.fromkeys((*pool, *used)) if icd != question_id)
            groups.append(_group(question_id, query, pool, kept.values(), "candidate_pool_ids" not in record))
    rejected = +rejected  # drops counts of 0
    if not groups:
        raise _nothing_left(path, rejected)
    return groups, dict(rejected)


def read_info_score(path: Path, question_ids: Sequence[QuestionId] | None) -> tuple[list[QueryGroup], dict[str, int]]:
    """Reads InfoScore data: the beams of each query as pointers in prompt order, to be imitated.

    Their scores are not kept. For Qwen they mean little: Lever-Plus measured them over the wrong tokens, and kept the
    worst. The pools are empty, as the file does not hold the sampler's.

    Args:
        path: The file.
        question_ids: Those of the training split, ascending; None uses the rows as ids.

    Returns:
        Queries that keep a beam, in the file's order, and how many beams were left out for which reason.

    Raises:
        RlDataError: As for `read_lever_plus`.
    """
    rows = _Rows(question_ids)
    groups = []
    rejected = Counter[str]()
    for row, record in _queries(path, _load(path), _INFO_SCORE):
        beams, scores = record[_INFO_SCORE], record.get("score_list")
        if not isinstance(beams, list) or not isinstance(scores, list) or len(beams) != len(scores):
            raise RlDataError(f"{path}, query {row}: {_INFO_SCORE} and score_list are not two lists of the same length")
        rejected[EMPTY] += not beams
        kept = []
        for beam, score in zip(beams, scores, strict=True):
            try:
                if not _are_rows(beam):
                    raise RejectedError(NO_POINTER)
                if beam[-1:] != [row]:
                    raise RejectedError(NOT_LAST)
                icds = rows.ids(_distinct(beam[:-1], row))
                question_id = rows.ids([row])[0]
                if not is_number(score, -1.0, 1.0):  # a difference of probabilities
                    raise RejectedError(BAD_SCORE)
                kept.append(ScoredPointer(icds, "infoscore"))
            except RejectedError as reason:
                rejected[str(reason)] += 1
        if kept:
            groups.append(_group(question_id, {}, (), kept, derived=False))
    rejected = +rejected
    if not groups:
        raise _nothing_left(path, rejected)
    return groups, dict(rejected)


# --- the file ---------------------------------------------------------------------------------------------


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_whole(path, LARGEST_FILE)
    except FileNotFoundError:
        raise RlDataError(f"{path} does not exist: give the path of a file that exists") from None
    except OSError as error:
        raise RlDataError(f"{path} cannot be read: {error.strerror}") from None
    text = ""
    try:
        text = content.decode("utf-8-sig")
        loaded = parsed(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise RlDataError(f"{path} is not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        byte = len(content) - len(text[error.pos :].encode())
        raise RlDataError(
            f"{path} is not valid JSON: line {error.lineno}, byte {byte}: {error.msg}; expected {_expected(_RL)}"
        ) from None
    except ValueError as error:  # a number of thousands of digits, a repeated key
        raise RlDataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise RlDataError(f"{path} holds a {type(loaded).__name__}; expected {_expected(_RL)}")
    return loaded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; merged files could hold a query twice, and `json` would silently drop one."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key[:40]!a} is repeated in an object")
    return unique


def _queries(path: Path, loaded: Mapping[str, Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows and records; every record is an object that has the key `kind`."""
    records = {key: record for key, record in loaded.items() if not key.startswith("_")}
    if not records:
        raise RlDataError(f"{path} holds no query; expected {_expected(kind)}")
    for key, record in records.items():
        if not _ROW.fullmatch(key):
            raise RlDataError(f"{path}: the key {key[:40]!a} is not a row; expected {_expected(kind)}")
        if not isinstance(record, dict):
            raise RlDataError(f"{path}, query {key}: not an object; expected {_expected(kind)}")
        if kind not in record and _INFO_SCORE in record:
            raise RlDataError(f"{path} holds InfoScore data, not RL data: use --warm-start {path}")
        if kind not in record and _RL in record:
            raise RlDataError(f"{path} holds RL data, not InfoScore data: use --rl-data {path}")
        if kind not in record:
            raise RlDataError(f"{path}, query {key}: it has no {kind}; expected {_expected(kind)}")
        yield int(key), record


def _expected(kind: str) -> str:
    return f'one object {{"<row of the training split>": {{"{kind}": [...]}}, ...}}'


def _list_of_objects(value: object, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RlDataError(f"{place} is not a list")
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            raise RlDataError(f"{place}: number {number} is not an object")
    return value


def _nothing_left(path: Path, rejected: Mapping[str, int]) -> RlDataError:
    reasons = "; ".join(f"{reason} ({count})" for reason, count in rejected.items())
    remedies = {
        OUTSIDE: "The file belongs to another dataset: name it with --dataset.",
        MATCHED: "--no-skip-fallback keeps what was scored by matching strings.",
        MADE_UP: "--accept-unsound keeps scores of other queries.",
        ANSWERLESS: "--accept-unsound keeps what was generated without answers.",
        EMPTY: "Lever-Plus writes queries without candidates if it looked up the human answers in another split.",
    }
    helps = [remedy for reason, remedy in remedies.items() if reason in rejected]
    return RlDataError(" ".join([f"{path}: nothing in it can be trained on: {reasons}.", *helps]))


# --- a query and its candidates ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rules:
    skip_fallback: bool
    accept_unsound: bool
    keep_gt_prob: bool


class _Rows:
    """From rows of the training split to question_ids."""

    def __init__(self, question_ids: Sequence[QuestionId] | None) -> None:
        self._ids = question_ids
        self._total = 2**63 if question_ids is None else len(question_ids)

    def ids(self, rows: Sequence[int]) -> Pointer:
        if not all(0 <= row < self._total for row in rows):
            raise RejectedError(OUTSIDE)
        return tuple(rows) if self._ids is None else tuple(self._ids[row] for row in rows)


def _require_same_query(
    place: str, given: object, question_id: QuestionId, question_ids: Sequence[QuestionId] | None
) -> None:
    known = str(given)[:40] if isinstance(given, int | str) else f"a {type(given).__name__}"
    if question_ids is not None and given is not None and known != str(question_id):
        raise RlDataError(
            f"{place}: its question_id is {known!a}, but that row of the training split is question {question_id}: "
            f"the file belongs to another dataset, name it with --dataset"
        )


def _pool(record: Mapping[str, Any], place: str) -> list[int]:
    given = record.get("candidate_pool_ids")
    if given is not None and not _are_rows(given):
        raise RlDataError(f"{place}: candidate_pool_ids is not a list of rows")
    return given or []


def _pointer(candidate: Mapping[str, Any], query: int, rules: _Rules) -> list[int]:
    """A candidate's ICDs as rows of the training split; rejects a candidate whose score cannot be trusted.

    If there is a `pointer_global`, `pointer` counts within the pool, whatever other fields there are: conversions to
    pools of 64 left an old `pointer_pos` in place.
    """
    mode, method = candidate.get("vqa_eval_mode"), candidate.get("gen_method")
    augmented = "aug_round" in candidate or (isinstance(method, str) and method.startswith(("aug_", "sft_")))
    if candidate.get("eval_failed") or mode == "error":
        raise RejectedError(FAILED)
    if augmented and not candidate.get("vqa_pred_answer") and not candidate.get("raw_generation"):
        raise RejectedError(FAILED_SCORED)
    if rules.skip_fallback and mode in ("fallback", "simple_match"):
        raise RejectedError(MATCHED)
    if not rules.accept_unsound:
        if method in _MADE_UP_METHODS or "source_query" in candidate or "source_queries" in candidate:
            raise RejectedError(MADE_UP)
        if candidate.get("vqa_correct") is None:  # only one script leaves it out (variant G)
            raise RejectedError(ANSWERLESS)
    for name in ("pointer_global", "pointer_pos", "pointer"):
        if candidate.get(name) is not None:
            return _distinct(candidate[name], query)
    raise RejectedError(NO_POINTER)


def _require_local(candidate: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Rejects a candidate whose positions in the pool are not those of its rows of the training split."""
    rows, local, pool = candidate.get("pointer_global"), candidate.get("pointer"), record.get("candidate_pool_ids")
    if rows is None or pool is None or not _are_rows(local):
        return
    if any(not 0 <= place < len(pool) for place in local) or [pool[place] for place in local] != rows:
        raise RejectedError(AMBIGUOUS)


def _distinct(pointer: object, query: int) -> list[int]:
    if not _are_rows(pointer):
        raise RejectedError(NO_POINTER)
    if query in pointer:
        raise RejectedError(OWN_QUERY)
    if not pointer:
        raise RejectedError(NO_ICD)
    if len(set(pointer)) < len(pointer):
        raise RejectedError(REPEATED_ICD)
    return pointer


def _scored(icds: Pointer, candidate: Mapping[str, Any], rules: _Rules, counts: Counter[str]) -> ScoredPointer:
    """The candidate as a record, with those of its scores that can be trusted."""
    kept = {**candidate, "pointer": icds}
    if not rules.keep_gt_prob and kept.get("vqa_gt_prob") is not None:
        del kept["vqa_gt_prob"]
        counts[GT_PROB_NOTE] += 1
    if kept.get("vqa_correct") is None:  # absent, it is derived from the accuracy
        kept.pop("vqa_correct", None)
    return ScoredPointer.from_json(kept, bounds_of(DEFAULT_TASK))


def _are_rows(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(row) is int for row in value)  # isinstance would accept bools


def _group(
    question_id: QuestionId,
    query: Mapping[str, Any],
    pool: tuple[QuestionId, ...],
    candidates: Iterable[ScoredPointer],
    derived: bool,
) -> QueryGroup:
    image_id, question, answers = (query.get(name) for name in ("image_id", "question", "gt_answers_raw"))
    return QueryGroup(
        question_id=question_id,
        image_id=image_id if is_id(image_id) else -1,
        question=question if isinstance(question, str) else "",
        answers=tuple(a for a in answers if isinstance(a, str)) if isinstance(answers, list) else (),
        pool=pool,
        candidates=tuple(candidates),
        derived=derived,
    )
