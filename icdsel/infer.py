"""The inference stage: a selector chooses ICDs for every query, the VLM answers, predictions are written."""

import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.answering import answer_queries, prompt_of, sound_record, whole_units
from icdsel.checkpoint import convert, is_converted
from icdsel.claims import Result
from icdsel.console import note, warn
from icdsel.errors import CheckpointError, RunError, of_system
from icdsel.files import digest_of, journal_of, refuse_link, remove_leftovers, write_text
from icdsel.json_records import parsed
from icdsel.lever_plus.checkpoints import ConversionWarning
from icdsel.lock import locked
from icdsel.provenance import (
    Identity,
    amend_side_file,
    differences,
    fingerprint_file,
    identity,
    read_side_file,
    write_side_file,
)
from icdsel.reading import read_bytes_lines, why_no_file
from icdsel.records import Example
from icdsel.run_log import log_only, log_to, logged
from icdsel.scoring import SCORER_VERSION
from icdsel.selectors import Selectors, random_seed, scored_path
from icdsel.settings import DataSettings, Selector, Settings, VlmSettings, unusual
from icdsel.sources import Queries, Sources, open_sources
from icdsel.train import SIDE_FILE, find_run, is_finished

# What every selector stands beside.
ALWAYS: tuple[Selector, ...] = ("zero-shot", "majority")
MENDING = "Move it away: the `icdsel infer` that made it then answers its queries again."
_MOST_ROWS = 100  # numbers of shots in a file; those that `infer` takes are fewer
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
    machine = ("model", "dtype", *VlmSettings.MACHINE)
    usual = settings.usual()
    other: list[str] = [] if settings.data.preset == DataSettings().preset else [settings.data.preset]
    other += unusual(settings.data, usual["data"], places) + unusual(settings.vlm, usual["vlm"], machine)
    name = "_".join([settings.pair_name, *other])
    if any(letter in name for letter in "/\\:{}<> ") or len(name) > 120:  # a prompt, say
        name = f"{settings.pair_name}_{digest_of(name)[:8]}"
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
    """One selector's predictions; numbers of shots that were answered before are kept.

    What is new is written to a journal, `NAME.jsonl.part`, and joins what stands in `NAME.jsonl` when it is whole.

    Raises:
        RunError: another process writes this row, or it was made under other settings.
    """
    settings = sources.settings
    label = _label(settings, selector, policy_file)
    subset = _subset_name(settings, len(queries.examples))
    path, side = _files(settings, label, subset)
    part = journal_of(path)
    result = _result(path, side, _identity(settings, sources, selector, choose.fingerprint(selector)))
    own = {"checkpoint": str(policy_file)} if selector == "policy" else {}  # whose run the page shows
    wanted = shots_of(selector, settings)
    records = _read_standing(path) if result.stands(overwrite) else []
    if not _missing(wanted, records):
        note(f"{label}: answered before, {path}")
    if _missing(wanted, records) or part.exists():
        with locked(path, str(path), RunError):
            log = path.with_suffix(".log")
            records = _read_standing(path) if result.claim(overwrite, along=[log]) else []
            remove_leftovers(path, side)
            if missing := _missing(wanted, records):
                # Before its journal: without it nobody knows what that is made of.
                write_side_file(side, settings, result.made_of, str(sources.vlm.device), name=label, set=subset, **own)
                log_to(log, str(sources.vlm.device))
                records = _complete(sources, queries, choose, label, selector, missing, records, path)
            if whole_units(part).keys() <= set(map(prompt_of, records)):  # else it is for other numbers of shots
                part.unlink(missing_ok=True)
    scores: dict[int, list[float]] = {}
    for record in records:
        if "error" not in record and record["shots"] in wanted:
            scores.setdefault(record["shots"], []).append(record["accuracy"])
    failed = sum("error" in answered for answered in records)
    accuracy = {shots: sum(values) / len(values) for shots, values in scores.items()}
    told = ", ".join(f"{shots}: {100 * value:.1f}" for shots, value in accuracy.items())
    log_only(f"{label}: VQA accuracy by shots {told}; {failed} calls failed")
    return Row(label, path, accuracy, failed)


def _result(path: Path, side: Path, made_of: Identity) -> Result:
    return Result(str(path), (path, journal_of(path)), side, made_of, RunError, REMEDY)


