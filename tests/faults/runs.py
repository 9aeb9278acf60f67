"""Undisturbed runs of the stages, and runs that are ended and given again."""

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .instants import Disk, EndAt, Image, restore
from .stages import Stage, Words, differing, environment, needed, results
from .warm import Command

GOES_ON = "give the same command again to go on"


@dataclass(frozen=True, eq=False)
class Undisturbed:
    """A command that nothing happened to: where it began, what it left, how long it took."""

    stage: Stage
    words: Words
    start: Path
    results: dict[str, Any]
    seconds: float
    operations: int
    broken_rules: list[str]


@dataclass
class Tally:
    """What became of a command that was ended again and again."""

    ended: int = 0
    started: int = 0
    wrong: list[str] = field(default_factory=list)


class Workshop:
    """A folder in which the stages are run.

    Args:
        place: An empty folder.
        stages: The names of those that are looked at; those before them are run, too.
        data: A folder with a world that is made already; by default it is made.
    """

    def __init__(self, place: Path, stages: tuple[str, ...] = (), data: Path | None = None) -> None:
        self.place, self.world = place, data or place / "data"
        self.said = place / "said.txt"
        self.commands: list[Undisturbed] = []
        work = place / "undisturbed"
        work.mkdir(parents=True)
        for stage in needed(stages):
            for name, content in stage.files.items():
                (work / name).write_text(content)
            for words in () if data and stage.own_world else stage.commands:
                self._undisturbed(stage, words, work, not stages or stage.name in stages)
            if stage.own_world and not data:
                (work / "data").rename(self.world)
                (work / "first.jsonl").unlink()

    def _undisturbed(self, stage: Stage, words: Words, work: Path, kept: bool) -> None:
        start = self.place / "starts" / str(len(self.commands))
        if kept:
            shutil.copytree(work, start)
        disk = Disk(work, self.place / "disk.pickle", frozenset({0}))
        began = time.monotonic()
        code = self.run(stage, words, work, disk if kept else None).wait()
        seconds = time.monotonic() - began
        assert code == 0, self.said.read_text()
        if kept:
            operations, _, broken = pickle.loads(disk.written_to.read_bytes())  # noqa: S301 - of our own
            self.commands.append(Undisturbed(stage, words, start, results(work), seconds, operations, broken))

    def run(self, stage: Stage, words: Words, folder: Path, first: Any = None) -> Command:
        """A command of a stage, begun."""
        self.said.unlink(missing_ok=True)
        return Command(words, folder, self.said, environment(stage, self.world), first)

    def images(self, command: Undisturbed, only: frozenset[int] = frozenset()) -> list[tuple[int, str, str, Image]]:
        """What is on the disk after an end at each operation of a command (`Disk`)."""
        folder = self.place / "recorded"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(command.start, folder)
        disk = Disk(folder, self.place / "disk.pickle", only)
        assert self.run(command.stage, command.words, folder, disk).wait() == 0, self.said.read_text()
        images: list[tuple[int, str, str, Image]]
        _, images, _ = pickle.loads(disk.written_to.read_bytes())  # noqa: S301 - of our own
        return images

    def goes_on(self, command: Undisturbed, image: Image, cut: bool = False) -> list[str]:
        """What is wrong after the same command was given again on what an end left, or a power cut.

        TensorBoard's files are not synced, by nobody; what they show stands in the file of metrics.
        """
        folder = self.place / "again"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        restore(image, folder)
        code = self.run(command.stage, command.words, folder).wait()
        if code != 0:
            return [f"exit code {code}: {self.said.read_text()[-600:]}"]
        wrong = differing(results(folder), command.results)
        return [line for line in wrong if not (cut and "/tensorboard " in line)]

    def cold(self, command: Undisturbed) -> list[str]:
        """What is wrong after a command was given as a user gives it."""
        folder = self.place / "cold"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(command.start, folder)
        words = [sys.executable, "-m", "icdsel", *map(str, command.words)]
        variables = os.environ | environment(command.stage, self.world)
        subprocess.run(words, cwd=folder, env=variables, check=True, capture_output=True)
        return differing(results(folder), command.results)

    def end_again_and_again(
        self, command: Undisturbed, rng: random.Random, by: signal.Signals, at_most: int = 4
    ) -> Tally:
        """Ends a command at random instants, until it has come to its end by itself; then looks at what it left.

        Half of the instants are moments, half operations on files, of which writes are done half way.
        """
        folder, tally = self.place / "ended", Tally()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(command.start, folder)
        while True:
            first, moment = None, None
            if tally.ended < at_most and rng.random() < 0.5:
                first = EndAt(folder.resolve(), rng.randint(1, command.operations), by, half=rng.random() < 0.5)
            elif tally.ended < at_most:
                moment = rng.uniform(0, command.seconds)
            running = self.run(command.stage, command.words, folder, first)
            tally.started += 1
            code = running.wait(moment)
            if code is None and moment is not None:
                assert running.process.pid is not None
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(running.process.pid, by)
            code = running.wait(120)
            if code == 0:
                tally.wrong += differing(results(folder), command.results)
                return tally
            said = self.said.read_text()
            tally.ended += 1
            if by == signal.SIGKILL and code == -signal.SIGKILL:
                continue
            if by != signal.SIGKILL and code == 128 + by and GOES_ON in said and "Traceback" not in said:
                continue
            tally.wrong.append(f"exit code {code} after {by.name} ({first or moment}): {said[-3000:]}")
            return tally
