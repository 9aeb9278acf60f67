"""Runs the readers for long: `python -m tests.fuzz.run [READER…] --cases 1000000 --minutes 120 --json counts.json`.

Counts are kept in the file of `--json`: the same command goes on from them. Each chunk of cases runs in a process of
its own: one that is killed by its input is a failure like any other. What fails is kept in a folder, and
`--again FILE` reads it once more.
"""

import argparse
import json
import os
import pickle
import platform
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch

from icdsel.console import err

from .harness import Reader, Report, answer_to, fuzz, limited_memory, warm
from .readers import READERS

CHUNK = 50_000, 120.0  # cases and seconds of computing that a process takes
TRACEBACK = "traceback.txt"  # of a process that ended before its time
IN_MEMORY = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"any of {', '.join(reader.name for reader in READERS)}")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of each reader, at most")
    parser.add_argument("--minutes", type=float, default=120, help="of computing for each reader, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where counts are kept, to go on from")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept")
    parser.add_argument("--again", type=Path, help="read this input once more (name its reader)")
    parser.add_argument("--table", action="store_true", help="show the counts of --json as they stand in the docs")
    given = parser.parse_args()
    chosen = [reader for reader in READERS if not given.readers or reader.name in given.readers]
    if not chosen or len(chosen) < len(set(given.readers)):
        parser.error(f"there are: {', '.join(reader.name for reader in READERS)}")
    torch.set_num_threads(1)
    err.quiet = True  # notes of the readers
    if given.again:
        return _again(chosen[0], given.again)
    counts: dict[str, Any] = {}
    if given.json and given.json.exists():
        counts = json.loads(given.json.read_text())["readers"]
    if given.table:
        print(_table(counts))
        return 0
    for reader in chosen:
        for count in _run(reader, given, counts.get(reader.name, {})):
            counts[reader.name] = count
            if given.json:
                given.json.write_text(json.dumps({"versions": _versions(), "readers": counts}, indent=1) + "\n")
        print(reader.name, json.dumps(counts.get(reader.name)), flush=True)
    return int(any(count["failures"] for count in counts.values()))


def _table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """The counts in Markdown."""
    rows = ["| reader | cases | seconds | read | refused | passed over | failures |", "|---|---|---|---|---|---|---|"]
    for name, count in counts.items():
        told = count["outcomes"]
        read, left = told.get("read", 0), told.get("left", 0)
        figures = (count["cases"], round(count["seconds"]), read, count["cases"] - read - left, left, count["failures"])
        rows.append(f"| `{name}` | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    return "\n".join(rows)


def _run(reader: Reader, given: argparse.Namespace, so_far: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The counts of one reader after each chunk."""
    outcomes = Counter[str](so_far.get("outcomes", {}))
    cases, seconds, failures, chunk = (so_far.get(name, 0) for name in ("cases", "seconds", "failures", "chunks"))
    corpus: list[bytes] = []
    with tempfile.TemporaryDirectory() as place:
        warm(reader, Path(place))
    while cases < given.cases and seconds < 60 * given.minutes and failures < 100:
        chunk += 1
        at_most = min(CHUNK[0], given.cases - cases), min(CHUNK[1], 60 * given.minutes - seconds)
        folder = Path(tempfile.mkdtemp(prefix="icdsel-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        report, killed = _in_a_process(reader, folder, Random(f"{given.seed}-{reader.name}-{chunk}"), *at_most, corpus)
        seconds += report.seconds
        found = report.failures
        if killed:
            path = reader.prepare(Path(tempfile.mkdtemp(dir=folder)))
            last, where = next(iter(folder.rglob(path.name)), None), folder / TRACEBACK
            told = f"the process ended with {killed}\n{where.read_text() if where.exists() else ''}"
            found = [*found, (told, last.read_bytes() if last else b"")]
        shutil.rmtree(folder, ignore_errors=True)
        for number, (why, content) in enumerate(found, failures + 1):
            given.failures.mkdir(parents=True, exist_ok=True)
            (given.failures / f"{reader.name}-{given.seed}-{number}").write_bytes(content)
            (given.failures / f"{reader.name}-{given.seed}-{number}.txt").write_text(why, errors="replace")
        cases, failures = cases + report.cases, failures + len(found)
        outcomes += report.outcomes
        corpus = (corpus + report.corpus)[-4000:]
        count = {"cases": cases, "seconds": round(seconds, 1), "outcomes": dict(outcomes)}
        yield count | {"failures": failures, "chunks": chunk, "seed": given.seed}


def _in_a_process(
    reader: Reader, folder: Path, random: Random, cases: int, seconds: float, corpus: list[bytes]
) -> tuple[Report, int]:
    """A chunk, and what its process ended with where it did not come to its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        ended = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries warn of every damaged file
            with limited_memory():
                report = fuzz(reader, folder, random, cases, seconds, corpus)
            with os.fdopen(writing, "wb") as file:
                pickle.dump(report, file)
            ended = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            (folder / TRACEBACK).write_text(traceback.format_exc())
        finally:
            os._exit(ended)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        if not select.select([file], [], [], 10 * seconds + 600)[0]:  # stuck where no signal of Python's is heard
            os.kill(child, signal.SIGKILL)
        content = file.read()
    _, status = os.waitpid(child, 0)
    if status or not content:
        return Report(), status or 1
    made: Report = pickle.loads(content)  # noqa: S301 - of our own child
    return made, 0


def _again(reader: Reader, file: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        warm(reader, Path(folder))
        path = reader.prepare(Path(tempfile.mkdtemp(dir=folder)))
        path.write_bytes(file.read_bytes())
        with limited_memory():
            answer, failure = answer_to(reader, path)
    print(answer, failure, sep="\n")
    return int(bool(failure))


def _versions() -> dict[str, str]:
    libraries = ("torch", "numpy", "pillow", "safetensors", "pydantic")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}


if __name__ == "__main__":
    sys.exit(main())
