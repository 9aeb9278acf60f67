"""Undisturbed runs of the stages, and runs that are ended and started again."""

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

from icdsel.cli.interruption import KEPT

from .instants import Disk, EndAt, Image, restore
from .stages import Stage, Words, differing, environment, needed, results
from .warm import Command


@dataclass(frozen=True, eq=False)
class Undisturbed:
    """A command that was not interrupted: the folder before it, what it left, how long it took."""

    stage: Stage
    words: Words
    start: Path
    results: dict[str, Any]
    seconds: float
    operations: int
    broken_rules: list[str]


@dataclass
class Tally:
    """How often a command was ended and started, and what was wrong."""

    ended: int = 0
    started: int = 0
    wrong: list[str] = field(default_factory=list)


class Workshop:
    """A folder in which the stages are run.

    Args:
        place: An empty folder.
        stages: The names of those to test; those before them are run as well.
        data: A folder with an existing world; by default it is created.
    """

    def __init__(self, place: Path, stages: tuple[str, ...] = (), data: Path | None = None) -> None:
        self.place, self.world = place, data or place / "data"
        self.output = place / "output.txt"
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
        assert code == 0, self.output.read_text()
        if kept:
            operations, _, broken = pickle.loads(disk.written_to.read_bytes())  # noqa: S301 - our own
            self.commands.append(Undisturbed(stage, words, start, results(work), seconds, operations, broken))

    def run(self, stage: Stage, words: Words, folder: Path, first: Any = None) -> Command:
        """Starts a command of a stage."""
        self.output.unlink(missing_ok=True)
        return Command(words, folder, self.output, environment(stage, self.world), first)

    def images(self, command: Undisturbed, only: frozenset[int] = frozenset()) -> list[tuple[int, str, str, Image]]:
        """What a disk holds after a power cut at each operation of a command (`Disk`)."""
        folder = self.place / "recorded"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(command.start, folder)
        disk = Disk(folder, self.place / "disk.pickle", only)
        assert self.run(command.stage, command.words, folder, disk).wait() == 0, self.output.read_text()
        images: list[tuple[int, str, str, Image]]
        _, images, _ = pickle.loads(disk.written_to.read_bytes())  # noqa: S301 - our own
        return images

    def resume(self, command: Undisturbed, image: Image, cut: bool = False) -> list[str]:
        """What is wrong after the same command was run again on what a kill, or a power cut, left.

        The files of TensorBoard are never synced; the file of metrics holds the same figures.
        """
        folder = self.place / "again"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        restore(image, folder)
        code = self.run(command.stage, command.words, folder).wait()
        if code != 0:
            return [f"exit code {code}: {self.output.read_text()[-600:]}"]
        wrong = differing(results(folder), command.results)
        return [line for line in wrong if not (cut and "/tensorboard " in line)]

    def cold(self, command: Undisturbed) -> list[str]:
        """What is wrong after a command was run in a new process, as a user runs it."""
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
        """Ends a command at random instants until it finishes by itself; then compares what it left.

        Half of the instants are moments, half are operations on files; half of these writes are done half-way.
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
                with suppress(ProcessLookupError):  # it has just finished
                    os.kill(running.process.pid, by)
            code = running.wait(120)
            if code == 0:
                tally.wrong += differing(results(folder), command.results)
                return tally
            output = self.output.read_text()
            tally.ended += 1
            if by == signal.SIGKILL and code == -signal.SIGKILL:
                continue
            if by != signal.SIGKILL and code == 128 + by and KEPT in output and "Traceback" not in output:
                continue
            tally.wrong.append(f"exit code {code} after {by.name} ({first or moment}): {output[-3000:]}")
            return tally
