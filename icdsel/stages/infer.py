"""The inference stage: a selector chooses ICDs for every query, the VLM answers, predictions are written."""

import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.artefacts.candidates import SCORER_VERSION
from icdsel.artefacts.checkpoint import convert, is_converted
from icdsel.artefacts.lever_plus_checkpoints import ConversionWarning
from icdsel.artefacts.predictions import ALWAYS, predictions_dir, prompt_of, read_predictions
from icdsel.artefacts.run_folder import METADATA_FILE, find_run, is_finished
from icdsel.console import note, warn
from icdsel.errors import CheckpointError, RunError, of_system
from icdsel.records import Example
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.settings.tables import Selector
from icdsel.stages.answering import answer_queries, whole_units
from icdsel.stages.selectors import Selectors, random_seed, scored_path
from icdsel.stages.session import Queries, Session, open_session
from icdsel.store.files import journal_of, refuse_link, remove_leftovers, write_text
from icdsel.store.fingerprints import fingerprint_file
from icdsel.store.lock import locked
from icdsel.store.metadata import Identity, differences, read_metadata, update_metadata, write_metadata
from icdsel.store.reading import why_no_file
from icdsel.store.reuse import Result
from icdsel.store.run_log import log_only, log_to, logged

REMEDY = "Use --overwrite to move them aside, or --results-dir DIR for another place."


@dataclass(frozen=True)
class Row:
    """One selector's predictions: the file, and what its mean accuracy is at each number of shots."""

    name: str
    path: Path
    accuracy: dict[int, float]
    failed: int


@logged
def infer(
    settings: Settings,
    run: str | None = None,
    checkpoint: Path | None = None,
    overwrite: bool = False,
    *,
    session: Session | None = None,
    beside: Sequence[Selector] = ALWAYS,
) -> list[Row]:
    """Answers the queries with every selector of the settings, and with those that always stand `beside` them.

    Predictions that exist and were made of the same things are kept, so a row is never answered twice. `session`,
    where they are open already, are used as they are (`Session.under`).

    Raises:
        UserError: dataset, model, run or checkpoint are missing or do not fit; a shot count is above a pool.
    """
    asked = settings.infer.selector
    chosen = (*asked, *(name for name in beside if name not in asked))
    policy_file = _policy_file(settings, run, checkpoint) if "policy" in chosen else None
    session = session.under(settings) if session else open_session(settings)
    if policy_file:
        _check_policy(settings, session, policy_file)
    queries = session.queries(queries_to_answer(session), settings.infer.split, max(settings.infer.shots))
    choose = Selectors(session, queries, policy_file)
    rows = [_row(session, queries, choose, name, policy_file, overwrite) for name in chosen]
    if told := session.vlm.advice():
        note(told)
    return rows


@logged
def _row(
    session: Session,
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
    settings = session.settings
    label = _label(settings, selector, policy_file)
    subset = _subset_name(settings, len(queries.examples))
    path, side = _files(settings, label, subset)
    part = journal_of(path)
    result = _result(path, side, _identity(settings, session, selector, choose.fingerprint(selector)))
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
                write_metadata(
                    side,
                    settings.model_dump(mode="json"),
                    result.inputs,
                    str(session.vlm.device),
                    name=label,
                    set=subset,
                    **own,
                )
                log_to(log, str(session.vlm.device))
                records = _complete(session, queries, choose, label, selector, missing, records, path)
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


def _result(path: Path, side: Path, inputs: Identity) -> Result:
    return Result(str(path), (path, journal_of(path)), side, inputs, RunError, REMEDY)


def _complete(
    session: Session,
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
    new, images = answer_queries(session, queries, choose, selector, label, missing, journal_of(path))
    made = sorted([*records, *new], key=lambda record: int(record["shots"]))  # stable: queries keep their order
    # Before the answers: where they are fewer, they were cut.
    more: dict[str, Any] = {"answers": dict(Counter(str(record["shots"]) for record in made))}
    if images and selector != "majority":
        more["work"] = {"answering": {"seconds": time.monotonic() - started, "count": images}}
    update_metadata(path.with_suffix(".meta.json"), **more)
    write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in made))
    return made


def unanswered(
    session: Session, count: int, selector: Selector, policy_file: Path | None, overwrite: bool = False
) -> list[int]:
    """The numbers of shots at which a selector's row over `count` queries lacks predictions; touches nothing.

    Raises:
        RunError: the row was made under other settings and `overwrite` is False.
    """
    settings = session.settings
    label = _label(settings, selector, policy_file)
    path, side = _files(settings, label, _subset_name(settings, count))
    chosen_by = policy_file if selector == "policy" else scored_path(settings) if selector == "oracle" else None
    fingerprint = fingerprint_file(chosen_by) if chosen_by and chosen_by.is_file() else None
    there = _result(path, side, _identity(settings, session, selector, fingerprint)).stands(overwrite)
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


def _check_policy(settings: Settings, session: Session, policy_file: Path) -> None:
    """Refuses a policy that was trained on other data, for another model or on other embeddings.

    Raises:
        CheckpointError: it names what differs. A checkpoint without a run beside it cannot be checked.
    """
    side = policy_file.parent / METADATA_FILE
    if not side.exists():
        return
    trained = read_metadata(side)["identity"]
    now = identity(settings, "data") | session.identity
    binding = ("data.dataset", "data.embed", "dataset", "model", "encoder", "train_embeddings")
    told = differences(*({name: inputs.get(name) for name in binding} for inputs in (trained, now)))
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


def _identity(settings: Settings, session: Session, selector: str, chosen_by: str | None) -> Identity:
    """Everything that decides a row; `chosen_by` is the fingerprint of the file that the selector chooses by."""
    inputs = identity(settings, "data", "vlm") | session.identity
    inputs |= {"split": settings.infer.split, "queries": session.fingerprint(settings.infer.split)}
    inputs |= {"selector": selector, "scorer": SCORER_VERSION}
    if selector.startswith("nearest") or selector == "majority":
        inputs["sampler_encoder"] = session.sampler_encoder.fingerprint
    if chosen_by is not None:
        inputs["checkpoint" if selector == "policy" else "rl_data"] = chosen_by
    return inputs


def queries_to_answer(session: Session) -> list[Example]:
    """The queries to answer."""
    settings = session.settings
    split = session.split(settings.infer.split)
    wanted = len(split) if settings.infer.n == -1 else settings.infer.n
    if wanted > len(split):
        note(f"{wanted} queries were asked for, {split.name} has {len(split)}: taking all")
        wanted = len(split)
    rows = list(range(wanted))
    if settings.infer.subset == "random":
        rows = sorted(random.Random(settings.data.seed).sample(range(len(split)), wanted))
    return [split[row] for row in rows]
