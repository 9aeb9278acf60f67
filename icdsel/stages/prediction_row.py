"""The row of a selector: where its predictions are stored, and which inputs decide them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from icdsel.artefacts.predictions import predictions_dir, read_predictions
from icdsel.errors import RunError
from icdsel.records import Prediction, Shots
from icdsel.selection import Selector
from icdsel.selection.fingerprints import Fingerprints
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.stages.policy_check import most_shots_of
from icdsel.stages.selection_context import fingerprints_of
from icdsel.stages.session import Session
from icdsel.store.metadata import Inputs
from icdsel.store.slot import Slot, State
from icdsel.tasks.scoring import SCORER_VERSION

REMEDY = "Use --overwrite to rename them to a backup, or --results-dir DIR for another place."


@dataclass(frozen=True)
class PredictionRow:
    """The predictions of a selector; numbers of shots that are requested later are added to the file.

    Attributes:
        label: The name of the row: that of the selector, with the run and epoch of a policy, or the seed of `random`.
        shown: Its short name, for tables and progress bars.
        subset: The name of the set of queries.
        shots: The requested numbers of shots.
        slot: The place of the predictions.
    """

    label: str
    shown: str
    subset: str
    shots: tuple[Shots, ...]
    slot: Slot

    def missing(self, records: Sequence[Prediction]) -> list[Shots]:
        """The requested numbers of shots that are not among the records."""
        return _missing(self.shots, records)


def prediction_row(
    session: Session, count: int, selector: Selector, policy_file: Path | None, fingerprints: Fingerprints
) -> PredictionRow:
    """The row of a selector over `count` queries.

    Args:
        session: Settings and fingerprints.
        count: How many queries.
        selector: The selector.
        policy_file: The checkpoint of a policy.
        fingerprints: Those of the files that selectors base their choices on.
    """
    settings = session.settings
    label, subset = selector.row_name(settings, policy_file), _subset(settings, count)
    shots = selector.shot_counts(settings.infer.shots)
    path = predictions_dir(settings) / f"{label}_{subset}.jsonl"
    inputs = _inputs(settings, session, selector, policy_file, fingerprints)
    slot = Slot(path, inputs, partial(_is_complete, path, shots), RunError, REMEDY)
    return PredictionRow(label, selector.short_name(label, policy_file), subset, shots, slot)


def unanswered(
    session: Session, count: int, selector: Selector, policy_file: Path | None, overwrite: bool = False
) -> list[Shots]:
    """The numbers of shots at which the row of a selector over `count` queries lacks predictions; writes nothing.

    Raises:
        RunError: The row was created with different settings and `overwrite` is False.
    """
    fingerprints = fingerprints_of(session, session.settings, policy_file)
    row = prediction_row(session, count, selector, policy_file, fingerprints)
    exists = row.slot.peek(overwrite) is not State.MISSING
    return row.missing(read_existing(row.slot.path) if exists else [])


def read_existing(path: Path) -> list[Prediction]:
    """The records of a row; none if so far it has only a journal.

    Raises:
        RunError: As for `read_predictions`.
    """
    return read_predictions(path) if path.exists() else []


def _is_complete(path: Path, shots: Sequence[Shots]) -> bool:
    return not _missing(shots, read_existing(path))


def _missing(shots: Sequence[Shots], records: Sequence[Prediction]) -> list[Shots]:
    answered = {record.shots for record in records}
    return [count for count in shots if count not in answered]


def _subset(settings: Settings, count: int) -> str:
    kind = "" if settings.infer.subset == "first" else f"-random-{settings.data.seed}"
    return f"{settings.infer.split}-{count}{kind}"


def _inputs(
    settings: Settings, session: Session, selector: Selector, policy_file: Path | None, fingerprints: Fingerprints
) -> Inputs:
    """Everything that decides the predictions of a row."""
    inputs = identity(settings, "data", "vlm") | session.identity
    inputs |= {"split": settings.infer.split, "queries": session.fingerprint(settings.infer.split)}
    inputs |= {"selector": selector.name, "scorer": SCORER_VERSION}
    most = settings.infer.max_shots
    if selector.can_stop and most is not None and policy_file and most_shots_of(policy_file) not in (most, None):
        inputs["infer.max_shots"] = most
    return inputs | selector.inputs(fingerprints)
