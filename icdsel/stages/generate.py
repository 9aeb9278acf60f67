"""The generation stage: pointers are proposed for queries, the VLM scores each, RL data are written.

Written in units of `UNIT` queries to a journal, `NAME.jsonl.part`, that becomes `NAME.jsonl` when it is whole.
A unit's content depends on nothing but the settings, so an interrupted run that goes on writes the same bytes, and
so do shards: every machine scores each N-th unit to a file of its own, and a run without a shard puts together what
is there and scores what is not.
"""

import glob
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from icdsel.artefacts.candidates import SCORER_VERSION
from icdsel.artefacts.checkpoint import load_policy, require_width
from icdsel.artefacts.rl_data import metadata_path, rl_data_path
from icdsel.artefacts.rl_journal import Summary, question_id_of, summary_of, whole_units
from icdsel.console import note, progress, warn
from icdsel.data.datasets import Split
from icdsel.errors import CheckpointError, RlDataError, RunError
from icdsel.policy.network import CosineNetwork, PointerNetwork
from icdsel.policy.proposals import propose
from icdsel.records import Example
from icdsel.retrieval.lever_plus_pools import anchors
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.stages.scored_unit import UNIT, Tally, score_unit
from icdsel.stages.session import Queries, Session, open_session
from icdsel.store.files import append_lines, cut, journal_of, move, remove_leftovers
from icdsel.store.fingerprints import fingerprint_file, unchanged
from icdsel.store.json_reading import whole_lines
from icdsel.store.lock import locked
from icdsel.store.metadata import Identity, differences, read_metadata, update_metadata, write_metadata
from icdsel.store.reading import why_no_file
from icdsel.store.reuse import Result
from icdsel.store.run_log import log_only, log_to, logged

REMEDY = "Use the old settings, --overwrite to move the file aside, or another file (--output, --rl-data)."


@dataclass(frozen=True)
class Shard:
    """One machine's part of the work: every `of`-th unit, from the `number`-th on (from 1)."""

    number: int
    of: int

    def path(self, whole: Path) -> Path:
        """The shard's file, beside the whole one."""
        return whole.with_name(f"{whole.stem}.shard-{self.number}-of-{self.of}.jsonl")


def rl_data_inputs(settings: Settings, session: Session) -> Identity:
    """Everything that decides the content of the RL data."""
    init, split = settings.proposals.init, settings.proposals.query_split
    inputs = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init"])
    inputs |= session.identity | {"scorer": SCORER_VERSION}
    if split != "train":
        inputs["queries"] = session.fingerprint(split)
    return inputs | {"init": fingerprint_file(init) if init else None}


@logged
def generate(
    settings: Settings,
    output: Path | None = None,
    overwrite: bool = False,
    session: Session | None = None,
    shard: Shard | None = None,
) -> Summary:
    """Makes the RL data of `settings`, or a shard of them, going on where an interrupted run stopped.

    A file that was made of the same things stays as it is. `overwrite` moves one that was not aside.

    Raises:
        RlDataError: the file was made under other settings and `overwrite` is False; another process writes it.
        CallsError: too many VLM calls failed.
        UserError: dataset, model or checkpoint are missing or unfit.
    """
    whole = output or rl_data_path(settings)
    if whole.suffix != ".jsonl":  # the names of its side file and log are made of its own
        raise RlDataError(f"RL data are JSON lines: let the name of --output {whole} end in .jsonl")
    path = shard.path(whole) if shard else whole
    part = journal_of(path)
    init = settings.proposals.init
    if init and not init.is_file():
        raise CheckpointError(f"--init {init} {why_no_file(init)}")
    session = session or open_session(settings)
    with unchanged(init):
        network = proposer(settings, session.embeddings.shape[1])
        inputs = rl_data_inputs(settings, session)
    result = _result(path, inputs)
    if result.stands(overwrite) and path.exists():
        return summary_of(path)
    with locked(path, str(path), RlDataError):
        log = path.with_suffix(".log")
        result.claim(overwrite, along=[log])
        if path.exists():  # another process has just finished it
            return summary_of(path)
        remove_leftovers(path, metadata_path(path))
        queries = session.queries(_queries(session), settings.proposals.query_split, settings.proposals.shots)
        units = _units(queries.examples)[shard.number - 1 :: shard.of] if shard else _units(queries.examples)
        count = sum(map(len, units))
        write_metadata(
            metadata_path(path), settings.model_dump(mode="json"), inputs, str(session.vlm.device), queries=count
        )
        log_to(log, str(session.vlm.device))
        scored = {} if shard else _scored_in_shards(whole, inputs)
        started = time.monotonic()
        done = _write_units(session, queries, network, part, shard, scored)
        if done:
            update_metadata(
                metadata_path(path), work={"scoring": {"seconds": time.monotonic() - started, "count": done}}
            )
        move(part, path)  # the last that is written: who finds it has nothing to tidy
        if told := session.vlm.advice():
            note(told)
        summary = summary_of(path)
        log_only(str(summary))
        return summary


