"""RL data: for each query its pool, and candidate pointers with what the VLM answered. One JSON line a query."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from icdsel.artefacts.candidates import has_valid_scores
from icdsel.artefacts.lever_plus_rl_data import FAILED, is_lever_plus, read_lever_plus
from icdsel.errors import RlDataError, RunError
from icdsel.records import QueryGroup
from icdsel.settings.loading import Settings
from icdsel.store.journal import journal_of
from icdsel.store.json_reading import are_ids, parsed
from icdsel.store.metadata import read_metadata
from icdsel.store.reading import read_bytes_lines

NO_RECORD = (KeyError, TypeError, ValueError, AttributeError)
"""What `read_group` raises where something is no record of RL data, or its pool is none."""


@dataclass(frozen=True)
class RlData:
    """What was read: the groups, and how many candidates were left out for which reason."""

    groups: tuple[QueryGroup, ...]
    rejected: Mapping[str, int]


def rl_data_path(settings: Settings) -> Path:
    """Where the RL data of these settings lie unless a file is named."""
    split = settings.proposals.query_split
    suffix = "" if split == "train" else f"_{split}"
    return settings.dataset_dir / "generated_data" / f"rl_data_{settings.pair_name}{suffix}.jsonl"


def metadata_path(path: Path) -> Path:
    """The side file with settings and identity."""
    return path.with_suffix(".meta.json")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file, each a mapping."""
    if not path.is_file():
        found = sorted(other.name for other in path.parent.glob("rl_data_*.json*")) if path.parent.is_dir() else []
        there = f"{path.parent} holds {', '.join(found)}" if found else f"{path.parent} holds no RL data"
        raise RlDataError(f"{path} does not exist; {there}. Make it with `icdsel gen-rl-data`.")
    try:
        for number, line in enumerate(read_bytes_lines(path), 1):
            if not line.strip(b" \t\r\n"):  # what JSON takes for space
                continue
            try:
                record = parsed(line)
            except ValueError as error:
                # Without the place that is told of it: it is one within the line.
                reason = error.msg.removesuffix(" starting at") if isinstance(error, JSONDecodeError) else error
                raise RlDataError(f"{path}, line {number} is damaged: {reason}.{mending(path)}") from None
            if not isinstance(record, dict):
                raise RlDataError(f"{path}, line {number}: not an object")
            yield record
    except OSError as error:
        raise RlDataError(f"{path} cannot be read: {error.strerror}") from None


def require_whole(path: Path, queries: int) -> None:
    """Refuses a file that does not hold just the queries which its side file tells of: it was cut, say.

    Raises:
        RlDataError: It says how many.
    """
    if (told := told_queries(path)) not in (None, queries):
        how = "it was cut" if queries < told else "some stand twice"
        raise RlDataError(f"{path} holds {queries} of {told} queries: {how}.{mending(path)}")


def told_queries(path: Path) -> int | None:
    """How many queries a file is to hold, by its side file; None where that does not tell."""
    with suppress(RunError):
        told: int | None = read_metadata(metadata_path(path)).queries
        return told
    return None


def mending(path: Path) -> str:
    """How to keep what is whole of damaged RL data of one's own."""
    if not metadata_path(path).exists():
        return ""
    return f" Rename it to {journal_of(path).name}, and the command that made it goes on after the lines before that."


def read_rl_data(
    path: str | Path,
    question_ids: Sequence[int] | None = None,
    *,
    skip_fallback: bool = True,
    accept_unsound: bool = False,
) -> RlData:
    """Reads RL data, ours or Lever-Plus's, refusing what cannot be trained on.

    Candidates that failed, or whose pointer does not lie in the pool or repeats an ICD, are rejected and
    counted by reason; of Lever-Plus's data those too that were made up (`icdsel.artefacts.lever_plus_rl_data`).

    Args:
        path: The file.
        question_ids: Those of the training split in order, which Lever-Plus's data refer to by rank; without
            them the ranks themselves serve.
        skip_fallback: Reject candidates of Lever-Plus that were scored by matching strings.
        accept_unsound: Take data of Lever-Plus that were made up or asked without the demonstrations' answers.

    Raises:
        RlDataError: the file is missing, empty, damaged, or leaves nothing to train on.
    """
    path = Path(path)
    if path.is_file() and is_lever_plus(path):
        theirs, left_out = read_lever_plus(
            path, question_ids, skip_fallback=skip_fallback, accept_unsound=accept_unsound
        )
        return RlData(tuple(theirs), left_out)
    groups, rejected = [], Counter[str]()
    for number, record in enumerate(read_records(path), 1):
        try:
            group = read_group(record, rejected)
        except NO_RECORD as error:
            raise RlDataError(f"{path}, line {number}: {type(error).__name__} {error}: no RL data of icdsel") from None
        groups.append(group)
    require_whole(path, len(groups))
    if not groups:
        raise RlDataError(f"{path} is empty. Move it away and make it anew: `icdsel gen-rl-data`.")
    kept = tuple(group for group in groups if group.candidates)
    if not kept:
        raise RlDataError(f"{path}: no candidate can be used ({dict(rejected)})")
    return RlData(kept, dict(rejected))


def read_group(record: Mapping[str, Any], rejected: Counter[str]) -> QueryGroup:
    """The group of one record, with the candidates that can be trained on; counts the others by reason.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: `NO_RECORD`.
    """
    told, excluded = record["candidate_pool_ids"], record.get("excluded_ids", [])
    question_id, image_id, question, answers = (record[n] for n in ("question_id", "image_id", "question", "answers"))
    if not are_ids([question_id, image_id]) or not are_ids(excluded) or not (told == "all" or are_ids(told)):
        raise ValueError("an id of it, or of its pool, is no integer of 64 bits")
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in (question, *answers)):
        raise TypeError("its question is no text, or its answers are none")
    pool = None if told == "all" else tuple(told)
    held, hidden = frozenset(pool or ()), frozenset(excluded)
    if pool is not None and (len(held) < len(pool) or question_id in held):
        raise ValueError("its pool holds an example twice, or the query itself")
    kept = []
    for candidate in record["pointer_candidates"]:
        pointer = candidate["pointer"]
        if not are_ids(pointer):
            raise ValueError("a pointer of it is no list of integers of 64 bits")
        if candidate.get("eval_failed"):
            rejected[FAILED] += 1
        elif not hidden.isdisjoint(pointer) if pool is None else not held.issuperset(pointer):
            rejected["an ICD is not in the pool"] += 1
        elif len(set(pointer)) < len(pointer) or not pointer:
            rejected["an ICD stands twice, or none at all"] += 1
        elif not has_valid_scores(candidate):
            rejected["a score is no number, or out of range"] += 1
        else:
            kept.append(candidate)
    return QueryGroup(
        question_id=question_id,
        image_id=image_id,
        question=question,
        answers=tuple(answers),
        pool=pool,
        candidates=tuple(kept),
        excluded=tuple(excluded),
    )
