"""RL data: for each query its pool, and candidate pointers with what the VLM answered. One JSON line a query.

Written in units of `UNIT` queries to a journal, `NAME.jsonl.part`, that becomes `NAME.jsonl` when it is whole.
A unit's content depends on nothing but the settings, so an interrupted run that goes on writes the same bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.checkpoint import load_policy, require_width
from icdsel.console import note, progress
from icdsel.datasets import Split, load_split
from icdsel.errors import CheckpointError, RlDataError
from icdsel.files import append_lines, write_json
from icdsel.lever_plus.rl_data import is_lever_plus, read_lever_plus
from icdsel.lever_plus.rl_data_writer import lever_plus_json
from icdsel.lever_plus.samplers import anchors
from icdsel.metrics import answer_weights
from icdsel.policy import CosineNetwork, PointerNetwork
from icdsel.proposals import propose
from icdsel.provenance import Identity, claim, fingerprint_file, identity, read_side_file, write_side_file
from icdsel.records import Example, Proposal, QueryGroup
from icdsel.scoring import has_sound_scores, score_candidate
from icdsel.settings import Settings
from icdsel.sources import Queries, Sources, open_sources
from icdsel.vlm import Request

UNIT = 32
SCORER_VERSION = 2  # part of the identity: raised when the scores of the same prompts change


@dataclass(frozen=True)
class RlData:
    """What was read: the groups, and how many candidates were left out for which reason."""

    groups: tuple[QueryGroup, ...]
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """What a generation did."""

    path: Path
    queries: int
    pointers: int
    failed: int
    correct: float
    """Share of pointers that the VLM answered with soft accuracy above 0."""
    signal: float
    """Share of queries whose pointers differ in accuracy."""


def rl_data_path(settings: Settings) -> Path:
    """Where the RL data of these settings lie unless a file is named."""
    split = settings.proposals.query_split
    suffix = "" if split == "train" else f"_{split}"
    return settings.dataset_dir / "generated_data" / f"rl_data_{settings.pair_name}{suffix}.jsonl"


def side_path(path: Path) -> Path:
    """The side file with settings and identity."""
    return path.with_suffix(".meta.json")


def rl_data_identity(settings: Settings, sources: Sources) -> Identity:
    """Everything that decides the content of the RL data."""
    init = settings.proposals.init
    made_of = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init"])
    made_of |= sources.identity | {"scorer": SCORER_VERSION}
    return made_of | {"init": fingerprint_file(init) if init else None}


def generate(
    settings: Settings, output: Path | None = None, overwrite: bool = False, sources: Sources | None = None
) -> Summary:
    """Makes the RL data of `settings`, going on where an interrupted run stopped.

    A file that was made of the same things stays as it is. `overwrite` moves one that was not aside.

    Raises:
        RlDataError: the file was made under other settings and `overwrite` is False; every VLM call failed.
        UserError: dataset, model or checkpoint are missing or unfit.
    """
    path = output or rl_data_path(settings)
    part = path.with_name(path.name + ".part")
    init = settings.proposals.init
    if init and not init.is_file():
        raise CheckpointError(f"--init {init} does not exist")
    sources = sources or open_sources(settings)
    network = proposer(settings, sources.seen.shape[1])
    made_of = rl_data_identity(settings, sources)
    remedy = "Use the old settings, --overwrite to move the file aside, or another file (--output, --rl-data)."
    claim((path, part), side_path(path), made_of, str(path), RlDataError, remedy, overwrite)
    if not path.exists():
        queries = sources.queries(_queries(sources), settings.proposals.query_split, settings.proposals.shots)
        write_side_file(side_path(path), settings, made_of, str(sources.vlm.device))
        _write_units(sources, queries, network, part)
        part.replace(path)
    return _summary(path)


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


def _write_units(sources: Sources, queries: Queries, network: PointerNetwork, part: Path) -> None:
    settings, train = sources.settings, sources.train
    examples = queries.examples
    units = [examples[at : at + UNIT] for at in range(0, len(examples), UNIT)]
    done = _whole_units(part, units)
    pools = queries.pools
    everyone = [example.question_id for example in train] if pools.shared else []
    if done:
        note(f"going on after {done * UNIT} queries of an interrupted run")
    with progress("Scoring queries", len(examples)) as advance:
        advance(done * UNIT)
        for number in range(done, len(units)):
            unit, at = units[number], number * UNIT
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
            groups = _score(sources, unit, told, proposals)
            failed = [c["error"] for group in groups for c in group["pointer_candidates"] if "error" in c]
            if len(failed) == sum(len(group["pointer_candidates"]) for group in groups):
                raise RlDataError(f"every VLM call of a unit failed, e.g.: {failed[0]}")
            append_lines(part, [json.dumps(group, ensure_ascii=False) for group in groups])
            advance(len(unit))


def _ids(train: Split, rows: Iterable[int]) -> list[int]:
    return [train[row].question_id for row in rows]


def _whole_units(part: Path, units: Sequence[Sequence[Example]]) -> int:
    """How many units the journal holds; what follows the last whole one is cut off."""
    if not part.exists():
        return 0
    lines = part.read_bytes().splitlines(keepends=True)
    done = kept = 0
    for unit in units:
        if [_question_id(line) for line in lines[kept : kept + len(unit)]] != [query.question_id for query in unit]:
            break
        kept += len(unit)
        done += 1
    with part.open("r+b") as file:
        file.truncate(sum(map(len, lines[:kept])))
    return done


def _question_id(line: bytes) -> object:
    """Of a journal's line; None where it is torn."""
    try:
        return json.loads(line)["question_id"] if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None


