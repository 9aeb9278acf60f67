"""The inference stage: selectors choose ICDs for every query, the VLM answers, predictions are written."""

import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icdsel.artefacts.checkpoint import foreign_warning
from icdsel.artefacts.checkpoint_conversion import ConversionWarning, convert_checkpoint, is_converted
from icdsel.artefacts.run_folder import find_run, is_finished
from icdsel.console import logger, note, warn
from icdsel.errors import CheckpointError, SettingsError, of_system
from icdsel.records import AUTO, Example, Prediction, Shots, shots_order
from icdsel.selection import SELECTORS, Selector, always_shown, selectors_named
from icdsel.selection.context import Context
from icdsel.selection.fingerprints import Fingerprints
from icdsel.settings.loading import Settings
from icdsel.stages.answering import Prompts, answer_prompts, complete_units
from icdsel.stages.policy_check import most_shots_of, require_fitting
from icdsel.stages.prediction_row import PredictionRow, prediction_row, read_existing
from icdsel.stages.selection_context import fingerprints_of, open_context
from icdsel.stages.session import Session
from icdsel.stages.threads import use_threads
from icdsel.store.reading import why_no_file
from icdsel.store.run_log import history
from icdsel.store.slot import Result, State
from icdsel.tasks.base import TASKS, Task


@dataclass(frozen=True)
class Row:
    """The predictions of a selector.

    Attributes:
        name: The name of the row.
        shown: Its short name, for tables.
        path: The file.
        shots: The numbers of shots that were asked for.
        score: The task's score of all queries together by number of shots.
        failed: How many VLM calls failed.
    """

    name: str
    shown: str
    path: Path
    shots: tuple[Shots, ...]
    score: dict[Shots, float]
    failed: int


@history()
def infer(
    settings: Settings,
    run: str | None = None,
    checkpoint: Path | None = None,
    overwrite: bool = False,
    *,
    session: Session | None = None,
    with_baselines: bool = True,
) -> list[Row]:
    """Answers the queries with the ICDs of every selector of the settings, and of the baselines.

    Existing predictions with the same inputs are reused, so no prompt is answered twice.

    Args:
        settings: Everything that decides the predictions.
        run: The run whose policy chooses; by default the last one that was finished.
        checkpoint: The policy itself, instead of a run.
        overwrite: Rename predictions that were created with different settings to a backup.
        session: An open session, if there is one (`Session.under`).
        with_baselines: Whether to add the selectors that every comparison needs.

    Raises:
        UserError: Dataset, model, run or checkpoint are missing or do not fit; a pool is smaller than a number of
            shots; the policy may not stop, or no selector does, with `--shots auto`.
    """
    names = dict.fromkeys((*settings.infer.selector, *(always_shown() if with_baselines else ())))
    selectors = selectors_named(names, settings.data.pool_size)
    policy_file = _policy_file(settings, run, checkpoint) if any(s.needs_policy for s in selectors) else None
    settings = _with_max_shots(settings, selectors, policy_file)
    selectors = _evaluated(selectors, settings)
    session = session.under(settings) if session else Session(settings)
    if policy_file:
        require_fitting(policy_file, session)
    examples = queries_to_answer(session)
    if (images := len({query.image_id for query in examples})) < len(examples):
        note(f"The {len(examples)} queries share {images} images; comparisons count an image's queries together.")
    if unlabelled := sum(not query.answers for query in examples):
        note(f"{unlabelled} of the {len(examples)} queries have no reference answers: they are answered, not scored.")
    queries = session.queries(examples, settings.infer.split, settings.most_shots)
    fingerprints = fingerprints_of(session, settings, policy_file)
    context = open_context(session, queries, policy_file, fingerprints)
    rows = [_row(session, context, selector, policy_file, fingerprints, overwrite) for selector in selectors]
    if advice := session.advice():
        note(advice)
    scores = [
        score
        for selector, row in zip(selectors, rows, strict=True)
        for score in row.score.values()
        if selector.needs_vlm
    ]
    if scores and not any(scores) and (warning := session.cut_warning()):
        warn(warning)
    return rows


@history()
def _row(
    session: Session,
    context: Context,
    selector: Selector,
    policy_file: Path | None,
    fingerprints: Fingerprints,
    overwrite: bool,
) -> Row:
    """The predictions of a selector, with those for missing numbers of shots added.

    Raises:
        RunError: The row was created with different settings, or another process is writing it.
    """
    row = prediction_row(session, len(context.queries), selector, policy_file, fingerprints)
    with row.slot.open(overwrite) as result:
        records = [] if result.state is State.MISSING else read_existing(row.slot.path)
        if missing := row.missing(records):
            checkpoint = {"checkpoint": str(policy_file)} if selector.needs_policy else {}
            # A VLM that cannot be loaded ends the command here, before anything is renamed or written.
            prompts = Prompts(session, context, selector, row.shown, missing)
            device = session.vlm.device if prompts.needs_vlm else session.vlm_device
            settings, threads = session.settings.model_dump(mode="json"), use_threads(session.settings, result)
            result.begin(settings, device, threads, name=row.label, set=row.subset, **checkpoint)
            records = _answer(session, prompts, records, result)
        else:
            note(f"{row.shown}: answered already, {row.slot.path}")
        # Prompts for numbers of shots that were not requested this time stay in the journal.
        if result.journal.path.exists() and complete_units(result.journal).keys() <= {
            record.prompt for record in records
        }:
            result.journal.remove()
        data = session.settings.data
        return _summary(TASKS.named(data.task).named_by(data.metric), row, records)


