"""The measurement of `icdsel bench --engine …`: engines and the plain way answer the same prompts, side by side.

The ways take turns. Each of them gets a prompt once, and prompts show pictures that are new, so no cache knows any.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch

from icdsel.bench import baseline
from icdsel.bench.architectures import saved_vlm
from icdsel.bench.ways import Way, Ways, needless, ways_of
from icdsel.bench.workload import Prompts, Sizes, Supply
from icdsel.console import note, progress, warn
from icdsel.errors import VlmError, reason_of
from icdsel.records import Answer
from icdsel.settings.loading import Settings
from icdsel.stages.in_order import in_order
from icdsel.stages.scored_unit import UNIT
from icdsel.stages.threads import use_threads
from icdsel.store.metadata import environment
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import Vlm, open_engine
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.workers.pool import EnginePool

PLAIN = "plain way"
_WARM_UP = 2  # prompts that the plain way answers before it is measured


class _Plain:
    """The plain way: a generation, and a forward pass for each reference, one prompt at a time.

    Args:
        local: The engine in this process, whose model is used.

    Attributes:
        about: What it is: `name`, `device`, `threads` (of each worker) and `workers`.
        can_score_references: Whether it gives the log-probs of references.
    """

    can_score_references = True

    def __init__(self, local: "_Asked") -> None:
        vlm = local.engine.engine if isinstance(local.engine, SupervisedEngine) else local.engine
        if not isinstance(vlm, LocalModel):
            raise VlmError(f"the plain way needs a model in this process, not {type(vlm).__name__}")
        self._vlm: LocalModel[Any] = vlm
        self._settings, self.about = local.settings, {**local.about, "name": PLAIN}

    def answers(self, prompts: Prompts) -> dict[int, Answer]:
        """The answers to the chosen prompts."""
        use_threads(self._settings)
        requests = [request for unit in prompts.units for request in unit]
        return {i: self._answer(requests[i]) for i in prompts.chosen}

    def _answer(self, request: Request) -> Answer:
        try:
            text, log_probs = baseline.answer(self._vlm, request)
        except Exception as error:  # noqa: BLE001 - counted as failed, as it is for every engine
            return Answer("", error=reason_of(error))
        return Answer(text, tuple(log_probs))


class _Asked:
    """An engine, asked as stages do: for several units at the same time, if it can answer them.

    Attributes:
        about: As of `_Plain`.
        can_score_references: As of `_Plain`.
    """

    def __init__(self, way: Way, engine: Vlm) -> None:
        self.settings, self.engine = way.settings, engine
        self.can_score_references, self.at_once = engine.can_score_references, engine.at_once
        self.workers = len(engine.described) if isinstance(engine, EnginePool) else None
        threads = None if way.settings.vlm.url else use_threads(way.settings)
        self.about = {"name": way.name, "device": engine.device, "threads": threads, "workers": self.workers}

    def answers(self, prompts: Prompts) -> dict[int, Answer]:
        """The answers to all prompts."""
        use_threads(self.settings)
        with in_order(self.engine.answer, prompts.units, self.engine.at_once, self.engine.close) as results:
            return dict(enumerate(answer for answers in results for answer in answers))


_Measured = _Plain | _Asked


class _Tally:
    """What was measured of one way. Lists hold a figure for each round: without references, and with them."""

    def __init__(self) -> None:
        self.rates: dict[bool, list[float]] = {False: [], True: []}
        self._asked = self._failed = self._same = self._compared = 0
        self._differences: list[float] = []
        self._last_failure: str | None = None

    def measure(self, way: _Measured, prompts: Prompts, references: bool) -> dict[int, Answer]:
        """Times the answers, and returns those that did not fail."""
        start = time.perf_counter()
        answers = way.answers(prompts)
        seconds = time.perf_counter() - start
        good = {i: answer for i, answer in answers.items() if answer.error is None}
        self.rates[references].append(len(good) / seconds)
        self._asked += len(answers)
        self._failed += len(answers) - len(good)
        self._last_failure = next((answer.error for answer in answers.values() if answer.error), self._last_failure)
        return good

    def compare(self, answers: Mapping[int, Answer], plain: Mapping[int, Answer]) -> None:
        """Compares answers with the plain way's."""
        for i in answers.keys() & plain.keys():
            self._compared += 1
            self._same += answers[i].text.strip() == plain[i].text.strip()
            pairs = zip(answers[i].reference_log_probs, plain[i].reference_log_probs, strict=True)
            self._differences += [abs(ours - theirs) for ours, theirs in pairs]

    def figures(self, plain: "_Tally | None") -> dict[str, Any]:
        """The figures of the way; None where there are none."""
        return {
            "per_second": _median(self.rates[False]),
            "ratio": _median(_ratios(self.rates[False], plain.rates[False])) if plain else None,
            "scored_per_second": _median(self.rates[True]),
            "scored_ratio": _median(_ratios(self.rates[True], plain.rates[True])) if plain else None,
            "compared": self._compared,
            "answers_like_plain": self._same / self._compared if self._compared else None,
            "largest_log_prob_difference": float(f"{max(self._differences):.4g}") if self._differences else None,
            "asked": self._asked,
            "failed": self._failed,
            "failure": self._last_failure,
        }


