"""Generates RL data: pointers are proposed for queries, the VLM scores them, a line is written for each query.

The queries are scored in units of `UNIT`. The content of a unit depends on nothing but the inputs, so a run that was
interrupted and resumed writes the same bytes. So do shards: each machine scores every N-th unit to a separate file,
and a run without a shard collects these files and scores the missing units.
"""

import glob
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from icdsel.artefacts.checkpoint import foreign_warning, load_policy
from icdsel.artefacts.encoded_candidates import encoded_candidates
from icdsel.artefacts.reference_scores import inputs_have_references
from icdsel.artefacts.rl_data import (
    Summary,
    complete_units,
    metadata_path,
    question_id_of,
    rl_data_path,
    shards_of,
    summary_of,
)
from icdsel.console import logger, note, progress, warn
from icdsel.errors import CheckpointError, RlDataError, RunError
from icdsel.policy.encoding import EncodedCandidates
from icdsel.policy.network import CosineNetwork, PointerNetwork
from icdsel.policy.proposals import Unit as ProposalUnit
from icdsel.policy.proposals import propose, pruned
from icdsel.records import Example, PoolIds, Proposal, QueryGroup, QuestionId, ScoredPointer
from icdsel.retrieval.shared_words import Sharing, WordIndex
from icdsel.settings.loading import Settings
from icdsel.stages.policy_check import candidates_for, require_fitting
from icdsel.stages.queries_to_score import queries_to_score, solved_in
from icdsel.stages.rl_data_inputs import decided_inputs
from icdsel.stages.scored_unit import UNIT, Tally, score_unit
from icdsel.stages.session import Queries, Session
from icdsel.stages.threads import use_threads
from icdsel.store.fingerprints import unchanged
from icdsel.store.journal import complete_lines, journal_of
from icdsel.store.metadata import Inputs, differences, read_metadata
from icdsel.store.reading import why_no_file
from icdsel.store.run_log import history
from icdsel.store.slot import Result, Slot, State
from icdsel.tasks.scoring import Scorer

REMEDY = (
    "Use the previous settings, another place (--results-dir, --output, --rl-data), or --overwrite to rename the file "
    "to a backup."
)


@dataclass(frozen=True)
class Shard:
    """One machine's part of the work: every `of`-th unit, starting with the `number`-th (counted from 1)."""

    number: int
    of: int

    def path(self, complete: Path) -> Path:
        """The file of the shard, beside that of all queries."""
        return complete.with_name(f"{complete.stem}.shard-{self.number}-of-{self.of}.jsonl")


@dataclass(frozen=True)
class Unit:
    """Queries that are scored and written together; `start` is the index of the first one among all queries."""

    start: int
    queries: Sequence[Example]


@dataclass(frozen=True)
class _ProposedUnit:
    """The queries of a unit, with the pool and the proposals of each."""

    queries: Sequence[Example]
    pools: Sequence[PoolIds]
    proposals: Sequence[Sequence[Proposal]]


@history()
def generate(
    settings: Settings,
    output: Path | None = None,
    overwrite: bool = False,
    session: Session | None = None,
    shard: Shard | None = None,
    unsolved: Sequence[Path] = (),
) -> Summary:
    """Generates RL data, or a shard of them; resumes an interrupted run, and reuses a complete file.

    Args:
        settings: Everything that decides the content.
        output: The file to write; by default named after the settings.
        overwrite: Rename a file that was created with different settings to a backup.
        session: An open session, if there is one.
        shard: Which part to score; None for all queries.
        unsolved: RL data; only those queries are scored that have no right pointer in any of them.

    Raises:
        RlDataError: The file was created with different settings and `overwrite` is False, or another process is
            writing it.
        CallsError: Too many VLM calls failed.
        UserError: Dataset, model or checkpoint are missing or do not fit, or `--references none` forbids what the
            reward needs.
    """
    target = output or rl_data_path(settings)
    if target.suffix != ".jsonl":  # the names of metadata and log are derived from it
        raise RlDataError(f"RL data are JSON lines: the name of --output {target} must end in .jsonl")
    init = settings.proposals.init
    if init and not init.is_file():
        raise CheckpointError(f"--init {init} {why_no_file(init)}")
    session = session or Session(settings)
    path = shard.path(target) if shard else target
    with unchanged(init, *unsolved):
        solved = solved_in(unsolved) if unsolved else None
        proposer = load_policy(init) if init else None
        if init and (foreign := foreign_warning(init)):
            warn(foreign)
        if init:
            require_fitting(init, session, same_data=False)
        settings, inputs = decided_inputs(
            settings, session, path, complete=target, unsolved=unsolved, overwrite=overwrite
        )
    session = session.under(settings)
    with rl_data_slot(path, inputs).open(overwrite) as result:
        if not result.complete:
            scored = {} if shard else scored_in_shards(target, inputs)
            _ = session.vlm  # if it cannot be loaded, the command ends before anything is renamed or written
            _score(session, solved, proposer, shard, scored, result)
        summary = summary_of(path)
        logger.debug(str(summary))
    return summary


