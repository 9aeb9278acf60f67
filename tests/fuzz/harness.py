"""Gives a reader file after file and lets nothing pass but its own refusals; limits of time and memory."""

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

SECONDS_A_CASE = 5.0  # a case that takes longer hangs
MEMORY = 512 * 2**20  # bytes that a case may take
LONGEST_MESSAGE = 4000
LARGEST_KEPT = 2**16  # bytes of an input that is mutated further

Mutate = Callable[[Random, bytes, Sequence[bytes]], bytes]
"""Makes another input of one; the others are there to take pieces from."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: Its name on the command line.
        prepare: Writes what belongs beside the file into an empty folder, and says where the file goes.
        seeds: Whole and broken inputs to begin with.
        mutate: Makes further ones of them.
        read: Reads the file, and uses what came of it as the program does; False where it was passed over.
        refusals: What it may raise.
    """

    name: str
    prepare: Callable[[Path], Path]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...] = (UserError,)


@dataclass
class Report:
    """What came of many cases."""

    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, bytes]] = field(default_factory=list)
    corpus: list[bytes] = field(default_factory=list)


class Hang(BaseException):
    """A case took too long; no `except Exception` takes it for an error of the file."""


def fuzz(reader: Reader, folder: Path, random: Random, cases: int, seconds: float, corpus: list[bytes]) -> Report:
    """Runs so many cases, or for so long. What is answered as nothing before was is mutated further.

    Args:
        reader: What is tested.
        folder: Empty, on a file system in memory where there is one.
        random: Decides everything.
        cases: How many at most.
        seconds: Of computing, at most.
        corpus: Inputs to begin with, beside the seeds.
    """
    path = reader.prepare(folder)
    seeds, report = reader.seeds(), Report()
    known = seeds + corpus
    answers: set[str] = set()
    started = time.process_time()
    waiting = list(known)  # each of them as it is, first
    fine: list[bytes] = []  # what was read without complaint
    while report.cases < cases and (report.seconds < seconds or waiting):
        parents = fine if fine and random.random() < 0.7 else known
        content = waiting.pop() if waiting else reader.mutate(random, random.choice(parents), known)
        path.write_bytes(content)
        answer, failure = answer_to(reader, path)
        report.cases += 1
        report.outcomes[answer.split(":")[0]] += 1
        if failure:
            report.failures.append((failure, content))
            if len(report.failures) >= 20:
                break
        elif answer == "read":
            if len(fine) < 100:
                fine.append(content)
            elif len(content) <= LARGEST_KEPT and random.random() < 0.02:
                fine[random.randrange(len(seeds), 100)] = content
        elif answer not in answers and len(content) <= LARGEST_KEPT and len(answers) < 3000:
            answers.add(answer)
            if report.cases > len(seeds) + len(corpus):
                known.append(content)
                report.corpus.append(content)
        report.seconds = time.process_time() - started
    return report


def warm(reader: Reader, folder: Path) -> None:
    """Reads the seeds, so that no import of a library counts as a case's time and memory."""
    for content in reader.seeds():
        path = reader.prepare(Path(tempfile.mkdtemp(dir=folder)))
        path.write_bytes(content)
        with suppress(*reader.refusals):
            reader.read(path)


def answer_to(reader: Reader, path: Path) -> tuple[str, str]:
    """What a reader makes of a file: a word and the form of its message; and what is wrong with that, if anything."""
    before = _peak()
    try:
        with _limited(SECONDS_A_CASE):
            used = reader.read(path)
        answer, failure = "read" if used is not False else "left", ""
    except reader.refusals as error:
        answer, failure = f"{type(error).__name__}: {_form(str(error))}", _wrong_refusal(error, str(path))
    except Hang as error:
        answer, failure = "hang", "hang\n" + "".join(traceback.format_tb(error.__traceback__)[-6:])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        answer, failure = "crash", "".join(traceback.format_exception(error))
    if not failure and (taken := _peak() - before) > MEMORY // 2:
        answer, failure = "memory", f"memory: {taken:,} bytes"
    return answer, failure


def _wrong_refusal(error: Exception, path: str) -> str:
    """What is wrong with how a file was refused."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            return "memory:\n" + "".join(traceback.format_exception(seen))
        seen = seen.__cause__ or seen.__context__
    message = str(error)
    if len(message.replace(path, "")) > LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters: {message[:200]}"
    shown(message).encode()
    return ""


def _form(message: str) -> str:
    """A message without what is of one file alone."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|[-\d.]+", "#", message)[:160]


def _peak() -> int:
    """The most memory that this process held since `limited_memory`, in bytes."""
    found = re.search(rb"VmHWM:\s+(\d+)", Path("/proc/self/status").read_bytes())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    # On a busy machine a short case may take long: its own time counts, and ten times that where it waits.
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
    """No more than `MEMORY` beside what the process holds by now."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, before[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is told anew
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
