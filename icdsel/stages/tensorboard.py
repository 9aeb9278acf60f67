"""The metrics of a training for TensorBoard, where the extra of that name is installed."""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icdsel.errors import SettingsError
from icdsel.store.files import refuse_link


def require_tensorboard() -> None:
    """Sees to it, before any work, that events can be written.

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
        """Takes in the metrics of an epoch, counted over all phases from 1, each a curve of its own."""
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()  # to be looked at while the training goes on


@contextmanager
def open_events(folder: Path | None) -> Iterator[Events]:
    """Events that are written to `folder`, anew; None writes none."""
    if folder is None:
        yield Events()
        return
    refuse_link(folder)
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)  # an interrupted training may lack an epoch: who goes on has them all
    with SummaryWriter(str(folder)) as writer:
        yield Events(writer)