def rl_data_slot(path: Path, inputs: Inputs) -> Slot:
    """The place of RL data."""
    return Slot(path, inputs, path.exists, RlDataError, REMEDY)


def unscored(session: Session, overwrite: bool = False) -> int:
    """How many queries `generate` would score with the settings of the session; writes nothing.

    Raises:
        RlDataError: The file was created with different settings and `overwrite` is False.
    """
    path = rl_data_path(session.settings)
    _, inputs = decided_inputs(session.settings, session, path, overwrite=overwrite)
    slot = rl_data_slot(path, inputs)
    state = slot.peek(overwrite)
    if state is State.COMPLETE:
        return 0
    units = [unit.queries for unit in _units(queries_to_score(session))]
    done = complete_units(slot.journal(), units) if state is State.STARTED else 0
    scored = scored_in_shards(path, inputs)
    return sum(len(unit) for unit in units[done:] if not all(query.question_id in scored for query in unit))


def scored_in_shards(complete: Path, inputs: Inputs) -> dict[QuestionId, str]:
    """Lines by question_id of all shards with the same inputs, complete or not."""
    lines: dict[QuestionId, str] = {}
    for path in sorted(complete.parent.glob(f"{glob.escape(complete.stem)}.shard-*-of-*.jsonl")):
        if not metadata_path(path).exists():
            warn(f"{path} is skipped: its metadata, {metadata_path(path).name}, are not beside it")
    for path in shards_of(complete):
        try:
            different = differences(read_metadata(metadata_path(path)).inputs, inputs)
        except RunError as error:
            warn(f"{path} is skipped, its queries are scored again: {error}")
            continue
        if different:
            note(f"{path} is skipped, it was created with different settings: {different[0]}")
            continue
        for file in (path, journal_of(path)):
            for line, value in complete_lines(file, RlDataError):
                if (question_id := question_id_of(value)) is not None:
                    lines[question_id] = line.decode().rstrip("\n")
    if lines:
        note(f"{len(lines)} queries were scored in shards")
    return lines


def _score(
    session: Session,
    solved: Set[QuestionId] | None,
    proposer: PointerNetwork | None,
    shard: Shard | None,
    scored: dict[QuestionId, str],
    result: Result,
) -> None:
    """Scores the queries that are not `solved`, except for those that were `scored` already, by question_id."""
    settings = session.settings
    threads = use_threads(settings, result)
    wanted = queries_to_score(session, solved)
    queries = session.queries(wanted, settings.proposals.query_split, settings.proposals.shots)
    proposals = _Proposals(session, queries, proposer)
    units = _units(queries.examples)
    if shard:
        units = units[shard.number - 1 :: shard.of]
    count = sum(len(unit.queries) for unit in units)
    result.begin(settings.model_dump(mode="json"), session.vlm.device, threads, queries=count)

    done = complete_units(result.journal, [unit.queries for unit in units])
    if not inputs_have_references(result.slot.inputs):
        note("Reference answers are not scored: nothing reads their probabilities (--references)")
    resumed = sum(len(unit.queries) for unit in units[:done])
    if resumed:
        note(f"resuming after {resumed} queries of an interrupted run")
    scorer = session.scorer(settings.proposals.query_split)
    started, new, tally = time.monotonic(), 0, Tally(scorer.task)
    asked_before = session.vlm.calls.requests
    with progress("Scoring queries", count) as advance:
        advance(resumed)

        def proposed(unit: Unit) -> _ProposedUnit | None:
            known = all(query.question_id in scored for query in unit.queries)
            return None if known else proposals.of(unit)

        def groups_of(unit: _ProposedUnit | None) -> list[QueryGroup] | None:
            return None if unit is None else _scored(session, scorer, unit, lambda made: advance(0, tally(made)))

        todo = units[done:]
        with session.in_order(groups_of, map(proposed, todo)) as results:
            for unit, groups in zip(todo, results, strict=True):
                if groups is None:
                    result.journal.append_lines(scored[query.question_id] for query in unit.queries)
                else:
                    result.journal.append(group.to_json() for group in groups)
                    new += len(unit.queries)
                advance(len(unit.queries))
    asked = session.vlm.calls.requests - asked_before
    # Estimates of durations count what the VLM answered: its share of the queries.
    work = {"seconds": time.monotonic() - started, "count": round(new * asked / max(1, tally.requests))}
    result.commit(work={"scoring": work} if asked else None)
    if asked < tally.requests:
        note(f"{tally.requests - asked} of {tally.requests} answers are reused from the same prompts before")
    if advice := session.advice():
        note(advice)
    if tally.none_correct and (warning := session.cut_warning()):
        warn(warning)


