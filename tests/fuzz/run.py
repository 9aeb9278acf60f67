"""Long runs: `python -m tests.fuzz.run [READER…] --cases 1000000 --minutes 120 --json counts.json`.

Counts are kept in the file of `--json`; the same command resumes from them. Each chunk of cases runs in a process of
its own, so an input that kills it is a failure like any other. Failing inputs are kept in a folder; `--again FILE`
reads one of them again.
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

from .harness import Reader, Report, fuzz, limited_memory, run_case, warm_up
from .readers import READERS

CHUNK = 50_000, 120.0  # cases and CPU seconds per process
TRACEBACK = "traceback.txt"  # of a process that failed
IN_MEMORY = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"any of {', '.join(reader.name for reader in READERS)}")
    parser.add_argument("--cases", type=int, default=1_000_000, help="maximum number per reader")
    parser.add_argument("--minutes", type=float, default=120, help="maximum CPU time per reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the counts; resumes from it if it exists")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for failing inputs")
    parser.add_argument("--again", type=Path, help="read this input again (name its reader)")
    parser.add_argument("--table", action="store_true", help="print the counts of --json as a Markdown table")
    arguments = parser.parse_args()
    chosen = [reader for reader in READERS if not arguments.readers or reader.name in arguments.readers]
    if not chosen or len(chosen) < len(set(arguments.readers)):
        parser.error(f"readers are: {', '.join(reader.name for reader in READERS)}")
    torch.set_num_threads(1)
    err.quiet = True  # notes of the readers
    if arguments.again:
        return _again(chosen[0], arguments.again)
    counts: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        counts = json.loads(arguments.json.read_text())["readers"]
    if arguments.table:
        print(_table(counts))
        return 0
    for reader in chosen:
        for count in _run(reader, arguments, counts.get(reader.name, {})):
            counts[reader.name] = count
            if arguments.json:
                arguments.json.write_text(json.dumps({"versions": _versions(), "readers": counts}, indent=1) + "\n")
        print(reader.name, json.dumps(counts.get(reader.name)), flush=True)
    return int(any(count["failures"] for count in counts.values()))


def _table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| reader | cases | seconds | read | rejected | skipped | failures |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, count in counts.items():
        read, skipped = (count["outcomes"].get(outcome, 0) for outcome in ("read", "left"))
        rejected = count["cases"] - read - skipped
        figures = (count["cases"], round(count["seconds"]), read, rejected, skipped, count["failures"])
        rows.append(f"| `{name}` | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    return "\n".join(rows)


def _run(reader: Reader, arguments: argparse.Namespace, so_far: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the counts of one reader after each chunk."""
    outcomes = Counter[str](so_far.get("outcomes", {}))
    cases, seconds, failures, chunk = (so_far.get(name, 0) for name in ("cases", "seconds", "failures", "chunks"))
    corpus: list[bytes] = []
    with tempfile.TemporaryDirectory() as place:
        warm_up(reader, Path(place))
    while cases < arguments.cases and seconds < 60 * arguments.minutes and failures < 100:
        chunk += 1
        limits = min(CHUNK[0], arguments.cases - cases), min(CHUNK[1], 60 * arguments.minutes - seconds)
        folder = Path(tempfile.mkdtemp(prefix="icdsel-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        random = Random(f"{arguments.seed}-{reader.name}-{chunk}")
        report, killed = _in_a_process(reader, folder, random, *limits, corpus)
        seconds += report.seconds
        found = report.failures
        if killed:
            path = reader.prepare(Path(tempfile.mkdtemp(dir=folder)))
            last, trace = next(iter(folder.rglob(path.name)), None), folder / TRACEBACK
            why = f"the process ended with {killed}\n{trace.read_text() if trace.exists() else ''}"
            found = [*found, (why, last.read_bytes() if last else b"")]
        shutil.rmtree(folder, ignore_errors=True)
        for number, (why, content) in enumerate(found, failures + 1):
            arguments.failures.mkdir(parents=True, exist_ok=True)
            (arguments.failures / f"{reader.name}-{arguments.seed}-{number}").write_bytes(content)
            (arguments.failures / f"{reader.name}-{arguments.seed}-{number}.txt").write_text(why, errors="replace")
        cases, failures = cases + report.cases, failures + len(found)
        outcomes += report.outcomes
        corpus = (corpus + report.corpus)[-4000:]
        count = {"cases": cases, "seconds": round(seconds, 1), "outcomes": dict(outcomes)}
        yield count | {"failures": failures, "chunks": chunk, "seed": arguments.seed}


def _in_a_process(
    reader: Reader, folder: Path, random: Random, cases: int, seconds: float, corpus: list[bytes]
) -> tuple[Report, int]:
    """Runs a chunk; returns its report and, if its process failed, the exit status."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries warn about every damaged file
            with limited_memory():
                report = fuzz(reader, folder, random, cases, seconds, corpus)
            with os.fdopen(writing, "wb") as file:
                pickle.dump(report, file)
            status = 0
        except BaseException:  # noqa: BLE001 - the parent reports it
            (folder / TRACEBACK).write_text(traceback.format_exc())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        if not select.select([file], [], [], 10 * seconds + 600)[0]:  # hangs where Python handles no signals
            os.kill(child, signal.SIGKILL)
        content = file.read()
    _, status = os.waitpid(child, 0)
    if status or not content:
        return Report(), status or 1
    made: Report = pickle.loads(content)  # noqa: S301 - from our own child process
    return made, 0


def _again(reader: Reader, file: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        warm_up(reader, Path(folder))
        path = reader.prepare(Path(tempfile.mkdtemp(dir=folder)))
        path.write_bytes(file.read_bytes())
        with limited_memory():
            outcome, failure = run_case(reader, path)
    print(outcome, failure, sep="\n")
    return int(bool(failure))


def _versions() -> dict[str, str]:
    libraries = ("torch", "numpy", "pillow", "safetensors", "pydantic")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}


if __name__ == "__main__":
    sys.exit(main())
