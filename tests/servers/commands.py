"""Whole commands on a server: their results equal those of the local scorer, and interruptions change no byte."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .machines import RealServer

QUERIES, ANSWERED = 32, 24
STEPS: Mapping[str, Sequence[str]] = {
    "gen-rl-data": ("gen-rl-data",),
    "train": ("train", "--rce-epochs", "2", "--grpo-epochs", "1"),
    "infer": ("infer", "--n", str(ANSWERED)),
    "compare": ("compare", "--n", str(ANSWERED), "--json", "compare.json"),
    "online GRPO": (*("train", "--online", "--rce-epochs", "1", "--grpo-epochs", "1", "--online-samples", "2"),),
    "experiment": ("experiment", "rce,grpo-online", "--seeds", "1", "--n", str(ANSWERED), "--online-samples", "2"),
}
LONG = ("gen-rl-data", "--queries", "160")
"""A command that is interrupted: several units, which are written one after the other."""
FAMILY = "results/world"
GENERATED = "generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
_ROUNDED = 2e-3
"""Differences of numbers that may be: probabilities of references have 6 digits in files."""
_SCORED = ("vqa_gt_prob", "vqa_gt_prob_norm")
_IDENTITY = (".trained_for.model", ".trained_for.dtype")
"""By these the results of a server and of the local scorer are kept apart."""
_TIMES = ("seconds", "time")


class Workplace:
    """A folder with settings, in which commands are run.

    Args:
        folder: An empty folder.
        url: The address of a server; empty for the local scorer.
        data: The folder of the bundled worlds.
    """

    def __init__(self, folder: Path, url: str, data: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        asked = f'url = "{url}"\n' if url else ""
        Path(folder / "icdsel.toml").write_text(
            f'[data]\nthreads = 1\ndata_dir = "{data}"\n[proposals]\nqueries = {QUERIES}\n'
            f'[vlm]\ndevice = "cpu"\ndtype = "float32"\n{asked}'
        )

    @property
    def results(self) -> Path:
        """Its results."""
        return self.folder / FAMILY

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Starts a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "icdsel", *words],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, words: Sequence[str], code: int = 0) -> tuple[str, float]:
        """Runs a command to its end, checks its exit code, and returns its output and its seconds."""
        begun = time.perf_counter()
        process = self.start(words)
        output, _ = process.communicate()
        assert process.returncode == code, f"{words} ended with {process.returncode}: {output[-3000:]}"
        return output, time.perf_counter() - begun

    def journalled(self) -> int:
        """The number of queries whose RL data are complete so far."""
        journal = self.results / f"{GENERATED}.part"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0


def differences(one: Workplace, other: Workplace) -> list[str]:
    """What differs between the results of two folders, probabilities of references and times aside."""
    files = [{path.relative_to(place.folder): path for path in _results(place.folder)} for place in (one, other)]
    found = [f"{path} is in one of them alone" for path in sorted(files[0].keys() ^ files[1].keys())]
    for path in sorted(files[0].keys() & files[1].keys()):
        mine, yours = (_content(each[path]) for each in files)
        found += [f"{path}: {each}" for each in _different(mine, yours, "")]
    return found


def _results(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and "cache" not in path.parts and path.suffix in (".jsonl", ".pt", ".ckpt"):
            yield path
        if path.name == "compare.json":
            yield path


def _content(path: Path) -> Any:
    if path.suffix in (".pt", ".ckpt"):
        return torch.load(path, weights_only=True)
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def _different(mine: Any, yours: Any, place: str) -> Iterator[str]:
    name = place.rpartition(".")[2]
    if isinstance(mine, dict) and isinstance(yours, dict):
        for key in mine.keys() | yours.keys():
            yield from _different(mine.get(key), yours.get(key), f"{place}.{key}")
    elif isinstance(mine, list) and isinstance(yours, list) and len(mine) == len(yours):
        for n, pair in enumerate(zip(mine, yours, strict=True)):
            yield from _different(*pair, f"{place}[{n}]")
    elif isinstance(mine, torch.Tensor):
        if not (isinstance(yours, torch.Tensor) and torch.equal(mine, yours)):
            yield f"{place} differs"
    elif name in _TIMES or place.endswith(_IDENTITY):
        return
    elif name in _SCORED and mine is not None and yours is not None:
        if abs(mine - yours) > _ROUNDED * max(abs(mine), abs(yours)):
            yield f"{place} is {mine} and {yours}"
    elif mine != yours:
        yield f"{place} is {str(mine)[:60]} and {str(yours)[:60]}"


def bytes_of(place: Workplace) -> bytes:
    """The RL data of a folder."""
    return (place.results / GENERATED).read_bytes()


def interrupted(place: Workplace, when: int) -> str:
    """Sends Ctrl-C to `LONG` when some queries are done, and runs it again. Returns its last output."""
    process = place.start(LONG)
    _wait_for(process, place, when)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, output[-3000:]
    return place.run(LONG)[0]


def without_server(place: Workplace, server: RealServer, when: int) -> tuple[str, str]:
    """Kills the server when some queries are done; once the command has ended, starts both again.

    Returns:
        The outputs of both commands.
    """
    process = place.start(LONG)
    _wait_for(process, place, when)
    server.end(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 1, output[-3000:]
    server.start()
    return output, place.run(LONG)[0]


def _wait_for(process: subprocess.Popen[str], place: Workplace, queries: int) -> None:
    while process.poll() is None and place.journalled() < queries:
        time.sleep(0.05)
    assert process.poll() is None, "the command ended before it was interrupted"
