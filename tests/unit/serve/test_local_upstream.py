import asyncio
import json
from pathlib import Path

import pytest
from fakes import FakeEngine

from icdsel.records import Answer, Example
from icdsel.serve.errors import ApiError
from icdsel.serve.local_upstream import LocalUpstream
from icdsel.serve.metrics import Metrics
from icdsel.serve.upstream import Reply, Turn
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

QUERY = Example("q", "i", Path("a.png"), "Which?", "", ())
ICD = Example(1, 1, Path("b.png"), "Which?", "red", ("red",))


def asked(body=None, icds=(ICD,), shown=True, system=False, seconds=5.0):
    request = Request(tuple(icds), QUERY) if shown else None
    return lambda now: Turn({"messages": [], **(body or {})}, request, system, "place", now + seconds)


def replies(*turns, engine=None, most=8) -> list[Reply | BaseException]:
    engine = engine or FakeEngine()

    async def one(upstream, make) -> Reply:
        reply = await upstream.chat(make(asyncio.get_running_loop().time()))
        if reply.events is None:
            return reply
        return Reply(reply.status, b"".join([part async for part in reply.events]), media_type=reply.media_type)

    async def main():
        supervised = SupervisedEngine(engine, CallTimer(60), 1.0)
        upstream = LocalUpstream(supervised, most, 5, Metrics(), clean=str.upper)
        try:
            return await asyncio.gather(*(one(upstream, make) for make in turns), return_exceptions=True)
        finally:
            await upstream.close()

    return asyncio.run(main())


def text_of(reply: Reply) -> str:
    return json.loads(reply.body)["choices"][0]["message"]["content"]


def test_answers_are_completions_cleaned_as_infer_cleans_them():
    [reply] = replies(asked())
    value = json.loads(reply.body)
    assert reply.status == 200 and text_of(reply) == "RED"
    assert value["object"] == "chat.completion" and value["model"] == "fake-model"
    assert value["choices"][0]["finish_reason"] == "stop"


def test_an_answer_that_was_cut_says_so():
    [reply] = replies(asked(), engine=FakeEngine(answer_of=lambda request: Answer("long", cut=True)))
    assert json.loads(reply.body)["choices"][0]["finish_reason"] == "length"


def test_a_stream_has_the_same_answer():
    [reply] = replies(asked({"stream": True}))
    *events, done = reply.body.decode().strip().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert done == "data: [DONE]" and reply.media_type == "text/event-stream"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "RED"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]


def test_prompts_that_wait_are_answered_together():
    engine = FakeEngine(batch=100)
    assert [text_of(reply) for reply in replies(*[asked()] * 9, engine=engine)] == ["RED"] * 9
    assert len(engine.calls) == 2 and sum(map(len, engine.calls)) == 9


@pytest.mark.parametrize(
    ("turn", "status"),
    [
        (asked(shown=False), 400),
        (asked(system=True), 400),
        (asked({"n": 2}), 400),
        (asked({"logprobs": True}), 400),
        (asked({"tools": [{}]}), 400),
        (asked({"model": "gpt-9"}), 404),
    ],
)
def test_what_the_model_cannot_do_is_refused(turn, status):
    [error] = replies(turn)
    assert isinstance(error, ApiError) and error.status == status


def test_what_changes_nothing_is_accepted():
    body = {"n": 1, "logprobs": False, "tools": [], "model": "fake-model", "temperature": 0.7, "max_tokens": 3}
    assert text_of(*replies(asked(body))) == "RED"


def test_a_failed_call_is_an_error_of_this_request_alone():
    def answer(request):
        return Answer("", error="the image is gone") if not request.icds else "red"

    failed, fine = replies(asked(icds=()), asked(), engine=FakeEngine(answer_of=answer))
    assert isinstance(failed, ApiError) and failed.status == 502 and "the image is gone" in failed.message
    assert text_of(fine) == "RED"


def test_an_answer_that_takes_too_long_is_a_timeout():
    import time

    engine = FakeEngine(fault=lambda requests: time.sleep(0.3))
    [error] = replies(asked(seconds=0.05), engine=engine)
    assert isinstance(error, ApiError) and error.status == 504


def test_a_failure_does_not_tell_where_images_are():
    icd = Example(1, 1, Path("/somewhere/b.png"), "Which?", "red", ("red",))
    failing = FakeEngine(answer_of=lambda request: Answer("", error="/somewhere/b.png is missing"))
    [error] = replies(asked(icds=(icd,)), engine=failing)
    assert isinstance(error, ApiError) and "an image is missing" in error.message and "/some" not in error.message
