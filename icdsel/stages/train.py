"""The training stage: RL data in, a run's folder with checkpoints and metrics out."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from icdsel.artefacts import rl_data
from icdsel.artefacts.checkpoint import load_policy, require_width
from icdsel.artefacts.lever_plus_rl_data import GT_PROB_NOTE
from icdsel.artefacts.run_folder import (
    EVENTS_FOLDER,
    JOURNAL,
    LOG_FILE,
    LONGEST_NAME,
    METADATA_FILE,
    Run,
    is_finished,
    run_name,
    runs_dir,
)
from icdsel.console import note, out, progress, warn
from icdsel.errors import CheckpointError, RlDataError, RunError
from icdsel.policy.groups import make_groups, split_groups
from icdsel.policy.loop import make_network, train_policy
from icdsel.policy.network import PointerNetwork
from icdsel.policy.rewards import is_correct
from icdsel.records import QueryGroup
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings, on_training_queries
from icdsel.settings.names import flag
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages.generate import generate
from icdsel.stages.online import Rollouts, most_calls
from icdsel.stages.run_journal import RunJournal, clean_up, is_clean
from icdsel.stages.session import Session, open_session
from icdsel.stages.tensorboard import open_events, require_tensorboard
from icdsel.stages.warm_start import warm_groups
from icdsel.store.files import refuse_link, write_json
from icdsel.store.fingerprints import fingerprint_file, unchanged
from icdsel.store.lock import locked, waiting
from icdsel.store.metadata import Identity, read_metadata, read_metadata_files, update_metadata, write_metadata
from icdsel.store.reading import why_no_file
from icdsel.store.reuse import ASIDE, Result
from icdsel.store.run_log import log_only, log_to, logged
from icdsel.tasks.scoring import SCORER_VERSION

REMEDY = "Use --run NAME for a run of its own, or --overwrite to move the old one aside."

# What the screen shows of an epoch; the files have more.
_COLUMNS = {
    "expected_reward": "reward",
    "oracle_share": "of oracle",
    "kl": "KL",
    "no_signal_share": "no signal",
    "sample_reward": "samples",
    "vlm_calls": "VLM calls",
}


@logged
def train(
    settings: Settings,
    *,
    run: str | None = None,
    rl_data_files: Sequence[Path] = (),
    overwrite: bool = False,
    session: Session | None = None,
) -> Run:
    """Trains a policy and writes its run; makes the RL data where no file is named and they are missing.

    A run and RL data that were made of the same things stay as they are, and an interrupted run goes on after its last
    epoch. `overwrite` moves aside what was made of other things. `session`, where they are open already, are used as
    they are (`Session.under`).

    Raises:
        UserError: data, checkpoint or settings do not fit, or the run exists under other settings.
    """
    settings = on_training_queries(settings)
    if run is not None and (run in ("", "..") or Path(run).name != run):  # it would lie among no others
        raise RunError(f"--run {run} is no name of a folder: it may hold no / and must not be empty")
    if run and ASIDE in run:
        raise RunError(f"--run {run} is a name of what was moved aside: take one without {ASIDE}")
    if run and len(os.fsencode(run)) > LONGEST_NAME:  # what is answered with it has longer names
        raise RunError(f"--run {run} is too long a name: {LONGEST_NAME} letters at most")
    result = Run(runs_dir(settings) / (run or run_name(settings)))
    refuse_link(result.folder)
    require_files(settings, rl_data_files)
    if settings.train.tensorboard:
        require_tensorboard()
    usual = settings.usual()["train"]
    assert isinstance(usual, TrainSettings)
    start = network_to_start_from(settings.train, usual)
    session = session.under(settings) if session else open_session(settings)
    table = session.embeddings.to(session.vlm.device)
    seed = settings.data.seed if settings.train.train_seed is None else settings.train.train_seed
    if start is not None:  # what is unfit is refused before hours of scoring
        require_width(start, table.shape[1], settings.train.init)
    failed = 0
    if not (files := list(rl_data_files)):
        known = rl_data.rl_data_path(settings).exists()  # then their failures were told when they were made
        made = generate(settings, overwrite=overwrite, session=session)
        files, failed = [made.path], 0 if known else made.failed
    with unchanged(*files, settings.train.init, settings.train.warm_start):
        start = network_to_start_from(settings.train, usual)  # as it is now: scoring may have taken hours
        train_part, validation_part = split_groups(read_groups(files, session, settings.reward))
        warm = warm_groups(session, settings.train.warm_start) if settings.train.warm_start else None
        inputs = run_inputs(settings, session, files)
    network = start or make_network(settings.train, table.shape[1], seed)
    require_width(network, table.shape[1], settings.train.init)
    network = network.to(table.device)
    train_groups, validation_groups = (
        make_groups(part, session.train.row, settings.reward).to(table.device) for part in (train_part, validation_part)
    )
    side = result.folder / METADATA_FILE
    trained = f"run {result.name} is trained already with these settings"
    if is_trained(result, inputs, overwrite) and is_clean(result.folder):  # which may be read-only
        note(trained)
        return replace(result, failed=failed)
    with locked(result.folder, f"run {result.name}", RunError):
        if _result_of(result, inputs).claim(overwrite):
            if _is_whole(result):
                clean_up(result.folder)  # whoever finished it may have been killed before
                note(trained)
                return replace(result, failed=failed)
            if "finished" in read_metadata(side):
                warn(f"run {result.name} was finished, but its last checkpoint is gone or damaged: it is trained again")
        else:
            written = {"pair": settings.pair_name, "rl_data": list(map(str, files))}
            write_metadata(side, settings.model_dump(mode="json"), inputs, str(table.device), **written)
        log_to(result.folder / LOG_FILE, str(table.device))
        note(f"Training on {len(train_part)} queries, validating on {len(validation_part)}: run {result.name}")
        steps = (settings.train.rce_epochs + settings.train.grpo_epochs) * len(train_part)
        steps += settings.train.warm_epochs * len(warm.query) if warm else 0
        folder = result.folder / EVENTS_FOLDER if settings.train.tensorboard else None
        with open_events(folder) as events, progress("Training", steps) as advance:
            journal = RunJournal(result.folder, network, events, advance)
            resume = journal.resume()
            advance(journal.queries)
            rollouts = None
            if settings.train.online:
                note(f"GRPO asks the VLM {most_calls(settings.train, len(train_part)):,} times at most")
                online = result.folder / JOURNAL
                rollouts = Rollouts(session, train_part, settings.train, settings.reward, seed, online, advance)
                if resume and resume.phase == "grpo":
                    rollouts.replay(resume.epoch + 1)
                    if rollouts.calls != journal.epochs[-1].get("vlm_calls"):
                        raise RunError(
                            f"{online} lacks answers that earlier epochs were trained on: put it back, or move the "
                            "run's folder away, and give the same command again"
                        )
            train_policy(
                network,
                table,
                train_groups,
                validation_groups,
                settings.train,
                seed=seed,
                on_epoch=journal.keep,
                on_step=journal.step,
                warm=warm.to(table.device) if warm else None,
                rollouts=rollouts,
                resume=resume,
            )
        update_metadata(side, work=journal.work)
        _mark_finished(side)
        clean_up(result.folder)
        out.print(_table(journal.epochs))  # at last: there may be nobody to print to
    log_only(f"recommended checkpoint {result.checkpoint.name}")
    return replace(result, failed=failed + (rollouts.failed if rollouts else 0))


def require_files(settings: Settings, rl_data_files: Sequence[Path]) -> None:
    """Refuses to begin where a file that the training is to read is not there.

    Raises:
        RlDataError: it names the first such file.
    """
    for path in (*rl_data_files, settings.train.init, settings.train.warm_start):
        if path is not None and not path.is_file():
            raise RlDataError(f"{path} {why_no_file(path)}: give the path of a file")


def read_groups(files: Sequence[Path], session: Session, reward: RewardSettings) -> list[QueryGroup]:
    """The groups of all files together; says what was left out, and why.

    Raises:
        RlDataError: nothing is left.
    """
    ids = [example.question_id for example in session.train]
    sound = {"skip_fallback": reward.skip_fallback, "accept_unsound": reward.accept_unsound}
    read = [rl_data.read_rl_data(path, ids, **sound) for path in files]
    for path, data in zip(files, read, strict=True):
        for reason, count in data.rejected.items():
            if reason == GT_PROB_NOTE:
                note(f"{path}: {count} candidates: {reason}")
            else:
                warn(f"{path}: {count} candidates left out ({reason})")
    groups = rl_data.merge([data.groups for data in read])
    task = session.settings.data.task
    if other := next((group.task for group in groups if group.task != task), None):
        raise RlDataError(f"the RL data are of the task {other}, not of {task}: use --task {other}, or other RL data")
    if not reward.require_correct:
        return groups
    correct = [group for group in groups if any(is_correct(candidate) for candidate in group.candidates)]
    note(f"{len(groups) - len(correct)} queries without a correct pointer left out (--require-correct)")
    if not correct:
        raise RlDataError("no query has a correct pointer: train without --require-correct, or score more queries")
    return correct


def _is_whole(run: Run) -> bool:
    """Whether the run is finished, and what it ends with can be read."""
    if not is_finished(run):
        return False
    try:
        load_policy(run.checkpoint)
    except CheckpointError:
        return False
    return True


def is_trained(run: Run, inputs: Identity, overwrite: bool = False) -> bool:
    """Whether the folder holds this very run, finished; touches nothing.

    Raises:
        RunError: the folder holds something else and `overwrite` is False.
    """
    return _result_of(run, inputs).stands(overwrite) and _is_whole(run)


def _result_of(run: Run, inputs: Identity) -> Result:
    return Result(f"run {run.name}", (run.folder,), run.folder / METADATA_FILE, inputs, RunError, REMEDY)


def _mark_finished(side: Path) -> None:
    runs = side.parent.parent
    with waiting(runs, "the order of runs"):  # no two are the last
        content = read_metadata(side)
        others = [other.get("finished", 0) for _, other in read_metadata_files(runs.glob(f"*/{METADATA_FILE}"))]
        write_json(side, content | {"finished": max(others, default=0) + 1}, indent=1)


def run_inputs(settings: Settings, session: Session, files: Sequence[Path]) -> Identity:
    """Everything that decides what is trained."""
    init = settings.train.init
    warm = settings.train.warm_start
    silent = ["train.init", "train.warm_start", "train.tensorboard"]
    inputs = identity(settings, "data", "reward", "train", leave_out=silent)
    if settings.train.online:
        inputs |= identity(settings, "vlm") | {"scorer": SCORER_VERSION}
    return (
        inputs
        | session.identity
        | {
            "rl_data": [fingerprint_file(path) for path in files],
            "init": fingerprint_file(init) if init else None,
            "warm_start": fingerprint_file(warm) if warm else None,
        }
    )


def network_to_start_from(settings: TrainSettings, usual: TrainSettings) -> PointerNetwork | None:
    """The network of `--init`, with the dropouts of the settings; None where nothing is named.

    Its sizes are the checkpoint's. A size that was asked for and is another is a mistake.

    Args:
        settings: The settings of the training.
        usual: What they would be if nothing was said.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has other sizes than those asked for.
    """
    if settings.init is None:
        return None
    start = load_policy(settings.init)
    sizes = ("hidden_dim", "num_layers", "num_heads", "tower", "gate")
    asked = [name for name in sizes if getattr(settings, name) != getattr(usual, name)]
    other = [name for name in asked if getattr(settings, name) != getattr(start.config, name)]
    if other:
        told = ", ".join(f"{name} {getattr(start.config, name)}" for name in other)
        flags = ", ".join(flag(name, TrainSettings.model_fields[name]) for name in other)
        raise CheckpointError(
            f"--init {settings.init} is a network of {told}, another was asked for: leave out {flags}"
        )
    assert settings.dropout is not None and settings.attn_dropout is not None  # by recipe
    config = replace(start.config, dropout=settings.dropout, attn_dropout=settings.attn_dropout)
    network = PointerNetwork(config)
    network.load_state_dict(start.state_dict())
    return network


def _table(epochs: Sequence[Mapping[str, Any]]) -> Table:
    shown = {name: title for name, title in _COLUMNS.items() if any(name in epoch for epoch in epochs)}
    title = "Loss and, on held-out training queries, expected reward"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for title in ("epoch", "loss", *shown.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for epoch in epochs:
        values = [epoch.get(name) for name in (f"{epoch['phase']}_loss", *shown)]
        cells = ("" if v is None else f"{v:,.0f}" if v >= 100 else f"{v:.3f}" for v in values)  # calls, or a figure
        table.add_row(f"{epoch['phase']} {epoch['epoch']}", *cells)
    return table
