"""The generation stage: pointers are proposed for queries, the VLM scores each, RL data are written.

Written in units of `UNIT` queries to a journal, `NAME.jsonl.part`, that becomes `NAME.jsonl` when it is whole.
A unit's content depends on nothing but the settings, so an interrupted run that goes on writes the same bytes, and
so do shards: every machine scores each N-th unit to a file of its own, and a run without a shard puts together what
is there and scores what is not.
"""

import glob
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from icdsel.checkpoint import load_policy, require_width
from icdsel.claims import Result
from icdsel.console import note, progress, warn
from icdsel.datasets import Split
from icdsel.errors import CheckpointError, RlDataError, RunError
from icdsel.files import append_lines, cut, journal_of, move, remove_leftovers
from icdsel.json_records import whole_lines
from icdsel.lever_plus.samplers import anchors
from icdsel.lock import locked
from icdsel.metrics import answer_weights
from icdsel.policy import CosineNetwork, PointerNetwork
from icdsel.proposals import propose
from icdsel.provenance import (
    Identity,
    amend_side_file,
    differences,
    fingerprint_file,
    identity,
    read_side_file,
    unchanged,
    write_side_file,
)
from icdsel.reading import why_no_file
from icdsel.records import Answer, Example, Proposal
from icdsel.rl_data import rl_data_path, side_path
from icdsel.rl_journal import Summary, question_id_of, summary_of, whole_units
from icdsel.run_log import log_only, log_to, logged
from icdsel.scoring import SCORER_VERSION, score_candidate
from icdsel.settings import Settings
from icdsel.sources import Queries, Sources, open_sources
from icdsel.vlm import Request

UNIT = 32
REMEDY = "Use the old settings, --overwrite to move the file aside, or another file (--output, --rl-data)."


@dataclass(frozen=True)
class Shard:
    """One machine's part of the work: every `of`-th unit, from the `number`-th on (from 1)."""

    number: int
    of: int

    def path(self, whole: Path) -> Path:
        """The shard's file, beside the whole one."""
        return whole.with_name(f"{whole.stem}.shard-{self.number}-of-{self.of}.jsonl")


def rl_data_identity(settings: Settings, sources: Sources) -> Identity:
    """Everything that decides the content of the RL data."""
    init, split = settings.proposals.init, settings.proposals.query_split
    made_of = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init"])
    made_of |= sources.identity | {"scorer": SCORER_VERSION}
    if split != "train":
        made_of["queries"] = sources.fingerprint(split)
    return made_of | {"init": fingerprint_file(init) if init else None}


