"""Calls of an engine that raise, hang or lack memory: retried, then recorded as failed; other answers do not change."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeEngine, Fault, copied_answer, fits, hangs, raises
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.errors import CallsError, VlmError
from icdsel.records import Answer, Example
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

EXAMPLES = [Example(i, i, Path(f"{i}.png"), f"question {i % 3}", f"answer {i}", ("a",)) for i in range(45)]
REQUESTS = [Request((EXAMPLES[i + 1], EXAMPLES[i + 2]), EXAMPLES[i], ("a",)) for i in range(40)]
BAD = 7
IS_BAD: Callable[[Request], bool] = lambda request: request.query.question_id == BAD  # noqa: E731


def supervised(engine: FakeEngine, *, seconds: float = 2.0, max_failed: float = 0.1) -> SupervisedEngine:
    return SupervisedEngine(engine, CallTimer(seconds), max_failed)


def expected(requests: Sequence[Request] = REQUESTS) -> list[Answer]:
    return [FakeEngine().alone(request) for request in requests]


def sizes(engine: FakeEngine) -> list[int]:
    return [len(call) for call in engine.calls]


def test_an_engine_that_never_fails_is_called_once_for_each_batch() -> None:
    engine = FakeEngine(chunk=20, batch=8)
    assert supervised(engine).answer(REQUESTS) == expected()
    assert sizes(engine) == [8, 8, 4, 8, 8, 4]
    assert engine.releases == 0


def test_the_supervised_engine_is_the_engine() -> None:
    engine = FakeEngine("model")
    made = supervised(engine)
    for name in ("name", "fingerprint", "dtype", "device", "chunk", "can_score_references", "can_embed"):
        assert getattr(made, name) == getattr(engine, name)
    assert made.embed_texts(["a"]).equal(engine.embed_texts(["a"]))
    assert made.embed_images([Path("missing.png")])[1] == {0: "missing.png is missing"}
    assert made.advice() is None and list(made.batches(REQUESTS[:3])) == [range(2, -1, -1)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (raises(lambda: RuntimeError("device-side assert\nmore"), IS_BAD), "RuntimeError: device-side assert"),
        (hangs(IS_BAD), "no answer from the VLM after 0.3 seconds"),
        (
            raises(lambda: torch.OutOfMemoryError("CUDA out of memory"), IS_BAD),
            "out of memory for a single prompt: CUDA out of memory",
        ),
        (raises(MemoryError, IS_BAD), "out of memory for a single prompt: MemoryError"),
    ],
    ids=["raises", "hangs", "out-of-memory", "memory-error"],
)
def test_one_bad_request_fails_alone_with_its_reason(fault: Fault, reason: str) -> None:
    engine = FakeEngine(fault=fault)
    answers = supervised(engine, seconds=0.3).answer(REQUESTS)
    assert answers[BAD] == Answer("", error=reason)
    assert answers[:BAD] + answers[BAD + 1 :] == expected()[:BAD] + expected()[BAD + 1 :]
    assert engine.releases > 0


def test_an_answer_with_an_error_is_tried_once_more_alone() -> None:
    def answer_of(request: Request) -> str | Answer:
        return Answer("", error="not finite") if IS_BAD(request) else copied_answer(request)

    engine = FakeEngine(answer_of=answer_of)
    answers = supervised(engine).answer(REQUESTS)
    assert [i for i, answer in enumerate(answers) if answer.error] == [BAD]
    assert [call for call in engine.calls if REQUESTS[BAD] in call][1:] == [[REQUESTS[BAD]]]


def test_a_failure_that_passes_is_no_failure() -> None:
    calls_alone = 0

    def fault(requests: Sequence[Request]) -> None:
        nonlocal calls_alone
        calls_alone += requests == [REQUESTS[BAD]]
        if REQUESTS[BAD] in requests and calls_alone < 2:
            raise RuntimeError("a hiccup")

    assert supervised(FakeEngine(fault=fault)).answer(REQUESTS) == expected()
    assert calls_alone == 2


def test_answers_are_reported_once_each_as_they_come() -> None:
    reported: dict[int, Answer] = {}

    def on_answers(new: Any) -> None:
        assert not reported.keys() & new.keys()
        reported.update(new)

    engine = FakeEngine(fault=raises(lambda: RuntimeError("no"), IS_BAD), chunk=16)
    answers = supervised(engine).answer(REQUESTS, on_answers)
    assert [reported[i] for i in range(len(REQUESTS))] == answers


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 39)), st.integers(1, 12), st.integers(1, 40), st.integers(1, 20), st.integers(0, 40))
def test_whatever_fails_each_request_has_its_own_answer_or_its_own_failure(
    bad: set[int], most: int, chunk: int, batch: int, count: int
) -> None:
    """Some requests fail always, and calls with more than `most` requests lack memory."""

    def fault(requests: Sequence[Request]) -> None:
        raises(lambda: ValueError("bad"), lambda request: request.query.question_id in bad)(requests)
        fits(most)(requests)

    requests = REQUESTS[:count]
    answers = supervised(FakeEngine(fault=fault, chunk=chunk, batch=batch), max_failed=1).answer(requests)
    for i, (answer, alone) in enumerate(zip(answers, expected(requests), strict=True)):
        assert answer == (Answer("", error="ValueError: bad") if i in bad else alone)


# --- memory -----------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved_and_so_are_later_ones() -> None:
    engine = FakeEngine(fault=fits(3), chunk=16, batch=16)
    assert supervised(engine).answer(REQUESTS) == expected()
    halved = [16, 8, 4, 2, 2, 4, 2, 2]
    assert sizes(engine) == [*halved, *halved[1:], *[2] * 12]


def test_another_failure_makes_no_later_batch_smaller() -> None:
    engine = FakeEngine(fault=raises(lambda: ValueError("bad"), IS_BAD), chunk=16, batch=16)
    supervised(engine).answer(REQUESTS)
    assert sizes(engine)[-2:] == [16, 8]


# --- time -------------------------------------------------------------------------------------------------


def test_a_query_whose_prompts_all_hang_does_not_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    hanging = {6, 7, 8, 9}
    engine = FakeEngine(fault=hangs(lambda request: request.query.question_id in hanging), chunk=20, batch=20)
    answers = supervised(engine, seconds=0.3, max_failed=0.5).answer(REQUESTS)
    warning = "no answer from the VLM after 0.3 seconds for 20 prompts together: retrying them one by one"
    assert warning in caplog.messages[0]
    assert {i for i, answer in enumerate(answers) if answer.error} == hanging
    assert [a for a in answers if not a.error] == [a for i, a in enumerate(expected()) if i not in hanging]


def test_a_device_that_is_gone_stops_the_run_soon() -> None:
    engine = FakeEngine(fault=hangs(lambda request: True))
    started = time.monotonic()
    with pytest.raises(CallsError, match=r"after 0.3 seconds, 3 times in a row.*same command again.*--call-timeout"):
        supervised(engine, seconds=0.3).answer(REQUESTS)
    assert len(engine.calls) == 3 and time.monotonic() - started < 10


# --- the limit of failures --------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "stops"), [(3, False), (4, True)])
def test_too_many_failures_stop_the_run(bad: int, stops: bool) -> None:
    """A tenth of 40 requests may fail; the limit is checked after each chunk, and counts at least 32 requests."""
    engine = FakeEngine(
        fault=raises(lambda: OSError("gone"), lambda request: request.query.question_id < bad), chunk=10
    )
    made = supervised(engine)
    if not stops:
        assert sum(answer.error is not None for answer in made.answer(REQUESTS)) == bad
        return
    with pytest.raises(
        CallsError, match=r"4 of 10 VLM calls failed, more than --max-failed 0\.1 allows.*OSError: gone"
    ):
        made.answer(REQUESTS)
    assert len(engine.calls) < 20  # the other chunks were not begun


def test_failures_are_counted_over_all_calls() -> None:
    made = supervised(FakeEngine(fault=raises(lambda: OSError("gone"), IS_BAD)))
    for _ in range(3):
        made.answer([REQUESTS[BAD]])
    with pytest.raises(CallsError, match="4 of 4 VLM calls failed"):
        made.answer([REQUESTS[BAD]])


def test_an_error_for_the_user_ends_the_command_at_once() -> None:
    engine = FakeEngine(fault=raises(lambda: VlmError("the key is wrong"), IS_BAD))
    with pytest.raises(VlmError, match="the key is wrong"):
        supervised(engine).answer(REQUESTS)
    assert len(engine.calls) <= 3


def test_images_that_are_skipped_do_not_stop_a_run() -> None:
    def fault(requests: Sequence[Request]) -> None:
        if any(EXAMPLES[BAD] in request.shown for request in requests):
            raise RuntimeError("7.png is missing")

    requests = [REQUESTS[BAD]] * 8 + REQUESTS[10:14]
    with pytest.raises(CallsError, match=r"8 of 12 VLM calls failed"):
        supervised(FakeEngine(fault=fault)).answer(requests)
    engine = supervised(FakeEngine(fault=fault))
    engine.calls.skipped = {EXAMPLES[BAD].image}
    answers = engine.answer(requests)
    assert [answer.error is not None for answer in answers] == [True] * 8 + [False] * 4
