"""Feeds a reader file after file, within limits of time and memory. It may raise its documented errors only."""

import re
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from icdsel.console import shown
from icdsel.errors import UserError

SECONDS_PER_CASE = 5.0
MEMORY = 512 * 2**20  # bytes available to a case
LONGEST_MESSAGE = 4000
LARGEST_KEPT = 2**16  # bytes of an input that is mutated further

Mutate = Callable[[Random, bytes, Sequence[bytes]], bytes]
"""Makes a new input from one; the others supply pieces."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: Its name on the command line.
        prepare: Writes the files that belong beside the input into an empty folder; returns the input's path.
        seeds: Valid and broken inputs to start from.
        mutate: Makes further inputs from them.
        read: Reads the file and uses the result as the program does; False if the reader skipped the file.
        errors: What it may raise.
    """

    name: str
    prepare: Callable[[Path], Path]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)


@dataclass
class Report:
    """The results of many cases."""

    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, bytes]] = field(default_factory=list)
    corpus: list[bytes] = field(default_factory=list)


class Hang(BaseException):
    """A case took too long; not an `Exception`, so that no reader handles it as an error of the file."""


def fuzz(reader: Reader, folder: Path, random: Random, cases: int, seconds: float, corpus: list[bytes]) -> Report:
    """Runs many cases. Inputs with a new outcome are mutated further.

    Args:
        reader: The reader under test.
        folder: An empty folder, in memory if possible.
        random: Decides everything.
        cases: Maximum number of cases.
        seconds: Maximum CPU time.
        corpus: Inputs to start from, in addition to the seeds.
    """
    path = reader.prepare(folder)
    seeds, report = reader.seeds(), Report()
    known = seeds + corpus
    outcomes: set[str] = set()
    started = time.process_time()
    waiting = list(known)  # each of them unchanged, first
    valid: list[bytes] = []
    while report.cases < cases and (report.seconds < seconds or waiting):
        parents = valid if valid and random.random() < 0.7 else known
        content = waiting.pop() if waiting else reader.mutate(random, random.choice(parents), known)
        path.write_bytes(content)
        outcome, failure = run_case(reader, path)
        report.cases += 1
        report.outcomes[outcome.split(":")[0]] += 1
        if failure:
            report.failures.append((failure, content))
            if len(report.failures) >= 20:
                break
        elif outcome == "read":
            if len(valid) < 100:
                valid.append(content)
            elif len(content) <= LARGEST_KEPT and random.random() < 0.02:
                valid[random.randrange(len(seeds), 100)] = content
        elif outcome not in outcomes and len(content) <= LARGEST_KEPT and len(outcomes) < 3000:
            outcomes.add(outcome)
            if report.cases > len(seeds) + len(corpus):
                known.append(content)
                report.corpus.append(content)
        report.seconds = time.process_time() - started
    return report


def warm_up(reader: Reader, folder: Path) -> None:
    """Reads the seeds, so that imports of libraries count for no case."""
    for content in reader.seeds():
        path = reader.prepare(Path(tempfile.mkdtemp(dir=folder)))
        path.write_bytes(content)
        with suppress(*reader.errors):
            reader.read(path)


def run_case(reader: Reader, path: Path) -> tuple[str, str]:
    """Reads one file.

    Returns:
        The outcome ("read", "left" if the reader skipped the file, else the kind of error and the pattern of its
        message), and a description of the failure, empty if it passed.
    """
    before = _peak()
    try:
        with _limited(SECONDS_PER_CASE):
            used = reader.read(path)
        outcome, failure = "read" if used is not False else "left", ""
    except reader.errors as error:
        outcome, failure = f"{type(error).__name__}: {_pattern(str(error))}", _problem_with(error, str(path))
    except Hang as error:
        outcome, failure = "hang", "hang\n" + "".join(traceback.format_tb(error.__traceback__)[-6:])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        outcome, failure = "crash", "".join(traceback.format_exception(error))
    if not failure and (used_bytes := _peak() - before) > MEMORY // 2:
        outcome, failure = "memory", f"memory: {used_bytes:,} bytes"
    return outcome, failure


def _problem_with(error: Exception, path: str) -> str:
    """What is wrong with an expected error: its cause, or its message; empty if nothing is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "memory:\n" + "".join(traceback.format_exception(cause))
        cause = cause.__cause__ or cause.__context__
    message = str(error)
    if len(message.replace(path, "")) > LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters: {message[:200]}"
    shown(message).encode()
    return ""


def _pattern(message: str) -> str:
    """A message without the parts that are specific to one file."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|[-\d.]+", "#", message)[:160]


def _peak() -> int:
    """Peak memory of this process since `limited_memory`, in bytes."""
    found = re.search(rb"VmHWM:\s+(\d+)", Path("/proc/self/status").read_bytes())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    # On a busy machine a short case may take long: CPU time counts, and wall time only as ten times the limit.
    limits = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before: list[Any] = [signal.signal(number, stop) for number, _, _ in limits]
    for _, timer, limit in limits:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(limits, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Allows no more than `MEMORY` in addition to what the process uses now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
