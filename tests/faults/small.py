"""Stages that consist of a slot alone, small enough to be ended at every single operation on files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.errors import RunError
from icdsel.store.conversion import write_conversion
from icdsel.store.files import write_bytes
from icdsel.store.journal import Journal
from icdsel.store.metadata import read_metadata
from icdsel.store.slot import FolderSlot, Slot, State, find_or_make

SETTINGS = {"data": {"seed": 1}}
WORK = {"scoring": {"seconds": 1.0, "count": 2}}


def pair(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError
    return value


def file(folder: Path, seed: int = 1, overwrite: bool = False) -> None:
    """As RL data are written: units of two lines in a journal, which becomes the file."""
    path = folder / "data" / "numbers.jsonl"
    slot = Slot(path, {"data.seed": seed}, path.exists, RunError, "")
    with slot.open(overwrite) as result:
        if result.complete:
            return
        result.begin(SETTINGS, "cpu", 1, queries=4)
        done = len(list(result.journal.read(pair))) // 2
        result.journal.keep(2 * done)
        for unit in range(done, 2):
            result.journal.append([[seed, 2 * unit], [seed, 2 * unit + 1]])
        result.commit(work=WORK)


def extended_file(folder: Path, wanted: tuple[int, ...] = (1, 2, 3)) -> None:
    """As predictions are written: a file is replaced by one with more lines, which a journal collects."""
    path = folder / "infer" / "row.jsonl"

    def existing() -> list[int]:
        return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []

    slot = Slot(path, {}, lambda: set(wanted) <= set(existing()), RunError, "")
    with slot.open() as result:
        numbers = [] if result.state is State.MISSING else existing()
        if missing := [number for number in wanted if number not in numbers]:
            result.begin(SETTINGS, "cpu", 1, name="row", set="validation")
            collected = [value[0] for value in result.journal.read(pair)]
            for number in missing[len(collected) :]:
                result.journal.append([[number]])
            numbers = sorted(numbers + missing)
            content = "".join(f"[{number}]\n" for number in numbers).encode()
            result.commit(content, answers={"1": len(numbers)}, work=WORK)
        if result.journal.path.exists():
            result.journal.remove()


def run(folder: Path, seed: int = 1, overwrite: bool = False) -> None:
    """As a training writes: checkpoints, a journal of metrics, and a state to resume from."""
    path = folder / "model_cpk" / "run"
    metadata = path / "run.json"

    def finished() -> bool:
        return metadata.exists() and read_metadata(metadata).finished is not None

    slot = FolderSlot(path, {"data.seed": seed}, finished, RunError, "", "run.json", "log.txt", "resume.pt")
    with slot.open(overwrite) as result:
        if result.complete:
            return
        result.begin(SETTINGS, "cpu", 1, pair="rand")
        state = path / "resume.pt"
        metrics = Journal(path / "metrics.jsonl")
        done = len(list(metrics.read(pair))) if state.exists() else 0
        done = min(done, int(state.read_text())) if state.exists() else 0
        metrics.keep(done)
        for epoch in range(done, 2):
            write_bytes(path / f"rce_epoch{epoch + 1}.pt", bytes([seed, epoch]))
            metrics.append([[seed, epoch]])
            write_bytes(state, str(epoch + 1).encode())
        result.commit(finished=1, work=WORK)


def found(folder: Path) -> None:
    """As embeddings are written: by whoever needs them first."""
    path = folder / "cache" / "table"

    def make() -> bytes:
        write_bytes(path, b"computed")
        return b"computed"

    assert find_or_make(path, "table", lambda: path.read_bytes() if path.exists() else None, make) == b"computed"


def conversion(folder: Path) -> None:
    """As `icdsel convert --overwrite` writes."""
    write_conversion(folder / "policy.ckpt", b"converted", folder / "policy.pt", RunError, overwrite=True)


def nothing(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class Small:
    """A stage, and what was in its folder before."""

    name: str
    make: Callable[[Path], None]
    before: Callable[[Path], None] = nothing

    def __str__(self) -> str:
        return self.name


SMALL = (
    Small("file", file),
    Small("overwritten file", lambda folder: file(folder, overwrite=True), lambda folder: file(folder, seed=2)),
    Small("extended file", extended_file, lambda folder: extended_file(folder, (2,))),
    Small("run", run),
    Small("overwritten run", lambda folder: run(folder, overwrite=True), lambda folder: run(folder, seed=2)),
    Small("found or made", found),
    Small("conversion", conversion, lambda folder: write_bytes(folder / "policy.ckpt", b"mine")),
)