def _ratios(rates: Sequence[float], plain: Sequence[float]) -> list[float]:
    """The ratio to the plain way's rate in each round: the load of the machine changes between rounds."""
    return [ours / theirs for ours, theirs in zip(rates, plain, strict=False) if theirs]


def _median(values: Sequence[float]) -> float | None:
    return float(f"{statistics.median(values):.4g}") if values else None


def bench_engines(
    settings: Settings,
    engines: Sequence[str],
    sizes: Sizes,
    rounds: int,
    local_model: str | None = None,
    architecture: str | None = None,
) -> dict[str, Any]:
    """Measures how many prompts per second each way answers, without and with log-probs of the reference answers.

    Args:
        settings: The model, and what runs it; the seed.
        engines: Names of engines, beside those of the settings.
        sizes: The prompts of each round.
        rounds: How often each way is measured.
        local_model: The model on this machine, if servers call it by another name; `NO_MODEL` if it is not there.
        architecture: Use this architecture with random weights.

    Returns:
        `ways`, a list: of each way its `name`, `device`, `threads` (of each worker) and `workers`; `per_second` and
        `scored_per_second` (with references), with their `ratio` and `scored_ratio` to the plain way, medians over the
        rounds; `answers_like_plain`, the share of the `compared` answers that are equal to the plain way's, and the
        `largest_log_prob_difference` to its; and how many prompts were `asked` and `failed`, with a `failure`. What a
        way does not have is None. `not_here` is why the model is not on this machine, so that servers are measured
        alone, else None.

    Raises:
        VlmError: A model cannot be loaded, or a server cannot be used.
        CallsError: Too many calls of an engine failed.
        SettingsError: There is nothing to measure, or no such device.
    """
    with ExitStack() as stack:
        if architecture is not None:
            local_model = str(stack.enter_context(saved_vlm(architecture, settings)))
        ways = ways_of(settings, engines, local_model)
        for warning in needless(ways):
            warn(warning)
        servers = [_opened(stack, way) for way in ways.servers]
        local, not_here = _opened_here(stack, ways)
        opened = [*local, *servers]
        measured: list[_Measured] = [_Plain(local[0]), *opened] if local else [*opened]
        supply = Supply(sizes, settings.data.seed, lasting=bool(servers))
        with supply.prompts(max(each.at_once for each in opened), 1, references=True) as prompts:
            for way in measured:  # the first use selects kernels, allocates memory, and opens connections
                way.answers(replace(prompts, chosen=prompts.chosen[:_WARM_UP]))
        unit = max(1, min(UNIT, sizes.queries // max(each.workers or 1 for each in opened)))  # every worker has one
        tallies = _measured_in_turns(measured, supply, sizes.queries, unit, rounds)
        plain = tallies[0] if local else None
        return {
            "model": settings.vlm.model if architecture is None else f"{architecture} (random weights)",
            "not_here": not_here,
            "rounds": rounds,
            "queries_in_unit": unit,
            "ways": [{**way.about, **each.figures(plain)} for way, each in zip(measured, tallies, strict=True)],
            "sizes": asdict(sizes),
            "environment": environment(opened[0].engine.device, torch.get_num_threads()),
        }


def _opened(stack: ExitStack, way: Way) -> _Asked:
    use_threads(way.settings)  # Ray looks for places with so many
    engine = open_engine(way.settings.vlm, way.settings.data.max_image_pixels)
    stack.callback(engine.close)
    return _Asked(way, engine)


def _opened_here(stack: ExitStack, ways: Ways) -> tuple[list[_Asked], str | None]:
    """The engines on this machine; none if its model is not here and servers are measured, and why."""
    if not ways.local:
        return [], "it is left out"
    try:
        return [_opened(stack, way) for way in ways.local], None
    except VlmError as error:
        if not ways.servers:
            raise
        return [], str(error)


def _measured_in_turns(
    measured: Sequence[_Measured], supply: Supply, queries: int, unit: int, rounds: int
) -> list[_Tally]:
    """Measures every way in every round, and compares it with the plain way, if that is the first one."""
    tallies = [_Tally() for _ in measured]
    with progress("Measuring", 2 * rounds * len(measured)) as advance:
        for number in range(rounds):
            note(f"measuring {len(measured)} ways, round {number + 1} of {rounds}")
            order = range(len(measured)) if number % 2 == 0 else range(len(measured) - 1, -1, -1)
            for references in (False, True):
                answers: dict[int, dict[int, Answer]] = {}
                with supply.prompts(queries, unit, references) as prompts:
                    for at in order:
                        if measured[at].can_score_references or not references:
                            answers[at] = tallies[at].measure(measured[at], prompts, references)
                        advance(1)
                if isinstance(measured[0], _Plain):
                    for at in answers.keys() - {0}:
                        tallies[at].compare(answers[at], answers[0])
    return tallies