@logged
def generate(
    settings: Settings,
    output: Path | None = None,
    overwrite: bool = False,
    sources: Sources | None = None,
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
    sources = sources or open_sources(settings)
    with unchanged(init):
        network = proposer(settings, sources.seen.shape[1])
        made_of = rl_data_identity(settings, sources)
    result = _result(path, made_of)
    if result.stands(overwrite) and path.exists():
        return summary_of(path)
    with locked(path, str(path), RlDataError):
        log = path.with_suffix(".log")
        result.claim(overwrite, along=[log])
        if path.exists():  # another process has just finished it
            return summary_of(path)
        remove_leftovers(path, side_path(path))
        queries = sources.queries(_queries(sources), settings.proposals.query_split, settings.proposals.shots)
        units = _units(queries.examples)[shard.number - 1 :: shard.of] if shard else _units(queries.examples)
        count = sum(map(len, units))
        write_side_file(side_path(path), settings, made_of, str(sources.vlm.device), queries=count)
        log_to(log, str(sources.vlm.device))
        scored = {} if shard else _scored_in_shards(whole, made_of)
        started = time.monotonic()
        done = _write_units(sources, queries, network, part, shard, scored)
        if done:
            amend_side_file(side_path(path), work={"scoring": {"seconds": time.monotonic() - started, "count": done}})
        move(part, path)  # the last that is written: who finds it has nothing to tidy
        if told := sources.vlm.images.shortage():
            note(told)
        summary = summary_of(path)
        log_only(str(summary))
        return summary


def unscored(sources: Sources, overwrite: bool = False) -> int:
    """How many queries `generate` would score under the sources' settings; touches nothing.

    Raises:
        RlDataError: the file was made under other settings and `overwrite` is False.
    """
    path = rl_data_path(sources.settings)
    part = journal_of(path)
    made_of = rl_data_identity(sources.settings, sources)
    there = _result(path, made_of).stands(overwrite)
    if there and path.exists():
        return 0
    units = _units(_queries(sources))
    scored = _scored_in_shards(path, made_of)
    todo = units[whole_units(part, units)[0] if there else 0 :]
    return sum(len(unit) for unit in todo if not all(example.question_id in scored for example in unit))


def _result(path: Path, made_of: Identity) -> Result:
    return Result(str(path), (path, journal_of(path)), side_path(path), made_of, RlDataError, REMEDY)


def _queries(sources: Sources) -> list[Example]:
    """The queries to score.

    From the training split they are drawn, as the original's anchors are (specification §3); from another split
    they are the first, as `infer` takes them.
    """
    wanted = sources.settings.proposals.queries
    split = sources.split(sources.settings.proposals.query_split)
    assert wanted is not None  # filled in with the dataset
    if wanted > len(split):
        note(f"{wanted} queries were asked for, {split.name} has {len(split)}: taking all")
    wanted = min(wanted, len(split))
    if split is not sources.train:
        return list(split[:wanted])
    return [split[row] for row in anchors(len(split), wanted, sources.settings.data.seed)]


def proposer(settings: Settings, d_model: int) -> PointerNetwork:
    """The network that beams and samples follow.

    Raises:
        CheckpointError: `--init` was trained on embeddings of another width.
    """
    init = settings.proposals.init
    network = load_policy(init) if init else CosineNetwork(d_model)
    require_width(network, d_model, init)
    return network.eval()


def _scored_in_shards(whole: Path, made_of: Identity) -> dict[int, str]:
    """Lines by question_id of all shards of the same data, finished or not."""
    lines: dict[int, str] = {}
    for path in sorted(whole.parent.glob(f"{glob.escape(whole.stem)}.shard-*-of-*.jsonl")):
        if not side_path(path).exists():
            warn(f"{path} is left alone: how it was made stands in {side_path(path).name}, which is not beside it")
    for side in sorted(whole.parent.glob(f"{glob.escape(whole.stem)}.shard-*-of-*.meta.json")):
        path = side.with_name(side.name.removesuffix(".meta.json") + ".jsonl")
        try:
            told = differences(read_side_file(side)["identity"], made_of)
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
    sources: Sources,
    queries: Queries,
    network: PointerNetwork,
    part: Path,
    shard: Shard | None,
    scored: Mapping[int, str],
) -> int:
    """Completes the journal; returns how many queries were scored for it now."""
    settings, train = sources.settings, sources.train
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
                queries.seen[at : at + len(unit)],
                sources.seen[None] if pools.shared else sources.seen[rows],
                ids,
                network,
                settings.proposals,
                seed,
                None if mask.all() else mask,
            )
            groups = score_unit(sources, unit, told, proposals, lambda made: advance(0, tally(made)))
            append_lines(part, [json.dumps(group, ensure_ascii=False) for group in groups])
            advance(len(unit))
            count += len(unit)
    return count


def _units(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[at : at + UNIT] for at in range(0, len(examples), UNIT)]


class Tally:
    """Counts, over what this command asked the VLM, the pointers that it answered correctly."""

    def __init__(self) -> None:
        self.asked = self.correct = self.scored = 0

    def __call__(self, candidates: Iterable[Mapping[str, Any]]) -> str:
        """Takes more scored candidates in; the share of correct ones so far, in words."""
        for candidate in candidates:
            self.asked += 1
            if "error" not in candidate:
                self.scored += 1
                self.correct += candidate["vqa_correct"]
        return f"{self.correct / self.scored:.1%} correct" if self.scored else ""


def _ids(train: Split, rows: Iterable[int]) -> list[int]:
    return [train[row].question_id for row in rows]


def score_unit(
    sources: Sources,
    queries: Sequence[Example],
    pools: Sequence[Mapping[str, Any]],
    proposals: Sequence[Sequence[Proposal]],
    on_scored: Callable[[Sequence[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Asks the VLM about every proposal of some queries.

    Args:
        sources: The training split, whose examples are the ICDs, and the VLM.
        queries: The queries.
        pools: What their records say of their pools.
        proposals: The pointers of each query.
        on_scored: Gets candidates as their answers come.

    Returns:
        The RL data's record of each query.

    Raises:
        CallsError: too many VLM calls failed.
    """
    settings = sources.settings
    asked = [(query, proposal) for query, made in zip(queries, proposals, strict=True) for proposal in made]
    references = {query.question_id: tuple(answer_weights(query.written_answers)) for query in queries}
    requests = [
        Request(tuple(map(sources.train.by_id, proposal.pointer)), query, references[query.question_id])
        for query, proposal in asked
    ]
    scored: dict[int, dict[str, Any]] = {}

    def score(answers: Mapping[int, Answer]) -> None:
        for i, answer in answers.items():
            query, proposal = asked[i]
            scored[i] = score_candidate(proposal, answer, query, settings.vlm, settings.data.metric)
        on_scored([scored[i] for i in answers])

    sources.vlm.answer(requests, score)
    candidates = (scored[i] for i in range(len(asked)))
    return [
        {
            "question_id": query.question_id,
            "image_id": query.image_id,
            "question": query.question,
            "answers": list(query.answers),
            **pool,
            "pointer_candidates": list(islice(candidates, len(made))),
        }
        for query, pool, made in zip(queries, pools, proposals, strict=True)
    ]
