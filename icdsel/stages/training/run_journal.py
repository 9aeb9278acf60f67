"""What a training writes after every epoch, so that it can be resumed: checkpoint, metrics, and its state.

They are written in this order: the checkpoint, the line of metrics, `resume.pt` with everything that the training
continues from. What was written after the last `resume.pt` is written again, with the same content.
"""

import math
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from icdsel.artefacts.checkpoint import Checkpoint, load_checkpoint
from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.artefacts.run_folder import METRICS_FILE, parse_epoch
from icdsel.console import Advance, note
from icdsel.errors import CheckpointError, RunError
from icdsel.policy.loop import PHASES, Epoch, Resume, plain
from icdsel.policy.network import PointerNetwork
from icdsel.records.values import is_int64, is_number
from icdsel.store.journal import Journal
from icdsel.trackers import Tracking

RESUME_FILE = "resume.pt"
RESTART = "move the folder of the run away, and run the same command again"


class RunJournal:
    """The files of a run that is being trained.

    Args:
        folder: The folder of the run.
        network: The policy, on its device.
        tracking: The trackers that get every epoch's metrics.
        advance: The progress bar.
        trained_for: What checkpoints record of data, model, encoder and prompt.
    """

    def __init__(
        self,
        folder: Path,
        network: PointerNetwork,
        tracking: Tracking,
        advance: Advance,
        trained_for: Mapping[str, Any] | None = None,
    ) -> None:
        self._trained_for = trained_for
        self.folder = folder
        self._network, self._tracking, self._advance = network, tracking, advance
        self._metrics = Journal(folder / METRICS_FILE)
        self._epoch_began = time.monotonic()
        self._epoch_queries = 0
        self.epochs: list[dict[str, Any]] = []
        """The lines of the metrics file."""
        self.work: dict[str, dict[str, float]] = {}
        """Seconds and number of queries by phase."""

    @property
    def queries(self) -> int:
        """How many queries were trained on so far, counted in every epoch."""
        return sum(int(work["count"]) for work in self.work.values())

    def resume(self) -> Resume | None:
        """The state after the last complete epoch of an interrupted training; its weights are loaded into the network.

        Raises:
            RunError: The files of the run do not fit together.
        """
        path = self.folder / RESUME_FILE
        if not path.exists():
            self._metrics.remove()
            return None
        try:
            left = load_checkpoint(path)
        except CheckpointError as error:
            raise RunError(f"this training cannot be resumed: {RESTART}. {error}") from None
        if not _is_state_of(left, self._network):
            raise RunError(f"{path} is damaged, or belongs to another training: {RESTART}")
        count, metrics = left.extra["epochs"], self._metrics.path
        lines = islice(self._metrics.read(lambda line: line), count)
        self.epochs = [parse_epoch(f"{metrics}, line {number}", line).to_json() for number, line in enumerate(lines, 1)]
        if len(self.epochs) < count:
            raise RunError(f"{metrics} lacks epochs that {path} continues from: {RESTART}")
        self._metrics.trim()
        for number, line in enumerate(self.epochs, 1):
            self._show(line, number)
        self.work = left.extra["work"]
        self._network.load_state_dict(left.network.state_dict())
        note(f"resuming after {left.phase} epoch {(left.epoch or 0) + 1} of an interrupted training")
        assert left.phase is not None and left.epoch is not None and left.kl_beta is not None  # `_is_state_of`
        return Resume(left.phase, left.epoch, left.kl_beta, left.optimizer, left.extra)

    def step(self, queries: int) -> None:
        """Counts a step with this number of queries."""
        self._epoch_queries += queries
        self._advance(queries)

    def keep(self, epoch: Epoch) -> None:
        """Writes the files of an epoch.

        Raises:
            RunError: A metric is not finite; nothing of the epoch is written.
        """
        metrics, number = plain(epoch.metrics), epoch.number + 1
        loss, reward, share = (metrics[name] for name in (f"{epoch.phase}_loss", "expected_reward", "oracle_share"))
        if not all(map(math.isfinite, metrics.values())):
            raise RunError(
                f"{epoch.phase} epoch {number} diverged (loss {loss}): the run stops before its checkpoint is written. "
                f"Try a smaller --{epoch.phase}-lr"
            )
        save = partial(save_policy, network=self._network, epoch=epoch.number, phase=epoch.phase, kl_beta=epoch.kl_beta)
        save(self.folder / f"{epoch.phase}_epoch{number}.pt", metrics=metrics, trained_for=self._trained_for)
        line = {"phase": epoch.phase, "epoch": number, "kl_beta": epoch.kl_beta, **metrics}
        self._metrics.append([line])
        self.epochs.append(line)
        now = time.monotonic()
        work = self.work.setdefault(epoch.phase, {"seconds": 0.0, "count": 0})
        work["seconds"] += now - self._epoch_began
        work["count"] += self._epoch_queries
        self._epoch_began, self._epoch_queries = now, 0
        extra = epoch.draws | {"epochs": len(self.epochs), "work": self.work}
        save(self.folder / RESUME_FILE, metrics={}, optimizer=epoch.optimizer, extra=extra)
        self._show(line, len(self.epochs))
        self._advance(0, f"{epoch.phase} epoch {number}: {reward:.2f}, {share:.0%} of oracle")
        note(f"{epoch.phase} epoch {number}: loss {loss:.3f}, expected reward {reward:.3f} ({share:.1%} of the oracle)")

    def _show(self, line: Mapping[str, Any], number: int) -> None:
        self._tracking.log_epoch(number, {name: line[name] for name in line if name not in ("phase", "epoch")})


def _is_state_of(left: Checkpoint, network: PointerNetwork) -> bool:
    """Whether a checkpoint is the state of a training of this network."""
    count, work = left.extra.get("epochs"), left.extra.get("work")
    current, stored = (
        {n: value.shape for n, value in policy.state_dict().items()} for policy in (network, left.network)
    )
    return (
        current == stored
        and left.phase in PHASES
        and left.epoch is not None
        and is_number(left.kl_beta, 0.0, 1e300)
        and is_int64(count)
        and count >= 0
        and isinstance(work, dict)
        and all(isinstance(spent, dict) and spent.keys() == {"seconds", "count"} for spent in work.values())
        and all(is_number(spent["seconds"], 0, 2**53) and is_int64(spent["count"]) for spent in work.values())
        and all(0 <= spent["count"] <= 2**53 for spent in work.values())
    )
