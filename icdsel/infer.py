"""The inference stage: a selector chooses ICDs for every query, the VLM answers, predictions are written."""

import hashlib
import json
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.checkpoint import convert, v2_path
from icdsel.console import note, progress
from icdsel.errors import CheckpointError, RunError
from icdsel.files import write_text
from icdsel.lever_plus.checkpoints import ConversionWarning
from icdsel.metrics import majority_answer
from icdsel.provenance import (
    Identity,
    claim,
    differences,
    fingerprint_file,
    identity,
    read_side_file,
    record_work,
    stands,
    write_side_file,
)
from icdsel.records import Answer, Example, Pointer
from icdsel.run_log import log_only, log_to, logged
from icdsel.scoring import accuracies, prediction_of
from icdsel.selectors import Selectors, random_seed, scored_path
from icdsel.settings import DataSettings, Selector, Settings, unusual
from icdsel.sources import Queries, Sources, open_sources
from icdsel.train import SIDE_FILE, find_run
from icdsel.vlm import Request

CACHES = ("image_cache_mb", "image_cache_dir", "image_cache_disk_mb")
# What every selector stands beside.
ALWAYS: tuple[Selector, ...] = ("zero-shot", "majority")
REMEDY = "Use --overwrite to move them aside, or --results-dir DIR for another place."


@dataclass(frozen=True)
class Row:
    """One selector's predictions: the file, and what its mean accuracy is at each number of shots."""

    name: str
    path: Path
    accuracy: dict[int, float]
    failed: int


def predictions_dir(settings: Settings) -> Path:
    """`results/<dataset>/infer/<Sampler>_<Model>`, with what differs from the default pools and prompts behind it."""
    places = ("preset", "dataset", "sampler", "data_dir", "image_dir", "results_dir", "on_image_error")
    machine = ("model", "device", "dtype", "batch_tokens", *CACHES)
    usual = settings.usual()
    other: list[str] = [] if settings.data.preset == DataSettings().preset else [settings.data.preset]
    other += unusual(settings.data, usual["data"], places) + unusual(settings.vlm, usual["vlm"], machine)
    name = "_".join([settings.pair_name, *other])
    if any(letter in name for letter in "/\\:{}<> ") or len(name) > 120:  # a prompt, say
        name = f"{settings.pair_name}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return settings.dataset_dir / "infer" / name


@logged
def infer(
    settings: Settings,
    run: str | None = None,
    checkpoint: Path | None = None,
    overwrite: bool = False,
    *,
    sources: Sources | None = None,
    beside: Sequence[Selector] = ALWAYS,
) -> list[Row]:
    """Answers the queries with every selector of the settings, and with those that always stand `beside` them.

    Predictions that exist and were made of the same things are kept, so a row is never answered twice. `sources`,
    where they are open already, are used as they are (`Sources.under`).

    Raises:
        UserError: dataset, model, run or checkpoint are missing or do not fit; a shot count is above a pool.
    """
    asked = settings.infer.selector
    chosen = (*asked, *(name for name in beside if name not in asked))
    policy_file = _policy_file(settings, run, checkpoint) if "policy" in chosen else None
    sources = sources.under(settings) if sources else open_sources(settings)
    if policy_file:
        _check_policy(settings, sources, policy_file)
    queries = sources.queries(queries_to_answer(sources), settings.infer.split, max(settings.infer.shots))
    choose = Selectors(sources, queries, policy_file)
    rows = [_row(sources, queries, choose, name, policy_file, overwrite) for name in chosen]
    if told := sources.vlm.images.shortage():
        note(told)
    return rows


