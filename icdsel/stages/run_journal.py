"""What a training writes epoch by epoch, so that a killed one goes on: checkpoints, metrics, and where it stands.

After every epoch come, in this order, its checkpoint, its line of metrics, and `resume.pt` with everything that
training goes on from. What was written after the last `resume.pt` is written again, the same.
"""

import json
import math
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from icdsel.artefacts.checkpoint import Checkpoint, load_checkpoint, save_policy
from icdsel.artefacts.run_folder import METRICS_FILE, parse_epoch
from icdsel.console import Advance, note
from icdsel.errors import CheckpointError, RunError
from icdsel.policy.loop import PHASES, Epoch, Resume, plain
from icdsel.policy.network import PointerNetwork
from icdsel.stages.tensorboard import Events
from icdsel.store.files import append_lines, remove_leftovers, write_bytes
from icdsel.store.json_reading import is_id, is_number, whole_lines

RESUME_FILE = "resume.pt"
ANEW = "move the run's folder away, and give the same command again"


class RunJournal:
    """The files of a run that is being trained.

    Args:
        folder: The run's folder.
        network: The policy, on its device.
        events: Where metrics go for TensorBoard.
        advance: The progress bar.
    """

    def __init__(self, folder: Path, network: PointerNetwork, events: Events, advance: Advance) -> None:
        self._folder, self._network, self._events, self._advance = folder, network, events, advance
        self._since = time.monotonic()
        self._taken = 0
        self.epochs: list[dict[str, Any]] = []
        """The lines of the metrics file."""
        self.work: dict[str, dict[str, float]] = {}
        """Seconds and queries by phase."""

    @property
    def queries(self) -> int:
        """Queries taken so far, each as often as it was taken."""
        return sum(int(spent["count"]) for spent in self.work.values())

    def resume(self) -> Resume | None:
        """What the last whole epoch of an interrupted training left; the network gets its weights.

        Raises:
            RunError: the run's files do not belong together.
        """
        path = self._folder / RESUME_FILE
        if not path.exists():
            (self._folder / METRICS_FILE).unlink(missing_ok=True)
            return None
        try:
            left = load_checkpoint(path)
        except CheckpointError as error:
            raise RunError(f"this training cannot go on: {ANEW}. {error}") from None
        if not _is_whole(left, self._network):
            raise RunError(f"{path} is not what this training goes on from, or is damaged: {ANEW}")
        metrics, count = self._folder / METRICS_FILE, left.extra["epochs"]
        lines = list(islice(whole_lines(metrics, RunError), count))
        if len(lines) < count:
            raise RunError(f"{metrics} lacks epochs that {path} tells of: {ANEW}")
        self.epochs = [
            parse_epoch(f"{metrics}, line {number}", epoch).to_json() for number, (_, epoch) in enumerate(lines, 1)
        ]
        write_bytes(metrics, b"".join(line for line, _ in lines))
        for number, line in enumerate(self.epochs, 1):
            self._show(line, number)
        self.work = left.extra["work"]
        self._network.load_state_dict(left.network.state_dict())
        note(f"going on after {left.phase} epoch {(left.epoch or 0) + 1} of an interrupted training")
        return _resume(left)

    def step(self, queries: int) -> None:
        """Counts a step over so many queries."""
        self._taken += queries
        self._advance(queries)

    def keep(self, epoch: Epoch) -> None:
        """Writes what an epoch left.

        Raises:
            RunError: a metric is not finite; nothing of the epoch is written.
        """
        metrics, number = plain(epoch.metrics), epoch.number + 1
        if not all(map(math.isfinite, metrics.values())):
            raise RunError(
                f"{epoch.phase} epoch {number} diverged (loss {metrics[f'{epoch.phase}_loss']}): the run stops before "
                f"its checkpoint is written. Try a smaller --{epoch.phase}-lr"
            )
        save = partial(save_policy, network=self._network, epoch=epoch.number, phase=epoch.phase, kl_beta=epoch.kl_beta)
        save(self._folder / f"{epoch.phase}_epoch{number}.pt", metrics=metrics)
        line = {"phase": epoch.phase, "epoch": number, "kl_beta": epoch.kl_beta, **metrics}
        append_lines(self._folder / METRICS_FILE, [json.dumps(line)])
        self.epochs.append(line)
        now = time.monotonic()
        spent = self.work.setdefault(epoch.phase, {"seconds": 0.0, "count": 0})
        spent["seconds"] += now - self._since
        spent["count"] += self._taken
        self._since, self._taken = now, 0
        extra = epoch.draws | {"epochs": len(self.epochs), "work": self.work}
        save(self._folder / RESUME_FILE, metrics={}, optimizer=epoch.optimizer, extra=extra)
        self._show(line, len(self.epochs))
        reward, share = metrics["expected_reward"], metrics["oracle_share"]
        self._advance(0, f"{epoch.phase} epoch {number}: {reward:.2f}, {share:.0%} of oracle")
        note(
            f"{epoch.phase} epoch {number}: loss {metrics[f'{epoch.phase}_loss']:.3f}, expected reward {reward:.3f} "
            f"({share:.1%} of the oracle)"
        )

    def _show(self, line: Mapping[str, Any], number: int) -> None:
        self._events.write({name: value for name, value in line.items() if name not in ("phase", "epoch")}, number)


def is_clean(folder: Path) -> bool:
    """Whether there is nothing for `tidy` to do."""
    return not (folder / RESUME_FILE).exists() and not any(folder.glob(".*.part"))


def clean_up(folder: Path) -> None:
    """Removes from a trained run what killed processes left, and at last what only an interrupted training needs."""
    remove_leftovers(*(path for path in folder.iterdir() if path.suffix in (".pt", ".json", ".jsonl")))
    (folder / RESUME_FILE).unlink(missing_ok=True)


def _resume(left: Checkpoint) -> Resume:
    assert left.phase is not None and left.epoch is not None and left.kl_beta is not None  # `_is_whole`
    return Resume(left.phase, left.epoch, left.kl_beta, left.optimizer, left.extra)


def _is_whole(left: Checkpoint, network: PointerNetwork) -> bool:
    """Whether a checkpoint is of this network and says how far its training came."""
    count, work = left.extra.get("epochs"), left.extra.get("work")
    here, there = ({n: value.shape for n, value in made.state_dict().items()} for made in (network, left.network))
    return (
        here == there
        and left.phase in PHASES
        and left.epoch is not None
        and is_number(left.kl_beta, 0.0, 1e300)
        and is_id(count)
        and count >= 0
        and isinstance(work, dict)
        and all(isinstance(spent, dict) and spent.keys() == {"seconds", "count"} for spent in work.values())
        and all(is_number(value, 0, 2**53) for spent in work.values() for value in spent.values())
    )
