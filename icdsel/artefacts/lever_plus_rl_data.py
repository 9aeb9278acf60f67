"""Lever-Plus's RL data and InfoScore data, read as the groups that training knows (specification §4, §7.4).

Both are one JSON object over the whole file, from a query's row to its record; a row is a rank by question_id in
the training split. RL data come in many ages. Candidates of one file may be numbered differently, within their
query's pool or within the training split, so each is resolved for itself. What its scripts made up, failed to
score or scored otherwise than by the VQA accuracy is left out and counted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from icdsel.artefacts.candidates import has_valid_scores
from icdsel.errors import RlDataError
from icdsel.records import QueryGroup
from icdsel.store.json_reading import LARGEST_FILE, is_id, is_number, parsed
from icdsel.store.reading import open_file, read_whole

WRITTEN_BY = "written_by"  # in `_meta` of what `icdsel` wrote in this form
FIELDS = (
    "gen_method",
    "beam_rank",
    "logprob_score",
    "temperature",
    "vqa_pred_answer",
    "vqa_correct",
    "vqa_acc_score",
    "vqa_gt_prob",
    "vqa_gt_prob_norm",
    "vqa_rel_token_f1",
    "vqa_rel_edit_sim",
    "vqa_rel_score",
)
"""What is kept of a candidate, beside its pointer: the fields of our own RL data."""

# Why a candidate is left out.
FAILED = "the VLM call failed"
FAILED_SCORED = "the VLM call failed and was scored as a wrong answer"
MATCHED = "scored by matching strings, not by the VQA accuracy"
MADE_UP = "its score is another query's"
ANSWERLESS = "asked without the demonstrations' answers"
NO_POINTER = "the pointer is no list of rows"
REPEATED = "an ICD stands twice, or none at all"
OWN_QUERY = "the query is its own ICD"
NOT_LAST = "the beam does not end with its query"
OUTSIDE = "a row outside the training split"
AGAIN = "the pointer was scored before"
AMBIGUOUS = "in data of pools of 64, it counts neither clearly within its pool nor within the training split"
NO_SCORE = "the score is no number, or out of range"
EMPTY = "a query without candidates"

GT_PROB_NOTE = "vqa_gt_prob left out (measured over the wrong tokens), candidate kept"
"""Counted beside the reasons, though these candidates are kept."""

_RL, _INFO_SCORE = "pointer_candidates", "id_list"
_MADE_UP_METHODS = ("global_positive_injection", "global_positive_transfer")
_ROW = re.compile(r"0|[1-9][0-9]{0,17}")
_FIRST_KEY = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:[0-9]+|_meta)"\s*:')
_START = 4096  # bytes that tell the form


def is_lever_plus(path: Path) -> bool:
    """Whether a file is in Lever-Plus's form: its first key is a row or `_meta`, where ours are names.

    Reads the file's start alone. A file that is missing is in no form.

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
    path: Path, question_ids: Sequence[int] | None, *, skip_fallback: bool = True, accept_unsound: bool = False
) -> tuple[list[QueryGroup], dict[str, int]]:
    """Reads RL data of any age, or what icdsel wrote in that form.

    A query's pool is its `candidate_pool_ids` in their order, less repetitions and the query itself, and with
    any further ICDs of its pointers at the end; where it has none, the pool are the ICDs of its kept pointers in
    the order of the training split, all of them (the original cuts it to 64). Of a candidate `FIELDS` are kept.
    What the data do not tell of a query is "", no answers or the image -1.

    `vqa_gt_prob` is left out unless icdsel wrote it or `accept_unsound` is set: for Qwen the original measured it
    over the tokens of the images and demonstrations, about 1e-7 for every pointer (specification §0.5).

    Args:
        path: The file.
        question_ids: Those of the training split, ascending; None takes the rows for ids.
        skip_fallback: Leave out what was scored by matching strings.
        accept_unsound: Take candidates whose score was copied from another query, or that were asked without the
            demonstrations' answers. The latter do not say whether they are correct: accuracy above 0 is.

    Returns:
        Queries that keep a candidate, in the file's order, and how many candidates were left out for which reason
        (and `GT_PROB_NOTE`).

    Raises:
        RlDataError: The file is missing, damaged or of another form; it belongs to another dataset; nothing is
            left of it.
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
        told = record.get("query")
        query = told if isinstance(told, dict) else {}
        try:
            question_id = rows.ids([row])[0]
            _require_same_query(place, query.get("question_id"), question_id, question_ids)
            pool = rows.ids(_pool(record, place))
        except _Rejected as reason:
            rejected[str(reason)] += len(candidates)
            continue
        rejected[EMPTY] += not candidates
        kept = []
        tried: set[tuple[int, ...]] = set()
        for candidate in candidates:
            try:
                if meta_k64 and candidate.get("pointer_global") is None:
                    raise _Rejected(AMBIGUOUS)
                icds = rows.ids(_pointer(candidate, row, rules))
                _require_local(candidate, record)
                scores = _scores(candidate, rules, rejected)
                if icds in tried:
                    raise _Rejected(AGAIN)
                tried.add(icds)
                kept.append({"pointer": list(icds)} | scores)
            except _Rejected as reason:
                rejected[str(reason)] += 1
        if kept:
            used = sorted({icd for candidate in kept for icd in candidate["pointer"]})
            pool = tuple(icd for icd in dict.fromkeys((*pool, *used)) if icd != question_id)
            group = _group(question_id, query, pool, kept)
            groups.append(replace(group, derived="candidate_pool_ids" not in record))
    rejected = +rejected  # less what counts 0
    if not groups:
        raise _nothing_left(path, rejected)
    return groups, dict(rejected)


def read_info_score(path: Path, question_ids: Sequence[int] | None) -> tuple[list[QueryGroup], dict[str, int]]:
    """Reads InfoScore data: the beams of each query as pointers in prompt order, to be imitated.

    Every candidate is `{"pointer", "gen_method": "infoscore", "info_score"}`. The scores are the original's, which
    for Qwen say little: they were measured over the wrong tokens, and of those the worst were kept (specification
    §0.5, §4). The pools are empty: the file does not hold the sampler's.

    Args:
        path: The file.
        question_ids: Those of the training split, ascending; None takes the rows for ids.

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
                    raise _Rejected(NO_POINTER)
                if beam[-1:] != [row]:
                    raise _Rejected(NOT_LAST)
                icds = rows.ids(_distinct(beam[:-1], row))
                question_id = rows.ids([row])[0]
                info_score = _number(score, -1.0, 1.0)  # a difference of probabilities
                kept.append({"pointer": list(icds), "gen_method": "infoscore", "info_score": info_score})
            except _Rejected as reason:
                rejected[str(reason)] += 1
        if kept:
            groups.append(_group(question_id, {}, (), kept))
    rejected = +rejected
    if not groups:
        raise _nothing_left(path, rejected)
    return groups, dict(rejected)