def _complete(
    sources: Sources,
    queries: Queries,
    choose: Selectors,
    label: str,
    selector: Selector,
    missing: Sequence[int],
    records: Sequence[dict[str, Any]],
    path: Path,
) -> list[dict[str, Any]]:
    """Answers at the `missing` numbers of shots, and writes the row with what it had."""
    started = time.monotonic()
    new, images = answer_queries(sources, queries, choose, selector, label, missing, journal_of(path))
    made = sorted([*records, *new], key=lambda record: int(record["shots"]))  # stable: queries keep their order
    # Before the answers: where they are fewer, they were cut.
    more: dict[str, Any] = {"answers": dict(Counter(str(record["shots"]) for record in made))}
    if images and selector != "majority":
        more["work"] = {"answering": {"seconds": time.monotonic() - started, "count": images}}
    amend_side_file(path.with_suffix(".meta.json"), **more)
    write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in made))
    return made


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
    chosen_by = policy_file if selector == "policy" else scored_path(settings) if selector == "oracle" else None
    fingerprint = fingerprint_file(chosen_by) if chosen_by and chosen_by.is_file() else None
    there = _result(path, side, _identity(settings, sources, selector, fingerprint)).stands(overwrite)
    return _missing(shots_of(selector, settings), _read_standing(path) if there else [])


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


def _read_standing(path: Path) -> list[dict[str, Any]]:
    """The records of a row; none where so far it has a journal alone.

    Raises:
        RunError: As for `read_predictions`.
    """
    return read_predictions(path) if path.exists() else []


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a predictions file.

    Raises:
        RunError: it cannot be read, a line is damaged, or it does not hold the answers that its side file tells of.
    """
    records = []
    try:
        for number, line in enumerate(read_bytes_lines(path), 1):
            try:
                records.append(sound_record(parsed(line)))
            except ValueError as error:
                raise RunError(f"{path}, line {number}: {error}: no prediction of icdsel. {MENDING}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    there = Counter(record["shots"] for record in records)
    if len(there) > _MOST_ROWS:
        raise RunError(f"{path} has answers at {len(there):,} numbers of shots, {_MOST_ROWS} at most are read")
    told: dict[str, int] = {}
    with suppress(RunError):  # whoever needs its side file says what it lacks
        told = read_side_file(path.with_suffix(".meta.json")).get("answers", {})
    for shots, count in there.items():
        if (whole := told.get(str(shots), count)) != count:
            how = "it was cut" if count < whole else "some stand twice"
            raise RunError(f"{path} holds {count} of {whole} answers at {shots} shots: {how}. {MENDING}")
    return records


def _policy_file(settings: Settings, run: str | None, checkpoint: Path | None) -> Path:
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise CheckpointError(f"--checkpoint {checkpoint} {why_no_file(checkpoint)}")
        return checkpoint
    found = find_run(settings, run)
    path = found.checkpoint
    note(f"Policy: {path}")
    if not is_finished(found):
        warn(f"run {found.name} was not trained to its end: give its `icdsel train` again to finish it")
    with warnings.catch_warnings():  # `convert` says what Lever-Plus would ignore to those who ask for it
        warnings.simplefilter("ignore", ConversionWarning)
        try:
            if not is_converted(path):
                refuse_link(path.parent)
                convert(path, overwrite=True)
        except OSError as error:  # a read-only folder, a full disk: the answers do not need it
            warn(f"not converted for Lever-Plus: {of_system(error)}")
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
    binding = ("data.dataset", "data.embed", "dataset", "model", "encoder", "train_embeddings")
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


def _identity(settings: Settings, sources: Sources, selector: str, chosen_by: str | None) -> Identity:
    """Everything that decides a row; `chosen_by` is the fingerprint of the file that the selector chooses by."""
    made_of = identity(settings, "data", "vlm") | sources.identity
    made_of |= {"split": settings.infer.split, "queries": sources.fingerprint(settings.infer.split)}
    made_of |= {"selector": selector, "scorer": SCORER_VERSION}
    if selector.startswith("nearest") or selector == "majority":
        made_of["sampler_encoder"] = sources.sampler_encoder.fingerprint
    if chosen_by is not None:
        made_of["checkpoint" if selector == "policy" else "rl_data"] = chosen_by
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
