"""The metrics of a training for TensorBoard, if the extra of that name is installed."""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icdsel.errors import SettingsError


def require_tensorboard() -> None:
    """Checks, before any work, that events can be written.

    Raises:
        SettingsError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise SettingsError(
            '--tensorboard needs the library "tensorboard": pip install "icdsel[tensorboard]", or leave the flag out '
            "(metrics.jsonl holds the same figures)"
        )


class Events:
    """Curves over the epochs of all phases; without a writer it does nothing."""

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    def write(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Adds the metrics of an epoch, counted over all phases from 1, each to its own curve."""
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()  # they are shown while the training runs


@contextmanager
def open_events(folder: Path | None) -> Iterator[Events]:
    """Events in a new folder; None writes none."""
    if folder is None:
        yield Events()
        return
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)  # an interrupted training may lack an epoch: resuming writes all of them
    with SummaryWriter(str(folder)) as writer:
        yield Events(writer)
