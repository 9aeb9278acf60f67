"""The commands that are run on the cluster, and what they leave, to be compared to the byte."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cluster import Cluster

SETTINGS = """
[data]
threads = 1

[proposals]
queries = {queries}

[infer]
n = {queries}
selector = ["random", "nearest-both"]
shots = [1, 2, 3]

[train]
rce_epochs = 1
grpo_epochs = 2
online = true
online_samples = 4
"""
DATA = "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
COMMANDS = {
    "gen-rl-data": ("gen-rl-data",),
    "infer": ("infer",),
    "train --online": ("train", "--rl-data", DATA, "--run", "online"),
}
NEEDED = {"train --online": ("gen-rl-data",)}
"""The commands whose results another one needs."""


class Folders:
    """Folders in which commands are run, each with the same world and settings.

    Args:
        place: An empty folder.
        queries: Training queries to score, and held-out queries to answer.
    """

    def __init__(self, place: Path, queries: int) -> None:
        self.place, self._settings = place, SETTINGS.format(queries=queries)
        self.environment = os.environ | {"ICDSEL_DATA_DATA_DIR": str(place / "data"), "COLUMNS": "120"}
        self._start = self._made("start")
        self.run_in(self._start, "gen-rl-data", "--queries", "2", "--output", "first.jsonl")
        for path in self._start.glob("first*"):  # the world and its embeddings are left
            path.unlink()
        self.undisturbed: dict[str, dict[str, Any]] = {}
        """What a single process leaves, without Ray."""
        self.seconds: dict[str, float] = {}
        """What it takes."""

    def _made(self, name: str) -> Path:
        folder = self.place / name
        folder.mkdir(parents=True)
        (folder / "icdsel.toml").write_text(self._settings)
        return folder

    def new(self, name: str, command: str) -> Path:
        """A folder in which a command is about to be run for the first time."""
        before = self.place / f"single {NEEDED[command][0]}" if command in NEEDED else self._start
        shutil.copytree(before, self.place / name)
        return self.place / name

    def run_in(self, folder: Path, *words: str) -> None:
        """Runs icdsel in a folder, in a single process.

        Raises:
            RuntimeError: It failed.
        """
        command = (sys.executable, "-m", "icdsel", *words)
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{words} failed:\n{done.stderr}")

    def run_alone(self, command: str) -> None:
        """Runs a command in a single process, without Ray."""
        folder = self.new(f"single {command}", command)
        began = time.monotonic()
        self.run_in(folder, *COMMANDS[command])
        self.seconds[command] = time.monotonic() - began
        self.undisturbed[command] = left_in(folder)

    def differing(self, command: str, folder: Path) -> list[str]:
        """The files that differ from what a single process leaves."""
        found, expected = left_in(folder), self.undisturbed[command]
        return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def left_in(folder: Path) -> dict[str, Any]:
    """The content of all results by path; of metadata, what identifies a result; of logs, that there is one.

    Cached answers stand in the order in which they were given, so their lines are sorted.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".log", ".lock") or path.name == "log.txt":
            found[name] = "a file"
        elif ".meta.json" in path.name or path.name == "run.json":
            times = ("environment", "work", "settings")
            found[name] = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in times}
        elif path.name.startswith("answers_"):
            found[name] = sorted(path.read_bytes().splitlines())
        else:
            found[name] = path.read_bytes()
    return found


def progress(folder: Path) -> int:
    """Lines of results and journals so far."""
    files = [path for path in folder.rglob("*.jsonl*") if path.is_file() and path.suffix != ".lock"]
    return sum(path.read_bytes().count(b"\n") for path in files if path.parent.name != "cache")


@dataclass
class Event:
    """Something that is done in the middle of a command.

    Attributes:
        what: What it is called in the table.
        share: The share of the command's lines that are written when it is done.
        act: Does it, given the process of the command.
        machine: The machine whose workers are lost by it; "" for none.
        at: When it was done, in seconds since the start.
        noticed: When icdsel noticed that a worker was lost, likewise.
    """

    what: str
    share: float
    act: "Callable[[subprocess.Popen[str]], object]"
    machine: str = ""
    at: float | None = None
    noticed: float | None = None


@dataclass
class Run:
    """How a command went: exit code, seconds, seconds since the start of each line on stderr, and what was lost."""

    code: int
    seconds: float
    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """The lists of prompts that were in the hands of lost workers."""
        return sum(" was lost (" in line for _, line in self.lines)


def run(cluster: Cluster, folders: Folders, command: str, folder: Path, events: Sequence[Event], workers: int) -> Run:
    """Runs a command with actors of the cluster, and does what is to be done in its middle."""
    words = (sys.executable, "-m", "icdsel", *COMMANDS[command], "--ray-address", cluster.address)
    environment = {**folders.environment, **cluster.environment}
    before, total = progress(folder), progress(folders.place / f"single {command}")
    began = time.monotonic()
    process = cluster.head.start(
        (*words, "--workers", workers), environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    lines: list[tuple[float, str]] = []

    def read() -> None:
        lines.extend((time.monotonic() - began, line.rstrip("\n")) for line in process.stderr)

    reader = threading.Thread(target=read)
    reader.start()
    for event in events:
        while process.poll() is None and progress(folder) - before < event.share * (total - before):
            time.sleep(0.02)
        if process.poll() is None:
            event.at = time.monotonic() - began
            event.act(process)
    code = process.wait()
    reader.join()
    for event in events:
        told = f" on {event.machine} was lost ("
        event.noticed = min((at for at, line in lines if told in line and at >= (event.at or 0)), default=None)
    return Run(code, time.monotonic() - began, lines)