def unscored(session: Session, overwrite: bool = False) -> int:
    """How many queries `generate` would score under the session' settings; touches nothing.

    Raises:
        RlDataError: the file was made under other settings and `overwrite` is False.
    """
    path = rl_data_path(session.settings)
    part = journal_of(path)
    inputs = rl_data_inputs(session.settings, session)
    there = _result(path, inputs).stands(overwrite)
    if there and path.exists():
        return 0
    units = _units(_queries(session))
    scored = _scored_in_shards(path, inputs)
    todo = units[whole_units(part, units)[0] if there else 0 :]
    return sum(len(unit) for unit in todo if not all(example.question_id in scored for example in unit))


def _result(path: Path, inputs: Identity) -> Result:
    return Result(str(path), (path, journal_of(path)), metadata_path(path), inputs, RlDataError, REMEDY)


def _queries(session: Session) -> list[Example]:
    """The queries to score.

    From the training split they are drawn, as the original's anchors are (specification §3); from another split
    they are the first, as `infer` takes them.
    """
    wanted = session.settings.proposals.queries
    split = session.split(session.settings.proposals.query_split)
    assert wanted is not None  # filled in with the dataset
    if wanted > len(split):
        note(f"{wanted} queries were asked for, {split.name} has {len(split)}: taking all")
    wanted = min(wanted, len(split))
    if split is not session.train:
        return list(split[:wanted])
    return [split[row] for row in anchors(len(split), wanted, session.settings.data.seed)]


def proposer(settings: Settings, d_model: int) -> PointerNetwork:
    """The network that beams and samples follow.

    Raises:
        CheckpointError: `--init` was trained on embeddings of another width.
    """
    init = settings.proposals.init
    network = load_policy(init) if init else CosineNetwork(d_model)
    require_width(network, d_model, init)
    return network.eval()


def _scored_in_shards(whole: Path, inputs: Identity) -> dict[int, str]:
    """Lines by question_id of all shards of the same data, finished or not."""
    lines: dict[int, str] = {}
    for path in sorted(whole.parent.glob(f"{glob.escape(whole.stem)}.shard-*-of-*.jsonl")):
        if not metadata_path(path).exists():
            warn(f"{path} is left alone: how it was made stands in {metadata_path(path).name}, which is not beside it")
    for side in sorted(whole.parent.glob(f"{glob.escape(whole.stem)}.shard-*-of-*.meta.json")):
        path = side.with_name(side.name.removesuffix(".meta.json") + ".jsonl")
        try:
            told = differences(read_metadata(side)["identity"], inputs)
        except RunError as error:
            warn(f"{path} is left alone, its queries are scored anew: {error}")
            continue
        if told:
            note(f"{path} is left alone, it was made under other settings: {told[0]}")
            continue
        for file in (path, journal_of(path)):
            if file.exists():
                for line, value in whole_lines(file, RlDataError):
                    if (question_id := question_id_of(value)) is not None:
                        lines[question_id] = line.decode().rstrip("\n")
    if lines:
        note(f"{len(lines)} queries were scored in shards")
    return lines


def _write_units(
    session: Session,
    queries: Queries,
    network: PointerNetwork,
    part: Path,
    shard: Shard | None,
    scored: Mapping[int, str],
) -> int:
    """Completes the journal; returns how many queries were scored for it now."""
    settings, train = session.settings, session.train
    examples = queries.examples
    units = _units(examples)
    numbers = range(len(units))[shard.number - 1 :: shard.of] if shard else range(len(units))
    done, size = whole_units(part, [units[number] for number in numbers])
    cut(part, size)
    count = 0
    pools = queries.pools
    everyone = [example.question_id for example in train] if pools.shared else []
    before = sum(len(units[number]) for number in numbers[:done])
    if before:
        note(f"going on after {before} queries of an interrupted run")
    tally = Tally()
    with progress("Scoring queries", sum(len(units[number]) for number in numbers)) as advance:
        advance(before)
        for number in numbers[done:]:
            unit, at = units[number], number * UNIT
            if all(example.question_id in scored for example in unit):
                append_lines(part, [scored[example.question_id] for example in unit])
                advance(len(unit))
                continue
            if pools.shared:
                ids, hidden = [everyone] * len(unit), pools.hidden[at : at + len(unit)]
                told = [{"candidate_pool_ids": "all", "excluded_ids": _ids(train, sorted(h))} for h in hidden]
            else:
                ids = [_ids(train, pools[q]) for q in range(at, at + len(unit))]
                told = [{"candidate_pool_ids": pool} for pool in ids]
            rows, mask = pools.batch(at, len(unit))  # (B, K) or (1, N), (B, K)
            seed = f"proposals-{settings.data.seed}-{unit[0].question_id}"
            proposals = propose(
                queries.embeddings[at : at + len(unit)],
                session.embeddings[None] if pools.shared else session.embeddings[rows],
                ids,
                network,
                settings.proposals,
                seed,
                None if mask.all() else mask,
            )
            groups = score_unit(session, unit, told, proposals, lambda made: advance(0, tally(made)))
            append_lines(part, [json.dumps(group, ensure_ascii=False) for group in groups])
            advance(len(unit))
            count += len(unit)
    return count


def _units(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[at : at + UNIT] for at in range(0, len(examples), UNIT)]


def _ids(train: Split, rows: Iterable[int]) -> list[int]:
    return [train[row].question_id for row in rows]
