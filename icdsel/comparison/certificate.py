"""The certificate of a policy that may stop: at which offsets it is not worse than zero-shot by more than a tolerance.

It is computed from predictions alone: those of zero-shot, and those of the policy at `OFFSETS`, over queries that it
was not trained on. The same predictions give the same certificate.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icdsel.artefacts.rl_data import metadata_path
from icdsel.artefacts.run_folder import METADATA_FILE, trained_on
from icdsel.comparison.scores import Scores
from icdsel.comparison.sources import Source, read_answers
from icdsel.comparison.statistics import Clusters, certify
from icdsel.errors import RunError, SettingsError
from icdsel.records import Shots, auto_shots, id_order, stop_offset
from icdsel.store.files import write_json
from icdsel.store.metadata import read_metadata
from icdsel.store.run_log import command_words
from icdsel.tasks.base import TASKS, Task, mean

CERTIFICATE_FILE = "certificate.json"
LEVEL = 0.95
OFFSETS = (*range(10, 4, -1), *(k / 2 for k in range(8, -9, -1)), *range(-5, -11, -1))
"""Offsets for stopping in nats, from a policy that hardly shows anything to one that hardly ever stops.

They are fixed before any query is seen, as the tests demand, and tried in this order.
"""
GRID: tuple[Shots, ...] = tuple(auto_shots(offset) for offset in OFFSETS)
"""The numbers of shots at which a certificate needs the policy's answers."""

_FINGERPRINTS = ("checkpoint", "model", "dataset", "queries", "encoder")


@dataclass(frozen=True)
class Step:
    """The policy at one offset.

    Attributes:
        shots: The name of its rows, such as `auto+1`.
        mean_shots: The mean number of ICDs that it shows.
        shown_none: The share of the queries with which it shows none, in percent.
        difference: Its score less that of zero-shot, in the unit of the task.
        p_value: Of "it is worse than zero-shot by more than delta".
        certified: Whether it is not, with the certificate's confidence for all certified steps together.
    """

    shots: str
    mean_shots: float
    shown_none: float
    difference: float
    p_value: float
    certified: bool


@dataclass(frozen=True)
class Certificate:
    """What is certified, of which policy, on which queries.

    Attributes:
        delta: The tolerance, in the unit of the task (of the VQA accuracy: points).
        confidence: The probability with which the statement holds.
        shots: The certified offset that shows most, such as `auto+1`; 0 if only zero-shot itself is certified.
        offset: The same as a number; None for zero-shot.
        split: The split of the queries.
        set: The set of queries.
        n: How many queries.
        images: How many images they are on.
        seed: Decides the order in which the images are tested.
        steps: All offsets, in the order of the tests.
        fingerprints: Of checkpoint, model, dataset and queries.
        files: The predictions.
        command: What computed it; it does so again from the predictions.
    """

    delta: float
    confidence: float
    shots: Shots
    offset: float | None
    split: str
    set: str
    n: int
    images: int
    seed: int
    steps: Sequence[Step]
    fingerprints: dict[str, Any]
    files: Sequence[str]
    command: str

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, asdict(self), indent=1)


def require_delta(delta: float, task: Task) -> None:
    """Checks that a task's scores can be certified, with this tolerance.

    Raises:
        SettingsError: They cannot.
    """
    lowest, highest = task.bounds
    if not math.isfinite(highest - lowest) or task.aggregate is not mean:
        raise SettingsError(
            f"--certify needs scores within bounds, whose mean is reported; those of {task.name} are not"
        )
    most = task.factor * (highest - lowest)
    if not 0 <= delta < most:
        raise SettingsError(f"--certify takes a tolerance of 0 to below {most:g} {task.unit}, not {delta:g}")


def certificate_of(zero_shot: Path, policy: Path, delta: float, seed: int) -> Certificate:
    """The certificate that files of predictions give.

    Args:
        zero_shot: The predictions of zero-shot.
        policy: Those of the policy over the same queries, at every offset of `GRID`.
        delta: The tolerance, in the unit of the task.
        seed: Decides the order of the images.

    Raises:
        RunError: Predictions are missing, damaged or of different queries, or of those that the policy was trained on.
        SettingsError: The tolerance is out of range.
    """
    rows = {row.scores.shots: row for row in read_answers(policy)}
    nothing = next((row for row in read_answers(zero_shot) if row.scores.shots == 0), None)
    if missing := [str(shots) for shots in GRID if shots not in rows]:
        raise RunError(f"{policy} has no answers at {', '.join(missing)}: create them with `icdsel infer --certify`")
    if nothing is None or any(nothing.asked != rows[shots].asked for shots in GRID):
        raise RunError(f"{zero_shot} and {policy} are not over the same queries")
    source = rows[GRID[0]].source
    task = TASKS.named(source.task)
    require_delta(delta, task)
    _require_unseen(source)
    scores = [row.scores for row in (nothing, *(rows[shots] for shots in GRID))]
    common = frozenset.intersection(*(frozenset(own.by_query) for own in scores))  # without failed calls
    if not common:
        raise RunError(f"no query has an answer in every row of {zero_shot} and {policy}, because calls failed")
    baseline, *steps = (own.among(common) for own in scores)
    clusters = _clusters(baseline)
    losses = np.stack([baseline.values - step.values for step in steps])  # (G, n)
    low, high = task.bounds
    found = certify(losses, delta / task.factor, clusters=clusters, seed=seed, span=high - low, level=LEVEL)
    names = [str(step.shots) for step in steps]
    last = names[found.certified - 1] if found.certified else None
    return Certificate(
        delta=delta,
        confidence=LEVEL,
        shots=last or 0,
        offset=stop_offset(last) if last else None,
        split=source.split,
        set=source.subset,
        n=len(common),
        images=clusters.count,
        seed=seed,
        steps=tuple(
            Step(
                shots=name,
                mean_shots=round(step.mean_shots or 0.0, 4),
                shown_none=round(100 * (step.shown_none or 0.0), 4),
                difference=task.in_unit(-float(own.mean())),
                p_value=float(p_value),
                certified=place < found.certified,
            )
            for place, (name, step, own, p_value) in enumerate(zip(names, steps, losses, found.p_values, strict=True))
        ),
        fingerprints={name: source.identity[name] for name in _FINGERPRINTS if name in source.identity},
        files=(str(zero_shot), str(policy)),
        command=shlex.join(command_words()),
    )


def _clusters(row: Scores) -> Clusters:
    """Queries of one image together, in the order of `Scores.values`; queries of an unknown image stand alone."""
    return Clusters([(i in row.images, row.images.get(i, i)) for i in sorted(row.by_query, key=id_order)])


def _require_unseen(source: Source) -> None:
    """Checks that the policy was not trained on the queries, as far as its run says what it was trained on.

    Raises:
        RunError: It was.
    """
    if source.split == "train":
        raise RunError(f"{source.path} answers the training split, which the policy was trained on: certify on another")
    run = source.checkpoint.parent / METADATA_FILE if source.checkpoint else None
    if run is None or not run.exists():
        return
    for file, _ in trained_on(read_metadata(run)):
        path = metadata_path(file)
        queries = read_metadata(path).inputs.get("queries") if path.exists() else None
        if queries is not None and queries == source.identity.get("queries"):
            raise RunError(
                f"the policy was trained on the {source.split} queries ({file}): certify it on others, with --split"
            )
