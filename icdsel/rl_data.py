"""RL data: for each query its pool, and candidate pointers with what the VLM answered. One JSON line a query.

Written in units of `UNIT` queries to a journal, `NAME.jsonl.part`, that becomes `NAME.jsonl` when it is whole.
A unit's content depends on nothing but the settings, so an interrupted run that goes on writes the same bytes.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from icdsel.checkpoint import load_policy
from icdsel.console import note, progress
from icdsel.errors import CheckpointError, RlDataError
from icdsel.files import append_lines
from icdsel.metrics import answer_weights, relevance, vqa_accuracy
from icdsel.policy import CosineNetwork, PointerNetwork
from icdsel.proposals import propose
from icdsel.provenance import Identity, fingerprint_file, identity, move_aside, require_same, write_side_file
from icdsel.records import Answer, Example, Proposal, QueryGroup
from icdsel.settings import Settings
from icdsel.sources import Sources, open_sources
from icdsel.vlm import Request

UNIT = 32
SCORER_VERSION = 1  # part of the identity: raised when the scores of the same prompts change


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
    if settings.proposals.shots > settings.data.pool_size:
        raise RlDataError(
            f"pointers of {settings.proposals.shots} ICDs do not fit into a pool of {settings.data.pool_size}: "
            f"use --pointer-shots {settings.data.pool_size} or less, or a larger --pool-size"
        )
    init = settings.proposals.init
    if init and not init.is_file():
        raise CheckpointError(f"--init {init} does not exist")
    sources = sources or open_sources(settings)
    network = proposer(settings, sources.embeddings.image.shape[1])
    made_of = rl_data_identity(settings, sources)
    if path.exists() or part.exists():
        try:
            remedy = "Use the old settings, --overwrite to move the file aside, or another file (--output, --rl-data)."
            require_same(side_path(path), made_of, str(path), RlDataError, remedy)
        except RlDataError:
            if not overwrite:
                raise
            for moved in move_aside(path, part, side_path(path)):
                note(f"moved the old file to {moved}")
    if not path.exists():
        write_side_file(side_path(path), settings, made_of, str(sources.vlm.device))
        _write_units(sources, network, part)
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
    return [split[row] for row in random.Random(sources.settings.data.seed).sample(range(len(split)), wanted)]


def proposer(settings: Settings, d_model: int) -> PointerNetwork:
    """The network that beams and samples follow.

    Raises:
        CheckpointError: `--init` was trained on embeddings of another width.
    """
    init = settings.proposals.init
    network = load_policy(init) if init else CosineNetwork(d_model)
    if network.config.d_model != d_model:
        raise CheckpointError(
            f"{init} takes embeddings of width {network.config.d_model}, this encoder's have {d_model}: "
            f"use a checkpoint trained with the same --dataset and --model"
        )
    return network.eval()


def _write_units(sources: Sources, network: PointerNetwork, part: Path) -> None:
    settings, train = sources.settings, sources.train
    queries = _queries(sources)
    units = [queries[at : at + UNIT] for at in range(0, len(queries), UNIT)]
    done = _whole_units(part, units)
    split = sources.split(settings.proposals.query_split)
    embeddings = sources.embed(split)
    rows = [split.row[query.question_id] for query in queries]
    pools = sources.pools(queries, rows, embeddings)
    seen, train_seen = sources.seen(embeddings), sources.seen(sources.embeddings)
    if done:
        note(f"going on after {done * UNIT} queries of an interrupted run")
    with progress("Scoring queries", len(queries)) as advance:
        advance(done * UNIT)
        for number in range(done, len(units)):
            unit, at = units[number], number * UNIT
            unit_pools = pools[at : at + len(unit)]
            ids = [[train[row].question_id for row in pool] for pool in unit_pools]
            seed = f"proposals-{settings.data.seed}-{unit[0].question_id}"
            query = seen[rows[at : at + len(unit)]]  # (B, d)
            candidates = train_seen[torch.tensor(unit_pools)]  # (B, K, d)
            proposals = propose(query, candidates, ids, network, settings.proposals, seed)
            groups = _score(sources, unit, ids, proposals)
            failed = [c["error"] for group in groups for c in group["pointer_candidates"] if "error" in c]
            if len(failed) == sum(len(group["pointer_candidates"]) for group in groups):
                raise RlDataError(f"every VLM call of a unit failed, e.g.: {failed[0]}")
            append_lines(part, [json.dumps(group, ensure_ascii=False) for group in groups])
            advance(len(unit))


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
    pools: Sequence[Sequence[int]],
    proposals: Sequence[Sequence[Proposal]],
) -> list[dict[str, Any]]:
    """Asks the VLM about every proposal; one record a query."""
    references = [tuple(answer_weights(query.answers)) for query in queries]
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
            "candidate_pool_ids": list(pool),
            "pointer_candidates": [score_candidate(proposal, next(answers), query) for proposal in made],
        }
        for query, pool, made in zip(queries, pools, proposals, strict=True)
    ]


def score_candidate(proposal: Proposal, answer: Answer, query: Example) -> dict[str, Any]:
    """A candidate's record: where it comes from, the answer, its correctness, the right answer's probability.

    `vqa_gt_prob` is Σ over distinct human answers of accuracy × probability (end of the turn included);
    `vqa_gt_prob_norm` the same with each probability's geometric mean per token. A failed call has `error` and
    `eval_failed` and no scores.
    """
    record: dict[str, Any] = {"pointer": list(proposal.pointer), "gen_method": proposal.method}
    record |= {"beam_rank": proposal.rank, "logprob_score": _rounded(proposal.log_prob)}
    record |= {"temperature": proposal.temperature}
    if answer.error is not None:
        return record | {"eval_failed": True, "error": answer.error}
    prediction = answer.text.strip()
    accuracy = vqa_accuracy(prediction, query.answers)
    weights = answer_weights(query.answers).values()
    scored = list(zip(weights, answer.reference_log_probs, answer.reference_tokens, strict=True))
    return record | {
        "vqa_pred_answer": prediction,
        "vqa_correct": int(accuracy > 0),
        "vqa_acc_score": _rounded(accuracy),
        "vqa_gt_prob": _rounded(sum(weight * math.exp(log_prob) for weight, log_prob, _ in scored)),
        "vqa_gt_prob_norm": _rounded(sum(weight * math.exp(log_prob / n) for weight, log_prob, n in scored)),
        **{name: _rounded(value) for name, value in relevance(prediction, query.answers).items()},
    }


def _rounded(value: float | None) -> float | None:
    """Six significant digits: what a float32 model can vouch for."""
    return None if value is None else float(f"{value:.6g}")


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
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RlDataError(f"{path}, line {number}: {error}") from None
            if not isinstance(record, dict):
                raise RlDataError(f"{path}, line {number}: not an object")
            yield record


def read_rl_data(path: str | Path) -> RlData:
    """Reads RL data, refusing what cannot be trained on.

    Candidates that failed, or whose pointer does not lie in the pool or repeats an ICD, are rejected and
    counted by reason.

    Raises:
        RlDataError: the file is missing, empty, damaged, or leaves nothing to train on.
    """
    path = Path(path)
    groups, rejected = [], Counter[str]()
    for number, record in enumerate(_records(path), 1):
        try:
            group = _group(record, rejected)
        except (KeyError, TypeError, ValueError) as error:
            raise RlDataError(f"{path}, line {number}: {type(error).__name__} {error}: no RL data of icdsel") from None
        groups.append(group)
    if not groups:
        raise RlDataError(f"{path} is empty. Make it anew with `icdsel gen-rl-data --overwrite`.")
    kept = tuple(group for group in groups if group.candidates)
    if not kept:
        raise RlDataError(f"{path}: no candidate can be used ({dict(rejected)})")
    return RlData(kept, dict(rejected))


def _group(record: Mapping[str, Any], rejected: Counter[str]) -> QueryGroup:
    pool = tuple(int(question_id) for question_id in record["candidate_pool_ids"])
    kept = []
    for candidate in record["pointer_candidates"]:
        pointer = candidate["pointer"]
        if candidate.get("eval_failed"):
            rejected["the VLM call failed"] += 1
        elif not set(pointer) <= set(pool):
            rejected["an ICD is not in the pool"] += 1
        elif len(set(pointer)) < len(pointer) or not pointer:
            rejected["an ICD stands twice, or none at all"] += 1
        elif not isinstance(candidate["vqa_acc_score"], int | float) or not math.isfinite(candidate["vqa_acc_score"]):
            rejected["the score is no number"] += 1
        else:
            kept.append(candidate)
    return QueryGroup(
        question_id=int(record["question_id"]),
        image_id=int(record["image_id"]),
        question=str(record["question"]),
        answers=tuple(map(str, record["answers"])),
        pool=pool,
        candidates=tuple(kept),
    )
