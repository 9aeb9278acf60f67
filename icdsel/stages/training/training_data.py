"""Reads the RL data of a training, and checks that all of its files exist."""

from collections.abc import Sequence
from pathlib import Path

from icdsel.artefacts import rl_data
from icdsel.artefacts.lever_plus_rl_data import GT_PROB_NOTE
from icdsel.console import note, warn
from icdsel.errors import NoSignalError, RlDataError
from icdsel.policy.groups import Groups, require_scores
from icdsel.policy.losses import signal_strength
from icdsel.policy.rewards import is_correct
from icdsel.records import QueryGroup
from icdsel.settings.loading import Settings
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages.session import Session
from icdsel.store.reading import why_no_file

_SIGNAL = 0.01
"""The least strength of a query's signal: a standard deviation of its rewards of 0.001."""
_FEW_SHARE, _FEW_QUERIES = 0.1, 20
"""With a smaller share of queries that have a signal, or fewer of them and less than a quarter, a warning says so."""


def require_files(settings: Settings, rl_data_files: Sequence[Path]) -> None:
    """Checks, before any work, that the files that the training will read exist.

    Raises:
        RlDataError: A file does not exist; the message names the first one.
    """
    for path in (*rl_data_files, settings.train.init, settings.train.warm_start):
        if path is not None and not path.is_file():
            raise RlDataError(f"{path} {why_no_file(path)}: give the path of a file")


def read_groups(files: Sequence[Path], session: Session, reward: RewardSettings) -> list[QueryGroup]:
    """The groups of all files together; logs how many candidates were left out, and why.

    Raises:
        RlDataError: A file cannot be read or lacks scores that the reward needs, or nothing is left.
    """
    ids = [example.question_id for example in session.train]
    rules = {"skip_fallback": reward.skip_fallback, "accept_unsound": reward.accept_unsound}
    read = [rl_data.read_rl_data(path, ids, **rules) for path in files]
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
    if reward.require_correct:
        correct = [group for group in groups if any(is_correct(candidate) for candidate in group.candidates)]
        note(f"{len(groups) - len(correct)} queries without a correct pointer left out (--require-correct)")
        if not correct:
            raise RlDataError("no query has a correct pointer: train without --require-correct, or score more queries")
        groups = correct
    require_scores(groups, reward, ", ".join(map(str, files)))
    return groups


def stops(train: TrainSettings, groups: Sequence[QueryGroup]) -> tuple[bool, int]:
    """Whether a policy that is trained on `groups` may stop, and the maximum number of ICDs in their pointers.

    Raises:
        RlDataError: The pointers differ in length, and --no-stop is set.
    """
    lengths = {len(candidate.pointer) for group in groups for candidate in group.candidates}
    least, most = min(lengths), max(lengths)
    if least == most:
        return bool(train.stop), most
    if train.stop is False:
        raise RlDataError(
            f"the pointers of the RL data have {least} to {most} ICDs, and only a policy that may stop can be trained "
            "on different lengths: omit --no-stop, or use RL data of one length"
        )
    note(f"The pointers have {least} to {most} ICDs: the policy learns how many to show")
    return True, most


def require_signal(groups: Groups, train: TrainSettings) -> str | None:
    """Checks that there is something to learn: queries whose pointers earned different rewards.

    Returns:
        A warning if few queries have such a signal, else None.

    Raises:
        NoSignalError: None has one, and nothing is imitated (`--rce-over pool`) or sampled (`--online`) either.
    """
    count, with_signal = len(groups), int((signal_strength(groups.raw) >= _SIGNAL).sum())
    mean = float(groups.raw.nanmean())
    look = (
        f"Their mean reward is {mean:.2f}. Look at the answers in the RL data: if all are wrong, check the prompt, "
        "--max-new-tokens, --clean-answers and --metric; if all are right, the demonstrations do not matter. More "
        "queries (--queries) and more varied pointers (--random, --samples) can help"
    )
    if not with_signal:
        nothing = f"all pointers of a query earned the same reward, for each of the {count:,} training queries"
        if not (train.online or (train.rce_over == "pool" and train.rce_epochs)):
            raise NoSignalError(f"there is nothing to learn: {nothing}. {look}.")
        return f"{nothing}: the RL data say nothing about which pointers are better. {look}."
    if with_signal < max(_FEW_SHARE * count, min(_FEW_QUERIES, count / 4)):
        return (
            f"only {with_signal:,} of {count:,} training queries have pointers of different rewards; from the others "
            f"nothing is learnt, and the policy may not be better than chance. {look}."
        )
    return None
