"""Trains a policy: from RL data to the folder of a run, with a checkpoint and a line of metrics for each epoch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from icdsel.artefacts import rl_data
from icdsel.artefacts.checkpoint import foreign_warning, load_policy
from icdsel.artefacts.run_folder import (
    JOURNAL,
    LOG_FILE,
    LONGEST_NAME,
    METADATA_FILE,
    Run,
    is_finished,
    last_checkpoint,
    run_name,
    runs_dir,
)
from icdsel.console import Advance, logger, note, out, progress, warn
from icdsel.errors import CheckpointError, RlDataError, RunError
from icdsel.policy.groups import Groups, make_groups, split_groups
from icdsel.policy.loop import Resume, train_policy
from icdsel.policy.network import PointerNetwork
from icdsel.policy.references import scores_references
from icdsel.records import QueryGroup
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings, on_training_queries
from icdsel.settings.presets import RECIPES
from icdsel.stages.generate import generate
from icdsel.stages.policy_check import candidates_for, require_fitting, trained_for
from icdsel.stages.session import Session
from icdsel.stages.threads import use_threads
from icdsel.stages.training.initial_policy import initial_policy, new_policy, with_stop
from icdsel.stages.training.online import Rollouts, most_calls
from icdsel.stages.training.proposer_check import compare_with_proposer
from icdsel.stages.training.recommendation import recommend
from icdsel.stages.training.run_journal import RESTART, RESUME_FILE, RunJournal
from icdsel.stages.training.tracked_run import tracked_run
from icdsel.stages.training.training_data import read_groups, require_files, require_signal, stops
from icdsel.stages.training.warm_start import warm_groups
from icdsel.store.backup import BACKUP
from icdsel.store.fingerprints import fingerprint_file, unchanged
from icdsel.store.journal import Journal
from icdsel.store.lock import locked
from icdsel.store.metadata import Inputs, read_metadata_files
from icdsel.store.run_log import history
from icdsel.store.slot import FolderSlot, Result
from icdsel.tasks.scoring import SCORER_VERSION
from icdsel.trackers import require
from icdsel.vlm.devices import resolve_device

REMEDY = "Use --run NAME for a separate run, or --overwrite to rename the existing one to a backup."

# The metrics of the table on the screen; the file has more.
_COLUMNS = {
    "expected_reward": "reward",
    "oracle_share": "of oracle",
    "kl": "KL",
    "no_signal_share": "no signal",
    "sample_reward": "samples",
    "vlm_calls": "VLM calls",
}


@dataclass(frozen=True)
class _Data:
    """The data of a training.

    Attributes:
        start: The network of `--init`.
        train: The queries to train on.
        validation: The queries to measure on.
        warm: The beams of `--warm-start`.
        vlm_known: Whether it is the VLM of the settings that scored the pointers, so that it may score more.
    """

    start: PointerNetwork | None
    train: list[QueryGroup]
    validation: list[QueryGroup]
    warm: Groups | None
    vlm_known: bool


@history()
def train(
    settings: Settings,
    *,
    run: str | None = None,
    rl_data_files: Sequence[Path] = (),
    overwrite: bool = False,
    session: Session | None = None,
) -> Run:
    """Trains a policy; generates the RL data first if no file is named and they are missing.

    An interrupted run is resumed after its last epoch; a run and RL data with the same inputs are reused.

    Args:
        settings: Everything that decides the training.
        run: The name of the run; by default made from the settings.
        rl_data_files: What to train on; by default the RL data of the settings.
        overwrite: Rename a run or RL data that were created with different settings to a backup.
        session: An open session, if there is one (`Session.under`).

    Raises:
        UserError: Data, checkpoint or settings do not fit, or the run was created with different settings.
    """
    settings = on_training_queries(settings)
    scores_references(settings)  # rejects `--references none` with a reward that needs them, before any work
    trained = Run(runs_dir(settings) / _require_name(run or run_name(settings), run))
    require_files(settings, rl_data_files)
    require(settings.train.trackers)
    device = resolve_device(settings.train.device, "--train-device")
    start = initial_policy(settings.train)
    session = session.under(settings) if session else Session(settings)
    if (start_file := settings.train.init) and (foreign := foreign_warning(start_file)):
        warn(foreign)
    if start_file and start is not None:  # checked before hours of scoring
        candidates_for(start, session, start_file)
        require_fitting(start_file, session, same_data=False)
    files, failed = list(rl_data_files), 0
    if not files:
        exists = rl_data.rl_data_path(settings).exists()  # its failures were reported when it was generated
        generated = generate(settings, overwrite=overwrite, session=session)
        files, failed = [generated.path], 0 if exists else generated.failed
    warm_start = settings.train.warm_start
    with unchanged(*files, settings.train.init, warm_start):
        start = initial_policy(settings.train)  # read again: it may have changed during hours of scoring
        train_part, validation = split_groups(read_groups(files, session, settings.reward))
        warm = warm_groups(session, warm_start) if warm_start else None
        inputs = run_inputs(settings, session, files)
    with run_slot(trained, inputs).open(overwrite) as result:
        if result.complete:
            note(f"run {trained.name} is trained already with these settings")
        else:
            vlm_known = not rl_data_files or settings.train.online
            data = _Data(start, train_part, validation, warm, vlm_known)
            failed += _train(session, data, device, files, result)
            logger.debug(f"recommended checkpoint {trained.checkpoint.name}")
    return replace(trained, failed=failed)


def run_slot(run: Run, inputs: Inputs) -> FolderSlot:
    """The place of a run."""
    is_complete = partial(_is_complete, run)
    return FolderSlot(run.folder, inputs, is_complete, RunError, REMEDY, METADATA_FILE, LOG_FILE, RESUME_FILE)


def run_inputs(settings: Settings, session: Session, files: Sequence[Path]) -> Inputs:
    """Everything that decides the checkpoints of a run that is trained on these files."""
    init, warm_start = settings.train.init, settings.train.warm_start
    inputs = identity(settings, "data", "reward", "train", leave_out=["train.init", "train.warm_start"])
    if settings.train.online:
        inputs |= identity(settings, "vlm") | {"scorer": SCORER_VERSION}
    return (
        inputs
        | session.identity
        | {
            "rl_data": [fingerprint_file(path) for path in files],
            "init": fingerprint_file(init) if init else None,
            "warm_start": fingerprint_file(warm_start) if warm_start else None,
        }
    )


def _require_name(name: str, given: str | None) -> str:
    """The name of a run, if it can be one; `given` is what the user gave.

    Raises:
        RunError: It cannot; the message has the reason.
    """
    if given is not None and (given in ("", "..") or Path(given).name != given):  # it would be outside of the runs
        raise RunError(f"--run {given} is not the name of a folder: it must not be empty or contain /")
    if given and BACKUP in given:
        raise RunError(f"--run {given} is the name of a backup: use one without {BACKUP}")
    if given and len(os.fsencode(given)) > LONGEST_NAME:  # predictions have longer names made from it
        raise RunError(f"--run {given} is too long a name: the maximum is {LONGEST_NAME} bytes")
    return name


def _is_complete(run: Run) -> bool:
    """Whether the run is finished, and its last checkpoint and the recommended one can be read."""
    if not is_finished(run):
        return False
    try:
        for path in {run.checkpoint, last_checkpoint(run.folder)}:
            load_policy(path)
    except CheckpointError:
        return False
    return True


def _train(session: Session, data: _Data, device: torch.device, files: Sequence[Path], result: Result) -> int:
    """Trains, or resumes the training; returns how many VLM calls failed."""
    settings, folder = session.settings, result.slot.path
    threads = use_threads(settings, result)
    seed = settings.data.seed if settings.train.train_seed is None else settings.train.train_seed
    stop, most = stops(settings.train, [*data.train, *data.validation])
    network = data.start or new_policy(session, settings.train, seed, stop)
    table = candidates_for(network, session, settings.train.init).to(device)  # (N, d) or (N, d + a)
    network = (with_stop(network) if stop else network).to(table.device)
    train_groups, validation_groups = (
        make_groups(part, session.train.row, settings.reward, RECIPES[settings.train.recipe].std_floor, most).to(
            table.device
        )
        for part in (data.train, data.validation)
    )
    little = require_signal(train_groups, settings.train)
    if little:
        warn(little)
    if result.metadata and result.metadata.finished:
        warn(f"run {folder.name} was finished, but its last checkpoint is missing or damaged: it is trained again")
    if settings.train.online:
        _ = session.vlm  # if it cannot be loaded, the command ends before anything is renamed or written
    result.begin(
        settings.model_dump(mode="json"),
        str(table.device),
        threads,
        pair=settings.pair_name,
        rl_data=list(map(str, files)),
    )
    queries = f"{len(data.train)} queries, validating on {len(data.validation)}"
    note(f"Training on {queries}, on {table.device}: run {folder.name}")
    steps = (settings.train.rce_epochs + settings.train.grpo_epochs) * len(data.train)
    steps += settings.train.warm_epochs * len(data.warm.query) if data.warm else 0
    with tracked_run(settings, folder) as tracking:
        with progress("Training", steps) as advance:
            journal = RunJournal(folder, network, tracking, advance, trained_for(session, files, most))
            resume = journal.resume()
            advance(journal.queries)
            rollouts = _rollouts(session, data, seed, journal, resume, advance) if settings.train.online else None
            train_policy(
                network,
                table,
                train_groups,
                validation_groups,
                settings.train,
                seed=seed,
                on_epoch=journal.keep,
                on_step=journal.step,
                warm=data.warm.to(table.device) if data.warm else None,
                rollouts=rollouts,
                resume=resume,
            )
        recommended = recommend(folder, journal.epochs, table, validation_groups)
        policy = load_policy(recommended).to(table.device)
        compared = compare_with_proposer(session, data.validation, validation_groups, table, policy, data.vlm_known)
        commit_run(result, journal.work, recommended.name, compared.to_json() if compared else None)
        tracking.log_recommended(recommended.name)
    if little:
        warn(little)  # again, next to the figures that it makes worthless
    out.print(_table(journal.epochs), soft_wrap=False)  # last, because stdout may be closed
    return (rollouts.failed if rollouts else 0) + (compared.failed if compared else 0)


def _rollouts(
    session: Session, data: _Data, seed: int, journal: RunJournal, resume: Resume | None, advance: Advance
) -> Rollouts:
    """The samples of online GRPO, including those of an interrupted training's epochs.

    Raises:
        RunError: Some of those are missing.
    """
    settings, path = session.settings, journal.folder / JOURNAL
    note(f"GRPO queries the VLM at most {most_calls(settings.train, len(data.train)):,} times")
    online = Journal(path, RlDataError)
    rollouts = Rollouts(session, data.train, settings.train, settings.reward, seed, online, advance)
    if resume and resume.phase == "grpo":
        rollouts.replay(resume.epoch + 1)
        if rollouts.calls != journal.epochs[-1].get("vlm_calls"):
            raise RunError(f"{path} lacks answers that earlier epochs were trained on: restore it, or {RESTART}")
    return rollouts


def commit_run(
    result: Result,
    work: Mapping[str, Mapping[str, float]],
    recommended: str | None = None,
    held_out: Mapping[str, float] | None = None,
) -> None:
    """Completes a run as the last one of its dataset: `finished` is larger than that of every other run."""
    runs = result.slot.path.parent
    with locked(runs, "the order of runs"):
        numbers = [metadata.finished or 0 for _, metadata in read_metadata_files(runs.glob(f"*/{METADATA_FILE}"))]
        finished = max(numbers, default=0) + 1
        result.commit(work=work, recommended=recommended, held_out=held_out, finished=finished)


def _table(epochs: Sequence[Mapping[str, Any]]) -> Table:
    shown = {name: title for name, title in _COLUMNS.items() if any(name in epoch for epoch in epochs)}
    title = "Loss and, on held-out training queries, expected reward"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for title in ("epoch", "loss", *shown.values()):
        table.add_column(title.replace(" ", "\n"), justify="right", no_wrap=True)  # so that 80 columns are enough
    for epoch in epochs:
        cells = (_cell(name, epoch.get(name)) for name in (f"{epoch['phase']}_loss", *shown))
        table.add_row(f"{epoch['phase']} {epoch['epoch']}", *cells)
    return table


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if name == "vlm_calls" or value >= 100 else f"{value:.3f}"
