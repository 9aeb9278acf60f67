"""RL data: one JSON line for each query, a `QueryGroup`. Files are read, validated, summarised and merged here.

Generation writes a journal in the same form, and reads its complete part back to resume.
"""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from icdsel.artefacts.lever_plus_rl_data import FAILED, is_lever_plus, read_lever_plus
from icdsel.artefacts.pool_names import has_these_pools, pool_parts
from icdsel.errors import RlDataError, RunError
from icdsel.records import Example, QueryGroup, QuestionId, Rejected, id_order
from icdsel.records.query_group import GROUP_KEYS
from icdsel.records.scored_pointer import BAD_SCORE
from icdsel.settings.loading import Settings
from icdsel.store.journal import Journal, journal_of
from icdsel.store.json_reading import parsed
from icdsel.store.metadata import read_metadata
from icdsel.store.reading import read_bytes_lines
from icdsel.tasks.base import TASKS, bounds_of

_KEY = re.compile(rb'"(?:%s)"\s*:' % "|".join(GROUP_KEYS).encode())  # with the colon: an answer may be the same text


def rl_data_path(settings: Settings) -> Path:
    """The default file of RL data under these settings, named after sampler, model, pools and split.

    Files of earlier versions, which were not named after their pools, are still found.
    """
    split = settings.proposals.query_split
    end = [] if split == "train" else [split]
    folder, start = settings.dataset_dir / "generated_data", f"rl_data_{settings.pair_name}"
    path, earlier = (folder / f"{'_'.join([start, *parts, *end])}.jsonl" for parts in (pool_parts(settings), ()))
    if path != earlier and not metadata_path(path).exists() and has_these_pools(metadata_path(earlier), settings):
        return earlier
    return path


def metadata_path(path: Path) -> Path:
    """The metadata file of RL data."""
    return path.with_suffix(".meta.json")


def shards_of(complete: Path) -> list[Path]:
    """The shards of RL data that have metadata, complete or not."""
    metadata = complete.parent.glob(f"{glob.escape(complete.stem)}.shard-*-of-*.meta.json")
    return sorted(path.with_name(path.name.removesuffix(".meta.json") + ".jsonl") for path in metadata)


def has_rl_data(start: bytes) -> bool:
    """Whether a file that starts like this holds RL data of icdsel."""
    return _KEY.search(start) is not None


# --- reading ----------------------------------------------------------------------------------------------


def parse_group(value: Any) -> tuple[QueryGroup, list[Rejected]]:
    """The group of a line, with its failed calls, and the rejected candidates.

    Raises:
        ValueError: It is not a line of RL data.
    """
    return QueryGroup.from_json(value, bounds_of)


def read_groups(path: Path, strict: bool = False) -> Iterator[tuple[QueryGroup, list[Rejected]]]:
    """The groups of a file of icdsel, with their failed calls, and the rejected candidates of each.

    Args:
        path: The file.
        strict: Raise an error for a rejected candidate.

    Raises:
        RlDataError: The file is missing, damaged, or holds more or fewer queries than its metadata state.
    """
    queries = 0
    for number, value in _read_values(path):
        place = f"{path}, line {number}"
        try:
            group, rejected = parse_group(value)
        except ValueError as error:
            raise RlDataError(f"{place}: {error}: not RL data of icdsel.{recovery(path)}") from None
        if strict and rejected:
            remedy = f"{recovery(path)} `icdsel check {path}` lists everything that is wrong."
            raise RlDataError(f"{place}: {rejected[0].reason}.{remedy}")
        queries += 1
        yield group, rejected
    if (expected := expected_queries(path)) not in (None, queries):
        how = "it was cut" if queries < expected else "some are repeated"
        raise RlDataError(f"{path} holds {queries} of {expected} queries: {how}.{recovery(path)}")


def _read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """The JSON value of each line that is not blank, with the line's number."""
    if not path.is_file():
        found = sorted(other.name for other in path.parent.glob("rl_data_*.json*")) if path.parent.is_dir() else []
        there = f"{path.parent} holds {', '.join(found) or 'no RL data'}"
        raise RlDataError(f"{path} does not exist; {there}. Create it with `icdsel gen-rl-data`.")
    try:
        for number, line in enumerate(read_bytes_lines(path), 1):
            if not line.strip(b" \t\r\n"):  # the whitespace of JSON
                continue
            try:
                value = parsed(line)
            except ValueError as error:
                # Without the position in the error: it counts within the line.
                reason = error.msg.removesuffix(" starting at") if isinstance(error, JSONDecodeError) else error
                raise RlDataError(f"{path}, line {number} is damaged: {reason}.{recovery(path)}") from None
            yield number, value
    except OSError as error:
        raise RlDataError(f"{path} cannot be read: {error.strerror}") from None


def expected_queries(path: Path) -> int | None:
    """How many queries a file should hold according to its metadata; None if unknown."""
    with suppress(RunError):
        return read_metadata(metadata_path(path)).queries
    return None


def recovery(path: Path) -> str:
    """How to keep the valid part of a damaged file; empty unless icdsel generated it here."""
    if not metadata_path(path).exists():
        return ""
    return f" Rename it to {journal_of(path).name}: the command that created it resumes after the lines before that."


@dataclass(frozen=True)
class RlData:
    """The groups of a file, and how many candidates were left out for which reason."""

    groups: tuple[QueryGroup, ...]
    rejected: Mapping[str, int]