def _answer(session: Session, prompts: Prompts, records: Sequence[Prediction], result: Result) -> list[Prediction]:
    """Answers the prompts, and writes the row with its existing `records`."""
    started = time.monotonic()
    new, images = answer_prompts(session, prompts, result.journal)
    complete = sorted(
        [*records, *new], key=lambda record: shots_order(record.shots)
    )  # stable: queries keep their order
    work = {"answering": {"seconds": time.monotonic() - started, "count": images}}
    result.commit(
        "".join(f"{json.dumps(record.to_json(), ensure_ascii=False)}\n" for record in complete).encode(
            errors="surrogateescape"
        ),
        answers=dict(Counter(str(record.shots) for record in complete)),
        work=work if images else None,
    )
    return complete


def _summary(task: Task, row: PredictionRow, records: Sequence[Prediction]) -> Row:
    scores: dict[Shots, list[float]] = {}
    for record in records:
        if record.score is not None and record.shots in row.shots:
            scores.setdefault(record.shots, []).append(record.score)
    failed = sum(record.error is not None for record in records)
    score = {shots: float(task.aggregate(np.array(values))) for shots, values in scores.items()}
    figures = ", ".join(f"{shots}: {task.text(value)}" for shots, value in score.items())
    logger.debug(f"{row.label}: {task.score_name} by shots {figures}; {failed} calls failed")
    return Row(row.label, row.shown, row.slot.path, row.shots, score, failed)


def _policy_file(settings: Settings, run: str | None, checkpoint: Path | None) -> Path:
    """The checkpoint of the policy; that of a run is converted for Lever-Plus too."""
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise CheckpointError(f"--checkpoint {checkpoint} {why_no_file(checkpoint)}")
        if foreign := foreign_warning(checkpoint):
            warn(foreign)
        return checkpoint
    found = find_run(settings, run)
    path = found.checkpoint
    note(f"Policy: {path}")
    if not is_finished(found):
        warn(f"the training of run {found.name} is not finished: run its `icdsel train` command again to finish it")
    if found.is_bundle:
        return path
    with warnings.catch_warnings():  # what Lever-Plus would ignore is reported by `icdsel convert`
        warnings.simplefilter("ignore", ConversionWarning)
        try:
            if not is_converted(path):
                convert_checkpoint(path, overwrite=True)
        except CheckpointError as error:  # a policy that Lever-Plus cannot represent
            logger.debug(str(error))
        except OSError as error:  # a read-only folder, a full disk: inference does not need the conversion
            warn(f"not converted for Lever-Plus: {of_system(error)}")
    return path


def _with_max_shots(settings: Settings, selectors: Sequence[Selector], policy_file: Path | None) -> Settings:
    """The settings with the maximum number of ICDs of `--shots auto`, by default what the policy was trained on.

    Raises:
        SettingsError: None of the selectors can stop.
        CheckpointError: The policy may not stop.
    """
    infer = settings.infer
    if all(isinstance(shots, int) for shots in infer.shots):
        return settings
    if not any(selector.can_stop for selector in selectors):
        names = ", ".join(selector.name for selector in SELECTORS.values() if selector.can_stop)
        raise SettingsError(f"--shots {AUTO} needs a selector that decides how many ICDs to show: --selector {names}")
    most = infer.max_shots
    if policy_file:
        trained = most_shots_of(policy_file)
        if trained is None:
            raise CheckpointError(
                f"{policy_file} cannot decide how many ICDs to show, since it was trained without STOP: choose "
                "numbers, as in --shots 1,2, or train a policy that may stop with `icdsel train --min-shots 0`"
            )
        most = most or trained
        if most > trained:
            warn(f"--max-shots {most} is more than the {trained} ICDs that the policy was trained to show")
    return settings.model_copy(update={"infer": infer.model_copy(update={"max_shots": most})})


def _evaluated(selectors: Sequence[Selector], settings: Settings) -> list[Selector]:
    """The selectors that are evaluated at any of the requested numbers of shots; the others are reported."""
    shots = settings.infer.shots
    evaluated = [selector for selector in selectors if selector.shot_counts(shots)]
    if left_out := [selector.name for selector in selectors if selector not in evaluated]:
        note(
            f"{', '.join(left_out)} cannot decide how many ICDs to show, and are left out: give numbers of --shots too"
        )
    return evaluated


def queries_to_answer(session: Session) -> list[Example]:
    """The queries to answer."""
    settings = session.settings
    split = session.split(settings.infer.split)
    wanted = len(split) if settings.infer.n == -1 else settings.infer.n
    if wanted > len(split):
        note(f"{wanted} queries were requested, {split.name} has {len(split)}: using all of them")
        wanted = len(split)
    rows = list(range(wanted))
    if settings.infer.subset == "random":
        rows = sorted(random.Random(settings.data.seed).sample(range(len(split)), wanted))
    return [split[row] for row in rows]