def _score(
    sources: Sources,
    queries: Sequence[Example],
    pools: Sequence[Mapping[str, Any]],
    proposals: Sequence[Sequence[Proposal]],
) -> list[dict[str, Any]]:
    """Asks the VLM about every proposal; one record a query."""
    settings = sources.settings
    references = [tuple(answer_weights(query.written_answers)) for query in queries]
    requests = [
        Request(tuple(map(sources.train.by_id, proposal.pointer)), query, reference)
        for query, reference, made in zip(queries, references, proposals, strict=True)
        for proposal in made
    ]
    answers = iter(sources.vlm.answer(requests))
    return [
        {
            "question_id": query.question_id,
            "image_id": query.image_id,
            "question": query.question,
            "answers": list(query.answers),
            **pool,
            "pointer_candidates": [
                score_candidate(proposal, next(answers), query, settings.vlm, settings.data.metric) for proposal in made
            ],
        }
        for query, pool, made in zip(queries, pools, proposals, strict=True)
    ]


def _summary(path: Path) -> Summary:
    records = list(_records(path))
    groups = [record["pointer_candidates"] for record in records]
    scored = [[c for c in group if "error" not in c] for group in groups]
    total = sum(map(len, scored))
    return Summary(
        path=path,
        queries=len(groups),
        pointers=total,
        failed=sum(map(len, groups)) - total,
        correct=sum(c["vqa_correct"] for group in scored for c in group) / max(1, total),
        signal=sum(len({c["vqa_acc_score"] for c in group}) > 1 for group in scored) / max(1, len(scored)),
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file, each a mapping."""
    if not path.is_file():
        found = sorted(other.name for other in path.parent.glob("rl_data_*.json*")) if path.parent.is_dir() else []
        there = f"{path.parent} holds {', '.join(found)}" if found else f"{path.parent} holds no RL data"
        raise RlDataError(f"{path} does not exist; {there}. Make it with `icdsel gen-rl-data`.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RlDataError(f"{path}, line {number}: {error}") from None
            if not isinstance(record, dict):
                raise RlDataError(f"{path}, line {number}: not an object")
            yield record


def convert(settings: Settings, path: Path, output: Path | None = None) -> Path:
    """Writes RL data in the form of Lever-Plus, `NAME.json`; ranks are those of the settings' training split.

    Raises:
        RlDataError: `path` holds no RL data of icdsel, or those of another dataset.
        DataError: the dataset is not there.
    """
    records = [
        record if record.get("candidate_pool_ids") != "all" else {**record, "candidate_pool_ids": []}
        for record in _records(path)
    ]
    made_of = read_side_file(side_path(path))["identity"] if side_path(path).exists() else {}
    target = output or path.with_suffix(".json")
    write_json(target, lever_plus_json(records, load_split(settings.data, "train").row, {"made_of": made_of}))
    return target


def read_rl_data(
    path: str | Path,
    question_ids: Sequence[int] | None = None,
    *,
    skip_fallback: bool = True,
    accept_unsound: bool = False,
) -> RlData:
    """Reads RL data, ours or Lever-Plus's, refusing what cannot be trained on.

    Candidates that failed, or whose pointer does not lie in the pool or repeats an ICD, are rejected and
    counted by reason; of Lever-Plus's data those too that were made up (`icdsel.lever_plus.rl_data`).

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
    for number, record in enumerate(_records(path), 1):
        try:
            group = _group(record, rejected)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RlDataError(f"{path}, line {number}: {type(error).__name__} {error}: no RL data of icdsel") from None
        groups.append(group)
    if not groups:
        raise RlDataError(f"{path} is empty. Make it anew with `icdsel gen-rl-data --overwrite`.")
    kept = tuple(group for group in groups if group.candidates)
    if not kept:
        raise RlDataError(f"{path}: no candidate can be used ({dict(rejected)})")
    return RlData(kept, dict(rejected))


def _group(record: Mapping[str, Any], rejected: Counter[str]) -> QueryGroup:
    told = record["candidate_pool_ids"]
    pool = None if told == "all" else tuple(int(question_id) for question_id in told)
    excluded = tuple(int(question_id) for question_id in record.get("excluded_ids", ()))
    if pool is not None and (len(set(pool)) < len(pool) or int(record["question_id"]) in pool):
        raise ValueError("its pool holds an example twice, or the query itself")
    kept = []
    for candidate in record["pointer_candidates"]:
        pointer = candidate["pointer"]
        if candidate.get("eval_failed"):
            rejected["the VLM call failed"] += 1
        elif set(pointer) & set(excluded) if pool is None else not set(pointer) <= set(pool):
            rejected["an ICD is not in the pool"] += 1
        elif len(set(pointer)) < len(pointer) or not pointer:
            rejected["an ICD stands twice, or none at all"] += 1
        elif not has_sound_scores(candidate):
            rejected["a score is no number, or out of range"] += 1
        else:
            kept.append(candidate)
    return QueryGroup(
        question_id=int(record["question_id"]),
        image_id=int(record["image_id"]),
        question=str(record["question"]),
        answers=tuple(map(str, record["answers"])),
        pool=pool,
        candidates=tuple(kept),
        excluded=excluded,
    )