# --- the file ---------------------------------------------------------------------------------------------


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_whole(path, LARGEST_FILE)
    except FileNotFoundError:
        raise RlDataError(f"{path} does not exist: give the path of a file that does") from None
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
    except ValueError as error:  # a number of thousands of digits, a key that stands twice
        raise RlDataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise RlDataError(f"{path} holds a {type(loaded).__name__}; expected {_expected(_RL)}")
    return loaded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; merged files could hold a query twice, of which `json` would drop one."""
    made = dict(pairs)
    if len(made) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key[:40]!a} stands more than once in an object")
    return made


def _queries(path: Path, loaded: Mapping[str, Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows and records; every record is an object that has the key `kind`."""
    records = {key: record for key, record in loaded.items() if not key.startswith("_")}
    if not records:
        raise RlDataError(f"{path} holds no query; expected {_expected(kind)}")
    for key, record in records.items():
        if not _ROW.fullmatch(key):
            raise RlDataError(f"{path}: the key {key[:40]!a} is no row; expected {_expected(kind)}")
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
        raise RlDataError(f"{place} is no list")
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            raise RlDataError(f"{place}: number {number} is not an object")
    return value


def _nothing_left(path: Path, rejected: Mapping[str, int]) -> RlDataError:
    told = "; ".join(f"{reason} ({count})" for reason, count in rejected.items())
    remedies = {
        OUTSIDE: "The file belongs to another dataset: name that with --dataset.",
        MATCHED: "--no-skip-fallback takes what was scored by matching strings.",
        MADE_UP: "--accept-unsound takes scores of other queries.",
        ANSWERLESS: "--accept-unsound takes what was asked without answers.",
        EMPTY: "Lever-Plus writes queries without candidates where it looked up the human answers in another split.",
    }
    helps = [remedy for reason, remedy in remedies.items() if reason in rejected]
    return RlDataError(" ".join([f"{path}: nothing in it can be trained on: {told}.", *helps]))


# --- a query and its candidates ---------------------------------------------------------------------------


class _Rejected(Exception):
    """A candidate cannot be used, for the reason that the message tells."""


@dataclass(frozen=True)
class _Rules:
    skip_fallback: bool
    accept_unsound: bool
    keep_gt_prob: bool


