"""RL data as the generation stage finds its own again: how far a journal is whole, what a finished file holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from icdsel.artefacts.lever_plus_rl_data import FAILED
from icdsel.artefacts.rl_data import NO_RECORD, mending, read_group, read_records, require_whole
from icdsel.errors import RlDataError
from icdsel.records import Example, QueryGroup
from icdsel.store.journal import Journal
from icdsel.store.json_reading import is_number


@dataclass(frozen=True)
class Summary:
    """What RL data hold."""

    path: Path
    queries: int
    pointers: int
    failed: int
    correct: float
    """Share of pointers that the VLM answered with soft accuracy above 0."""
    signal: float
    """Share of queries whose pointers differ in accuracy."""

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.pointers} scored pointers of {self.queries} queries, {self.correct:.1%} answered "
            f"correctly, {self.signal:.1%} of the queries have a signal, {self.failed} calls failed"
        )


def summary_of(path: Path) -> Summary:
    """What finished RL data hold.

    Raises:
        RlDataError: They are damaged or were cut, or cannot be read.
    """
    groups, asked = [], 0
    for number, record in enumerate(read_records(path), 1):
        try:
            groups.append(_own_group(record))
            asked += len(record["pointer_candidates"])
        except NO_RECORD as error:
            raise RlDataError(f"{path}, line {number} is damaged: {error}.{mending(path)}") from None
    require_whole(path, len(groups))
    scored = [group.candidates for group in groups]
    total = sum(map(len, scored))
    return Summary(
        path=path,
        queries=len(groups),
        pointers=total,
        failed=asked - total,
        correct=sum(c["vqa_correct"] for group in scored for c in group) / max(1, total),
        signal=sum(len({c["vqa_acc_score"] for c in group}) > 1 for group in scored) / max(1, len(scored)),
    )


def whole_units(journal: Journal, units: Sequence[Sequence[Example]]) -> int:
    """How many of the units the journal begins with; these alone are kept."""
    question_ids = journal.read(question_id_of)
    done = 0
    for unit in units:
        if list(islice(question_ids, len(unit))) != [query.question_id for query in unit]:
            break
        done += 1
    journal.keep(sum(map(len, units[:done])))
    return done


def question_id_of(value: Any) -> int | None:
    """Of a record that was written here; None where it is none."""
    try:
        return _own_group(value).question_id
    except NO_RECORD:
        return None


def _own_group(record: Mapping[str, Any]) -> QueryGroup:
    """The group of a record that was written here, in which nothing is out of order but that calls failed.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: `NO_RECORD`.
    """
    rejected = Counter[str]()
    group = read_group(record, rejected)
    if strange := rejected.keys() - {FAILED}:
        raise ValueError(", ".join(sorted(strange)))
    if not all(is_number(candidate.get("vqa_correct"), 0, 1) for candidate in group.candidates):
        raise ValueError("vqa_correct is missing, or no number")
    return group
