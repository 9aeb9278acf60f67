"""Trackers, which show the metrics of trainings and comparisons: TensorBoard, Weights & Biases, MLflow.

Imports none of their libraries, nor torch.
"""

from contextlib import AbstractContextManager

from icdsel.registry import Registry
from icdsel.trackers.base import Row, Subject, Tracked, Tracker
from icdsel.trackers.mlflow import Mlflow
from icdsel.trackers.tensorboard import TensorBoard
from icdsel.trackers.tracking import Tracking, open_trackers, require_trackers
from icdsel.trackers.wandb import Wandb

__all__ = ["TRACKERS", "Row", "Subject", "Tracked", "Tracker", "Tracking", "require", "track"]

TRACKERS: Registry[Tracker] = Registry("tracker", (TensorBoard(), Wandb(), Mlflow()))
"""The trackers, by the name given to `--tracker`.

To add one, write a file such as `my_tracker.py`, and run `python my_tracker.py train --tracker lines`:

    from icdsel.__main__ import main
    from icdsel.trackers import TRACKERS, Tracked, Tracker

    class Lines(Tracker):
        name = "lines"

        def start(self, subject):
            return Written((subject.folder / "lines.txt").open("w"))

    class Written(Tracked):
        def __init__(self, file):
            self.file = file

        def log_epoch(self, number, metrics):
            print(number, metrics, file=self.file, flush=True)

        def close(self, finished):
            self.file.close()

    TRACKERS.add(Lines())
    if __name__ == "__main__":
        main()

* `require` rejects a wrong configuration before any work; `Tracked` has further methods to override.
* A method may raise anything: it costs the tracker, not the training. With a `limit`, it may also hang.
* A resumed training calls `log_epoch` for its earlier epochs again. A tracker that kept them passes over them; with
  `needs_id = True` it is given an id that stays the same.
"""


def require(names: tuple[str, ...]) -> None:
    """Checks, before any work, that these trackers can be used.

    Raises:
        SettingsError: One is unknown, its library is missing, or its configuration is wrong.
    """
    require_trackers([TRACKERS.named(name) for name in names])


def track(names: tuple[str, ...], subject: Subject) -> AbstractContextManager[Tracking]:
    """The trackers of these names for a training or a comparison, as a context that yields a `Tracking`.

    Raises:
        SettingsError: One is unknown, or cannot be started.
    """
    return open_trackers([TRACKERS.named(name) for name in names], subject)