class _Rows:
    """From rows of the training split to question_ids."""

    def __init__(self, question_ids: Sequence[int] | None) -> None:
        self._ids = question_ids
        self._total = 2**63 if question_ids is None else len(question_ids)

    def ids(self, rows: Sequence[int]) -> tuple[int, ...]:
        if not all(0 <= row < self._total for row in rows):
            raise _Rejected(OUTSIDE)
        return tuple(rows) if self._ids is None else tuple(self._ids[row] for row in rows)


def _require_same_query(place: str, told: object, question_id: int, question_ids: Sequence[int] | None) -> None:
    known = str(told)[:40] if isinstance(told, int | str) else f"a {type(told).__name__}"
    if question_ids is not None and told is not None and known != str(question_id):
        raise RlDataError(
            f"{place}: its question_id is {known!a}, that row of the training split is question {question_id}: "
            f"the file belongs to another dataset, name that with --dataset"
        )


def _pool(record: Mapping[str, Any], place: str) -> list[int]:
    given = record.get("candidate_pool_ids")
    if given is not None and not _are_rows(given):
        raise RlDataError(f"{place}: candidate_pool_ids is no list of rows")
    return given or []


def _pointer(candidate: Mapping[str, Any], query: int, rules: _Rules) -> list[int]:
    """A candidate's ICDs as rows of the training split, unless its score may not be trusted.

    A `pointer` with a `pointer_global` beside it counts within the pool, whatever else there is: conversions to
    pools of 64 left an old `pointer_pos` in place.
    """
    mode, method = candidate.get("vqa_eval_mode"), candidate.get("gen_method")
    augmented = "aug_round" in candidate or (isinstance(method, str) and method.startswith(("aug_", "sft_")))
    if candidate.get("eval_failed") or mode == "error":
        raise _Rejected(FAILED)
    if augmented and not candidate.get("vqa_pred_answer") and not candidate.get("raw_generation"):
        raise _Rejected(FAILED_SCORED)
    if rules.skip_fallback and mode in ("fallback", "simple_match"):
        raise _Rejected(MATCHED)
    if not rules.accept_unsound:
        if method in _MADE_UP_METHODS or "source_query" in candidate or "source_queries" in candidate:
            raise _Rejected(MADE_UP)
        if candidate.get("vqa_correct") is None:  # one script alone leaves it out (variant G)
            raise _Rejected(ANSWERLESS)
    for name in ("pointer_global", "pointer_pos", "pointer"):
        if candidate.get(name) is not None:
            return _distinct(candidate[name], query)
    raise _Rejected(NO_POINTER)


def _require_local(candidate: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuses a candidate whose places in the pool are not those of its rows of the training split."""
    told, local, pool = (candidate.get("pointer_global"), candidate.get("pointer"), record.get("candidate_pool_ids"))
    if told is None or pool is None or not _are_rows(local):
        return
    if any(not 0 <= place < len(pool) for place in local) or [pool[place] for place in local] != told:
        raise _Rejected(AMBIGUOUS)


def _distinct(pointer: object, query: int) -> list[int]:
    if not _are_rows(pointer):
        raise _Rejected(NO_POINTER)
    if query in pointer:
        raise _Rejected(OWN_QUERY)
    if not pointer or len(set(pointer)) < len(pointer):
        raise _Rejected(REPEATED)
    return pointer


def _scores(candidate: Mapping[str, Any], rules: _Rules, counts: Counter[str]) -> dict[str, Any]:
    """The fields of our own form, with scores that a reward can be made of."""
    kept = {name: candidate[name] for name in FIELDS if name in candidate}
    if not rules.keep_gt_prob and kept.get("vqa_gt_prob") is not None:
        del kept["vqa_gt_prob"]
        counts[GT_PROB_NOTE] += 1
    if not has_valid_scores(kept):
        raise _Rejected(NO_SCORE)
    if kept.get("vqa_correct") is None:
        kept["vqa_correct"] = int(kept["vqa_acc_score"] > 0)
    return kept


def _number(value: object, least: float, most: float) -> float:
    if not is_number(value, least, most):
        raise _Rejected(NO_SCORE)
    return float(value)


def _are_rows(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(row) is int for row in value)  # no bool


def _group(
    question_id: int, query: Mapping[str, Any], pool: tuple[int, ...], candidates: Sequence[Mapping[str, Any]]
) -> QueryGroup:
    image_id, question, answers = (query.get(name) for name in ("image_id", "question", "gt_answers_raw"))
    return QueryGroup(
        question_id=question_id,
        image_id=image_id if is_id(image_id) else -1,
        question=question if isinstance(question, str) else "",
        answers=tuple(a for a in answers if isinstance(a, str)) if isinstance(answers, list) else (),
        pool=pool,
        candidates=tuple(candidates),
    )
