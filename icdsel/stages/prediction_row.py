"""The row of a selector: where its predictions are, and what decides them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.artefacts.candidates import SCORER_VERSION
from icdsel.artefacts.predictions import predictions_dir, read_predictions
from icdsel.errors import RunError
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.settings.tables import Selector
from icdsel.stages.selectors import random_seed, scored_path
from icdsel.stages.session import Session
from icdsel.store.fingerprints import fingerprint_file
from icdsel.store.metadata import Inputs
from icdsel.store.slot import Slot, State

REMEDY = "Use --overwrite to rename them to a backup, or --results-dir DIR for another place."


@dataclass(frozen=True)
class PredictionRow:
    """The predictions of a selector; numbers of shots that are requested later join the same file.

    Attributes:
        label: The name of the row: that of the selector, with the run and epoch of a policy, or the seed of `random`.
        subset: The name of the set of queries.
        shots: The requested numbers of shots.
        slot: The place of the predictions.
    """

    label: str
    subset: str
    shots: tuple[int, ...]
    slot: Slot

    def missing(self, records: Sequence[dict[str, Any]]) -> list[int]:
        """The requested numbers of shots that are not among the records."""
        return _missing(self.shots, records)


def prediction_row(
    session: Session, count: int, selector: Selector, policy_file: Path | None, chosen_by: str | None
) -> PredictionRow:
    """The row of a selector over `count` queries.

    Args:
        session: Settings and fingerprints.
        count: How many queries.
        selector: Its name.
        policy_file: The checkpoint of a policy.
        chosen_by: The fingerprint of the file that the selector chooses by, if there is one.
    """
    settings = session.settings
    label, subset, shots = _label(settings, selector, policy_file), _subset(settings, count), _shots(selector, settings)
    path = predictions_dir(settings) / f"{label}_{subset}.jsonl"
    inputs = _inputs(settings, session, selector, chosen_by)
    return PredictionRow(label, subset, shots, Slot(path, inputs, partial(_is_complete, path, shots), RunError, REMEDY))


def unanswered(
    session: Session, count: int, selector: Selector, policy_file: Path | None, overwrite: bool = False
) -> list[int]:
    """The numbers of shots at which the row of a selector over `count` queries lacks predictions; touches nothing.

    Raises:
        RunError: The row was created with different settings and `overwrite` is False.
    """
    settings = session.settings
    file = policy_file if selector == "policy" else scored_path(settings) if selector == "oracle" else None
    chosen_by = fingerprint_file(file) if file and file.is_file() else None
    row = prediction_row(session, count, selector, policy_file, chosen_by)
    exists = row.slot.peek(overwrite) is not State.MISSING
    return row.missing(read_existing(row.slot.path) if exists else [])


def read_existing(path: Path) -> list[dict[str, Any]]:
    """The records of a row; none if so far it has only a journal.

    Raises:
        RunError: As for `read_predictions`.
    """
    return read_predictions(path) if path.exists() else []


def _is_complete(path: Path, shots: Sequence[int]) -> bool:
    return not _missing(shots, read_existing(path))


def _missing(shots: Sequence[int], records: Sequence[dict[str, Any]]) -> list[int]:
    answered = {record["shots"] for record in records}
    return [count for count in shots if count not in answered]


def _shots(selector: Selector, settings: Settings) -> tuple[int, ...]:
    return (0,) if selector == "zero-shot" else settings.infer.shots


def _label(settings: Settings, selector: str, policy_file: Path | None) -> str:
    if selector == "policy" and policy_file is not None:
        return f"policy-{policy_file.absolute().parent.name}-{policy_file.stem}"
    return f"random-{random_seed(settings)}" if selector == "random" else selector


def _subset(settings: Settings, count: int) -> str:
    kind = "" if settings.infer.subset == "first" else f"-random-{settings.data.seed}"
    return f"{settings.infer.split}-{count}{kind}"


def _inputs(settings: Settings, session: Session, selector: str, chosen_by: str | None) -> Inputs:
    """Everything that decides the predictions of a row."""
    inputs = identity(settings, "data", "vlm") | session.identity
    inputs |= {"split": settings.infer.split, "queries": session.fingerprint(settings.infer.split)}
    inputs |= {"selector": selector, "scorer": SCORER_VERSION}
    if selector.startswith("nearest") or selector == "majority":
        inputs["sampler_encoder"] = session.sampler_encoder.fingerprint
    if chosen_by is not None:
        inputs["checkpoint" if selector == "policy" else "rl_data"] = chosen_by
    return inputs
