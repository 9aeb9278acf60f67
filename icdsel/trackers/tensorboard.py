"""TensorBoard: files of events in the folder of a run or comparison."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icdsel.trackers.base import Row, Subject, Tracked, Tracker, require_libraries

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Every metric as a scalar over the epochs, every row of a comparison as a curve over the shots."""

    name = "tensorboard"

    def require(self) -> None:
        """Checks that the library is installed."""
        require_libraries(self.name, "tensorboard")

    def start(self, subject: Subject) -> Tracked:
        """Opens new files; those of an interrupted training may lack an epoch, and it logs all of them again."""
        from torch.utils.tensorboard import SummaryWriter

        folder = subject.folder / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        return _Events(folder, SummaryWriter(str(folder)), subject)


class _Events(Tracked):
    def __init__(self, folder: Path, writer: "SummaryWriter", subject: Subject) -> None:
        self._folder, self._writer = folder, writer
        lines = [f"| {name} | {value} |" for name, value in subject.flat_settings()]
        writer.add_text("settings", "\n".join([f"| {subject.name} | |", "|---|---|", *lines]))

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()  # they are shown while the training runs

    def log_recommended(self, checkpoint: str) -> None:
        self._writer.add_text("recommended checkpoint", checkpoint)

    def log_rows(self, rows: Sequence[Row]) -> None:
        """A curve by name over the numbers of shots, which `auto` has no place on; the text has all rows."""
        from torch.utils.tensorboard import SummaryWriter

        for name in dict.fromkeys(str(row["name"]) for row in rows):
            with SummaryWriter(str(self._folder / re.sub(r"[^\w.+-]", "_", name))) as writer:
                for row in rows:
                    shots = row["shots"]
                    if row["name"] != name or not isinstance(shots, int):
                        continue
                    for column, value in row.items():
                        if isinstance(value, int | float) and column != "shots":
                            writer.add_scalar(column, value, shots)
        columns = list(rows[0])
        cells: list[list[object]] = [[row[column] for column in columns] for row in rows]
        lines: list[list[object]] = [[*columns], ["---"] * len(columns), *cells]
        shown = ("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
        self._writer.add_text("comparison", "\n".join(shown))

    def close(self, finished: bool) -> None:  # noqa: ARG002
        self._writer.close()
