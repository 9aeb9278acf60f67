"""How far a server agrees with the local scorer on prompts of the bundled worlds, and how fast both are."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icdsel.data.datasets import load_split
from icdsel.records import Answer
from icdsel.settings.tables import DataSettings, VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import open_engine
from icdsel.vlm.supervision import SupervisedEngine

WORLDS = ("world", "world-misleading", "world-hard")
SHOTS = 5
"""Prompts have 0 to 4 ICDs, in turn."""
_MOST_PIXELS = 10**7
_MOST_SHOWN = 5


def prompts(folder: Path, count: int, seed: int, references: bool) -> list[Request]:
    """Draws prompts of 0 to 4 shots from the bundled worlds, in turn.

    The references of a prompt are those of its query and the answers of its ICDs: some are on the greedy path, others
    are not, and those of the hard world have several tokens.
    """
    splits = []
    for world in WORLDS:
        data = DataSettings(dataset=world, data_dir=folder / "data", results_dir=folder / "results")
        splits.append((load_split(data, "train"), load_split(data, "validation")))
    drawn, generator = [], random.Random(seed)
    for i in range(count):
        train, validation = splits[i % len(splits)]
        query = validation[generator.randrange(len(validation))]
        icds = tuple(train[row] for row in generator.sample(range(len(train)), i % SHOTS))
        known = dict.fromkeys([*query.answers, *(icd.answer for icd in icds)]) if references else {}
        drawn.append(Request(icds, query, tuple(known)))
    return drawn


def local_engine() -> SupervisedEngine:
    """The tiny VLM in this process, on the CPU."""
    return open_engine(VlmSettings(device="cpu", dtype="float32"), _MOST_PIXELS)


def server_engine(url: str, concurrency: int = 64) -> SupervisedEngine:
    """The tiny VLM on a server; every failed call is told, and none ends the measurement."""
    return open_engine(VlmSettings(url=(url,), concurrency=concurrency, max_failed=1.0), _MOST_PIXELS)


@dataclass
class Agreement:
    """What a comparison has found.

    Attributes:
        state: The state of the server's caches.
        prompts: How many prompts there were.
        seconds: How long the server took.
        failed: Why calls failed.
        different: Answers that differ, with the local one first.
        lengths: Prompts whose number of tokens, or that of a reference, differs.
        references: How many references were scored.
        furthest: The largest difference of log-probs, in nats.
    """

    state: str
    prompts: int
    seconds: float
    failed: list[str] = field(default_factory=list)
    different: list[tuple[str, str]] = field(default_factory=list)
    lengths: int = 0
    references: int = 0
    furthest: float = 0.0

    def row(self) -> list[str]:
        """A row of a table."""
        equal = self.prompts - len(self.failed) - len(self.different)
        furthest = f"{self.furthest:.1e} of {self.references:,}" if self.references else "–"
        rate = f"{self.prompts / self.seconds:.1f}"
        return [self.state, f"{equal:,} of {self.prompts:,}", str(len(self.failed)), str(self.lengths), furthest, rate]

    def __str__(self) -> str:
        shown = [f"{a!r} locally, {b!r} on the server" for a, b in self.different[:_MOST_SHOWN]]
        return "; ".join([", ".join(self.row()), *shown, *self.failed[:_MOST_SHOWN]])


AGREEMENT_HEAD = [
    *("caches of the server", "equal answers", "failed", "other lengths", "log-probs differ by at most", "answers/s")
]


def compare(local: Sequence[Answer], engine: SupervisedEngine, requests: Sequence[Request], state: str) -> Agreement:
    """Has a server answer prompts, and compares with the local answers to them."""
    start = time.perf_counter()
    answers = engine.answer(requests)
    found = Agreement(state, len(requests), time.perf_counter() - start)
    for here, there in zip(local, answers, strict=True):
        if there.error is not None:
            found.failed.append(there.error)
            continue
        if here.text != there.text or here.cut != there.cut:
            found.different.append((here.text, there.text))
        found.lengths += here.prompt_tokens != there.prompt_tokens or (
            bool(there.reference_tokens) and here.reference_tokens != there.reference_tokens
        )
        pairs = list(zip(here.reference_log_probs, there.reference_log_probs, strict=False))
        found.references += len(pairs)
        found.furthest = max(found.furthest, *(abs(a - b) for a, b in pairs), 0.0)
    return found


def rates(url: str, requests: Sequence[Request], concurrencies: Sequence[int]) -> Iterator[list[str]]:
    """Yields rows with the answers per second of the local scorer, and of a server at several concurrencies.

    Each is measured twice, at first with prompts that it has not seen. Every concurrency has prompts of its own.
    """
    parts = len(concurrencies) + 1
    shares = [requests[part::parts] for part in range(parts)]
    local = local_engine()
    engines = [("local scorer", local), *((f"{c} at once", server_engine(url, c)) for c in concurrencies)]
    for (name, engine), share in zip(engines, shares, strict=True):
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            answers = engine.answer(share)
            seconds.append(time.perf_counter() - start)
            assert not any(answer.error for answer in answers)
        engine.close()
        yield [name, *(f"{len(share) / each:.1f}" for each in seconds)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)
