"""Weights & Biases: offline, unless the user's own WANDB_MODE says otherwise. It gets figures and settings alone."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icdsel.console import note
from icdsel.errors import SettingsError
from icdsel.trackers.base import Row, Subject, Tracked, Tracker, require_libraries

if TYPE_CHECKING:
    import wandb

_MODES = ("offline", "online", "shared", "disabled", "dryrun")
_PROJECT = "icdsel"
_OFFLINE = ("offline", "dryrun")


class Wandb(Tracker):
    """A run of Weights & Biases for each training and each comparison."""

    name = "wandb"
    needs_id = True
    limit: float | None = 60.0

    def require(self) -> None:
        """Checks the library and WANDB_MODE; where that is online, that there is a key (a terminal is asked)."""
        require_libraries(self.name, "wandb")
        mode = _mode()
        if mode not in _MODES:
            raise SettingsError(f"WANDB_MODE is {mode!r}: set it to one of {', '.join(_MODES)}")
        if mode in ("online", "shared"):
            wandb = _library()
            try:
                wandb.login()
            except wandb.Error as error:
                raise SettingsError(
                    f"Weights & Biases cannot be used: {str(error).rstrip('.')}. Run `wandb login`, or set "
                    "WANDB_MODE=offline"
                ) from None

    def start(self, subject: Subject) -> Tracked:
        """Starts a run, or continues the one of this id."""
        wandb = _library()
        mode = _mode()
        if "WANDB_DIR" not in os.environ:
            subject.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            id=subject.id,
            resume=None if mode in _OFFLINE else "allow",  # offline it has no effect: the id is what counts
            name=subject.name,
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            group=subject.dataset,
            job_type=subject.kind,
            dir=os.environ.get("WANDB_DIR") or str(subject.folder),
            mode=mode,
            config=dict(subject.flat_settings()),
            allow_val_change=True,  # a training may be resumed on another device
            settings=_quiet(wandb),
        )
        if mode in _OFFLINE:
            note(
                f"Weights & Biases is offline: `wandb sync {run.settings.sync_dir}` uploads it; WANDB_MODE=online "
                "logs while it runs"
            )
        return _Run(run)


class _Run(Tracked):
    def __init__(self, run: "wandb.Run") -> None:
        self._run = run
        self._first = run.starting_step  # of a run that its server knows; offline every folder has all epochs

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        if number >= self._first:
            self._run.log(dict(metrics), step=number, commit=True)

    def log_recommended(self, checkpoint: str) -> None:
        self._run.summary["recommended_checkpoint"] = checkpoint

    def log_rows(self, rows: Sequence[Row]) -> None:
        wandb = _library()
        columns = list(rows[0])
        table = wandb.Table(
            columns=columns, data=[[row[column] for column in columns] for row in rows], allow_mixed_types=True
        )
        self._run.log({"comparison": table})

    def close(self, finished: bool) -> None:
        """Ends the run, and the process in the background unless the program has runs of its own."""
        wandb = _library()
        self._run.finish(exit_code=0 if finished else 1)
        if wandb.run is None:
            wandb.teardown()


def _mode() -> str:
    return os.environ.get("WANDB_MODE") or "offline"


def _library() -> Any:
    """The library, without reports of errors, which need the network, and W&B Weave, unless the user has set them."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
    # Else it prints an advertisement where a library such as openai is loaded, however silent it is to be.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    import wandb

    return wandb


def _quiet(wandb: Any) -> "wandb.Settings":
    """Prints nothing, and records neither code, packages, command line, machine nor console."""
    return wandb.Settings(
        silent=True,
        quiet=True,
        console="off",
        host="",
        reinit="create_new",  # a program that uses icdsel may have a run of its own
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