@logged
def _row(
    sources: Sources,
    queries: Queries,
    choose: Selectors,
    selector: Selector,
    policy_file: Path | None,
    overwrite: bool,
) -> Row:
    """One selector's predictions; numbers of shots that were answered before are kept."""
    settings = sources.settings
    label = _label(settings, selector, policy_file)
    subset = _subset_name(settings, len(queries.examples))
    path, side = _files(settings, label, subset)
    made_of = _identity(settings, sources, selector, policy_file)
    records: list[dict[str, Any]] = []
    log = path.with_suffix(".log")
    if claim((path,), side, made_of, str(path), RunError, REMEDY, overwrite, along=[log]):
        records = read_predictions(path)
    wanted = shots_of(selector, settings)
    missing = _missing(wanted, records)
    if missing:
        log_to(log, str(sources.vlm.device))
        started = time.monotonic()
        records += _answer(sources, queries, choose, selector, label, missing)
        records.sort(key=lambda record: int(record["shots"]))  # stable: queries keep their order
        write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
        own = {"checkpoint": str(policy_file)} if selector == "policy" else {}  # whose run the page shows
        write_side_file(side, settings, made_of, str(sources.vlm.device), name=label, set=subset, **own)
        if selector != "majority":
            images = sum(shots + 1 for shots in missing) * len(queries.examples)
            record_work(side, {"answering": {"seconds": time.monotonic() - started, "count": images}})
    else:
        note(f"{label}: answered before, {path}")
    scores: dict[int, list[float]] = {}
    for record in records:
        if "error" not in record and record["shots"] in wanted:
            scores.setdefault(record["shots"], []).append(record["accuracy"])
    failed = sum("error" in answered for answered in records)
    accuracy = {shots: sum(values) / len(values) for shots, values in scores.items()}
    told = ", ".join(f"{shots}: {100 * value:.1f}" for shots, value in accuracy.items())
    log_only(f"{label}: VQA accuracy by shots {told}; {failed} calls failed")
    return Row(label, path, accuracy, failed)


def unanswered(
    sources: Sources, count: int, selector: Selector, policy_file: Path | None, overwrite: bool = False
) -> list[int]:
    """The numbers of shots at which a selector's row over `count` queries lacks predictions; touches nothing.

    Raises:
        RunError: the row was made under other settings and `overwrite` is False.
    """
    settings = sources.settings
    label = _label(settings, selector, policy_file)
    path, side = _files(settings, label, _subset_name(settings, count))
    made_of = _identity(settings, sources, selector, policy_file)
    there = stands((path,), side, made_of, str(path), RunError, REMEDY, overwrite)
    return _missing(shots_of(selector, settings), read_predictions(path) if there else [])


def shots_of(selector: Selector, settings: Settings) -> tuple[int, ...]:
    """The numbers of shots that a selector is asked for."""
    return (0,) if selector == "zero-shot" else settings.infer.shots


def _missing(wanted: Sequence[int], records: Sequence[dict[str, Any]]) -> list[int]:
    answered = {record["shots"] for record in records}
    return [shots for shots in wanted if shots not in answered]