def read_rl_data(
    path: str | Path,
    question_ids: Sequence[QuestionId] | None = None,
    *,
    skip_fallback: bool = True,
    accept_unsound: bool = False,
) -> RlData:
    """Reads RL data of icdsel or Lever-Plus, without the candidates that cannot be trained on.

    Left out and counted are failed calls, and candidates whose pointer is not within the pool or repeats an ICD; of
    Lever-Plus's data also those whose scores are not its pointers' own (`icdsel.artefacts.lever_plus_rl_data`).

    Args:
        path: The file.
        question_ids: Those of the training split in order, by whose ranks Lever-Plus's data refer to examples.
            Without them the ranks serve as ids.
        skip_fallback: Leave out candidates of Lever-Plus that were scored by matching strings.
        accept_unsound: Keep data of Lever-Plus that were made up, or generated without the demonstrations' answers.

    Raises:
        RlDataError: The file is missing, empty or damaged, or no candidate is left.
    """
    path = Path(path)
    if path.is_file() and is_lever_plus(path):
        theirs, left_out = read_lever_plus(
            path, question_ids, skip_fallback=skip_fallback, accept_unsound=accept_unsound
        )
        return RlData(tuple(theirs), left_out)
    groups, rejected = [], Counter[str]()
    for group, unusable in read_groups(path):
        rejected.update(reason for reason, _ in unusable)
        rejected[FAILED] += group.failed
        groups.append(group.without_failed())
    if not groups:
        raise RlDataError(f"{path} is empty. Move it away and generate it again: `icdsel gen-rl-data`.")
    kept, rejected = tuple(group for group in groups if group.candidates), +rejected
    if not kept:
        raise RlDataError(f"{path}: no candidate can be used ({dict(rejected)})")
    return RlData(kept, dict(rejected))


def merge(files: Iterable[Sequence[QueryGroup]]) -> list[QueryGroup]:
    """The groups of several files, sorted by question_id; pointers of the same query are united.

    Of a pointer in several files the first is kept.

    Raises:
        RlDataError: A query has different pools in two files.
    """
    merged: dict[QuestionId, QueryGroup] = {}
    for group in (group for groups in files for group in groups):
        known = merged.get(group.question_id)
        if known is None:
            merged[group.question_id] = group
            continue
        if known.derived and group.derived and known.pool and group.pool:
            known = replace(known, pool=tuple(sorted({*known.pool, *group.pool}, key=id_order)))
        elif (known.pool, known.excluded) != (group.pool, group.excluded):
            raise RlDataError(
                f"query {group.question_id} has different candidate pools in the RL data files: they were created "
                f"with another sampler, pool size or seed"
            )
        pointers = {candidate.pointer for candidate in known.candidates}
        more = tuple(candidate for candidate in group.candidates if candidate.pointer not in pointers)
        merged[group.question_id] = replace(known, candidates=known.candidates + more)
    return [merged[question_id] for question_id in sorted(merged, key=id_order)]


# --- files of generation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a file of RL data holds.

    Attributes:
        path: The file.
        queries: How many queries.
        pointers: How many scored pointers.
        failed: How many VLM calls failed.
        quality: How good the pointers are, as text.
        signal: Share of the queries whose pointers differ in score.
    """

    path: Path
    queries: int
    pointers: int
    failed: int
    quality: str
    signal: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.pointers} scored pointers of {self.queries} queries, {self.quality}, "
            f"{self.signal:.1%} of the queries have a signal, {self.failed} calls failed"
        )


def metric_of(path: Path) -> str:
    """The metric that RL data were scored by; "" if their metadata do not tell it."""
    with suppress(RunError):
        metric = read_metadata(metadata_path(path)).inputs.get("data.metric")
        return metric if isinstance(metric, str) else ""
    return ""


def summary_of(path: Path) -> Summary:
    """Summarises a finished file of generation.

    Raises:
        RlDataError: It is damaged or incomplete, or cannot be read.
    """
    groups = [group for group, _ in read_groups(path, strict=True)]
    if any(map(_lacks_correctness, groups)):
        raise RlDataError(f"{path} is damaged: {BAD_SCORE}.{recovery(path)}")
    scored = [group.without_failed().candidates for group in groups]
    pointers = [candidate for candidates in scored for candidate in candidates]
    quality = "no pointer scored"
    if pointers:
        task = TASKS.named(groups[0].task).named_by(metric_of(path))
        quality = f"mean {task.short_name} {task.text(sum(p.score or 0 for p in pointers) / len(pointers))}"
        if task.correctness is not None:
            quality = f"{sum(p.correct or 0 for p in pointers) / len(pointers):.1%} answered correctly"
    return Summary(
        path=path,
        queries=len(groups),
        pointers=len(pointers),
        failed=sum(group.failed for group in groups),
        quality=quality,
        signal=sum(len({c.score for c in candidates}) > 1 for candidates in scored) / max(1, len(scored)),
    )


def complete_units(journal: Journal, units: Sequence[Sequence[Example]]) -> int:
    """How many complete units a journal begins with; only these are kept."""
    question_ids = journal.read(question_id_of)
    done = 0
    for unit in units:
        if list(islice(question_ids, len(unit))) != [query.question_id for query in unit]:
            break
        done += 1
    journal.keep(sum(map(len, units[:done])))
    return done


def question_id_of(value: Any) -> QuestionId | None:
    """The query of a line that generation wrote; None if the line is not one, or is damaged."""
    try:
        group, rejected = parse_group(value)
    except ValueError:
        return None
    return None if rejected or _lacks_correctness(group) else group.question_id


def _lacks_correctness(group: QueryGroup) -> bool:
    """Whether a candidate does not say if it is correct although its task defines that: generation always does."""
    defined = TASKS.named(group.task).correctness is not None
    return defined and any(candidate.error is None and candidate.correct is None for candidate in group.candidates)