def _scored(
    session: Session, scorer: Scorer, unit: _ProposedUnit, on_scored: Callable[[Sequence[ScoredPointer]], None]
) -> list[QueryGroup]:
    """The groups of a unit: what was proposed, and the pruned pointers that its answers call for."""
    groups = score_unit(session, unit.queries, unit.pools, unit.proposals, scorer, on_scored)
    settings = session.settings.proposals
    shorter = [pruned(group, settings.prune, max(settings.min_shots, 1)) for group in groups]
    if not any(shorter):
        return groups
    more = score_unit(session, unit.queries, unit.pools, shorter, scorer, on_scored)
    return [
        replace(group, candidates=group.candidates + own.candidates) for group, own in zip(groups, more, strict=True)
    ]


class _Proposals:
    """Proposes pointers for units of queries.

    Args:
        session: The training split.
        queries: All queries.
        proposer: The network that beams and samples follow; None for the cosine of the embeddings.

    Raises:
        CheckpointError: The network was trained on embeddings of another width.
    """

    def __init__(self, session: Session, queries: Queries, proposer: PointerNetwork | None) -> None:
        self._session, self._queries = session, queries
        self._network = (proposer or CosineNetwork(session.embeddings.shape[1])).eval()
        self._table = candidates_for(self._network, session, session.settings.proposals.init)  # (N, d) or (N, d + a)
        wanted = session.settings.proposals.answers
        self._words = WordIndex(example.answer for example in session.train) if wanted else None
        self._everyone: list[QuestionId] = []
        self._pool: EncodedCandidates | None = None
        if queries.pools.shared:
            self._everyone = [example.question_id for example in session.train]
            self._pool = encoded_candidates(self._network, self._table, session.settings.dataset_dir / "cache")

    def of(self, unit: Unit) -> _ProposedUnit:
        """The pool of each query of a unit, and the proposals for it."""
        start, end = unit.start, unit.start + len(unit.queries)
        pools, settings = self._queries.pools, self._session.settings
        if pools.shared:
            ids = [self._everyone] * len(unit.queries)
            hidden = [self._ids(sorted(rows)) for rows in pools.excluded[start:end]]
            described = [PoolIds(None, tuple(excluded)) for excluded in hidden]
        else:
            ids = [self._ids(pools[q]) for q in range(start, end)]
            described = [PoolIds(tuple(pool)) for pool in ids]
        rows, mask = pools.batch(start, len(unit.queries))  # (B, K) or (1, N), (B, K)
        proposing = ProposalUnit(
            self._queries.embeddings[start:end],
            self._table[None] if pools.shared else self._table[rows],
            ids,
            self._network,
            settings.proposals,
            f"proposals-{settings.data.seed}-{unit.queries[0].question_id}",
            None if mask.all() else mask,
            self._pool,
            () if self._words is None else self._sharing(self._words, unit),
        )
        return _ProposedUnit(unit.queries, described, propose(proposing))

    def _sharing(self, words: WordIndex, unit: Unit) -> list[Sharing]:
        """The candidates that share words with each query's answer, as positions in its pool."""
        pools, found = self._queries.pools, list[Sharing]()
        for q, query in enumerate(unit.queries, unit.start):
            if pools.shared:
                found.append(words.sharing(query.answer))
                continue
            place = {row: k for k, row in enumerate(pools[q])}
            whole, each = words.sharing(query.answer, place)
            found.append(Sharing([place[row] for row in whole], [[place[row] for row in own] for own in each]))
        return found

    def _ids(self, rows: Iterable[int]) -> list[QuestionId]:
        return [self._session.train[row].question_id for row in rows]


def _units(queries: Sequence[Example]) -> list[Unit]:
    return [Unit(start, queries[start : start + UNIT]) for start in range(0, len(queries), UNIT)]