def _files(settings: Settings, label: str, subset: str) -> tuple[Path, Path]:
    """A row's predictions and its side file."""
    path = predictions_dir(settings) / f"{label}_{subset}.jsonl"
    return path, path.with_suffix(".meta.json")


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a predictions file.

    Raises:
        RunError: a line is damaged.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            _ = (
                int(record["question_id"]),
                int(record["shots"]),
                record.get("error") or float(record["accuracy"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}, line {number}: {type(error).__name__} {error}: no prediction of icdsel") from None
        records.append(record)
    return records


def _policy_file(settings: Settings, run: str | None, checkpoint: Path | None) -> Path:
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise CheckpointError(f"--checkpoint {checkpoint} does not exist")
        return checkpoint
    path = find_run(settings, run).checkpoint
    note(f"Policy: {path}")
    converted = v2_path(path)
    if not converted.exists() or converted.stat().st_mtime_ns < path.stat().st_mtime_ns:
        with warnings.catch_warnings():  # `convert` says what Lever-Plus would ignore to those who ask for it
            warnings.simplefilter("ignore", ConversionWarning)
            try:
                convert(path)
            except PermissionError as error:
                note(f"not converted for Lever-Plus: {error}")
    return path


def _check_policy(settings: Settings, sources: Sources, policy_file: Path) -> None:
    """Refuses a policy that was trained on other data, for another model or on other embeddings.

    Raises:
        CheckpointError: it names what differs. A checkpoint without a run beside it cannot be checked.
    """
    side = policy_file.parent / SIDE_FILE
    if not side.exists():
        return
    trained = read_side_file(side)["identity"]
    now = identity(settings, "data") | sources.identity
    binding = ("data.dataset", "data.embed", "dataset", "model", "encoder")
    told = differences(*({name: made_of.get(name) for name in binding} for made_of in (trained, now)))
    if told:
        raise CheckpointError(
            f"{policy_file} was trained under other settings:\n  "
            + "\n  ".join(told)
            + "\nUse those settings, or train another policy."
        )
    for line in differences(*({k: v for k, v in m.items() if k.startswith("data.")} for m in (trained, now))):
        note(f"The policy was trained under another setting: {line}")


def _label(settings: Settings, selector: str, policy_file: Path | None) -> str:
    """A row's name: of a policy its run and epoch, of `random` with its seed."""
    if selector == "policy" and policy_file is not None:
        return f"policy-{policy_file.absolute().parent.name}-{policy_file.stem}"
    return f"random-{random_seed(settings)}" if selector == "random" else selector


def _subset_name(settings: Settings, count: int) -> str:
    kind = "" if settings.infer.subset == "first" else f"-random-{settings.data.seed}"
    return f"{settings.infer.split}-{count}{kind}"


def _identity(settings: Settings, sources: Sources, selector: str, policy_file: Path | None) -> Identity:
    made_of = identity(settings, "data", "vlm") | sources.identity
    made_of |= {"split": settings.infer.split, "selector": selector}
    if selector == "policy" and policy_file is not None:
        made_of["checkpoint"] = fingerprint_file(policy_file)
    if selector.startswith("nearest") or selector == "majority":
        made_of["sampler_encoder"] = sources.sampler_encoder.fingerprint
    if selector == "oracle" and (path := scored_path(settings)).is_file():
        made_of["rl_data"] = fingerprint_file(path)
    return made_of


def queries_to_answer(sources: Sources) -> list[Example]:
    """The queries to answer."""
    settings = sources.settings
    split = sources.split(settings.infer.split)
    wanted = len(split) if settings.infer.n == -1 else settings.infer.n
    if wanted > len(split):
        note(f"{wanted} queries were asked for, {split.name} has {len(split)}: taking all")
        wanted = len(split)
    rows = list(range(wanted))
    if settings.infer.subset == "random":
        rows = sorted(random.Random(settings.data.seed).sample(range(len(split)), wanted))
    return [split[row] for row in rows]


def _answer(
    sources: Sources, queries: Queries, choose: Selectors, selector: Selector, label: str, shot_counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Chooses, asks and scores: a record for each query and number of shots."""
    # The majority answer is that of the nearest neighbours, the strongest choice that needs no training.
    chooser = "nearest-both" if selector == "majority" else selector
    pointers = {shots: choose.choose(chooser, shots) for shots in shot_counts}
    for shots in shot_counts:
        if all(pointer is None for pointer in pointers[shots]):
            note(f"{label}: no query has a scored pointer of {shots} ICDs, left out")
    # A query's prompts stand together: pointers that begin alike are read once up to there.
    asked = [
        (query, pointer)
        for q, query in enumerate(queries.examples)
        for shots in shot_counts
        if (pointer := pointers[shots][q]) is not None
    ]
    records: dict[int, dict[str, Any]] = {}
    answered, total = 0, 0.0
    with progress(label, len(asked)) as advance:

        def score(answers: Mapping[int, Answer]) -> None:
            nonlocal answered, total
            for i, answer in answers.items():
                records[i] = _record(sources.settings, *asked[i], answer)
                if answer.error is None:
                    answered, total = answered + 1, total + records[i]["accuracy"]
            advance(len(answers), f"accuracy {100 * total / answered:.1f}" if answered else "")

        train = sources.train
        if selector == "majority":  # no VLM
            majority = (majority_answer([train.by_id(i).answer for i in pointer]) for _, pointer in asked)
            score(dict(enumerate(map(Answer, majority))))
        else:
            sources.vlm.answer([Request(tuple(map(train.by_id, p)), q) for q, p in asked], score)
    return [records[i] for i in range(len(asked))]


def _record(settings: Settings, query: Example, pointer: Pointer, answer: Answer) -> dict[str, Any]:
    """What is written of an answer: the prediction and its accuracies, or why there is none."""
    record: dict[str, Any] = {"question_id": query.question_id, "shots": len(pointer), "icds": list(pointer)}
    if answer.error is not None:
        return record | {"error": answer.error}
    prediction = prediction_of(answer, settings.vlm)
    return record | {"prediction": prediction} | accuracies(prediction, query, settings.data.metric)
