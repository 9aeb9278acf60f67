"""Reads the RL data of a training, and checks that all of its files exist."""

from collections.abc import Sequence
from pathlib import Path

from icdsel.artefacts import rl_data
from icdsel.artefacts.lever_plus_rl_data import GT_PROB_NOTE
from icdsel.console import note, warn
from icdsel.errors import RlDataError
from icdsel.policy.rewards import is_correct
from icdsel.records import QueryGroup
from icdsel.settings.loading import Settings
from icdsel.settings.tables import RewardSettings
from icdsel.stages.session import Session
from icdsel.store.reading import why_no_file


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
        RlDataError: A file cannot be read, or nothing is left.
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
    if not reward.require_correct:
        return groups
    correct = [group for group in groups if any(is_correct(candidate) for candidate in group.candidates)]
    note(f"{len(groups) - len(correct)} queries without a correct pointer left out (--require-correct)")
    if not correct:
        raise RlDataError("no query has a correct pointer: train without --require-correct, or score more queries")
    return correct
