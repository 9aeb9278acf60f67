"""The engine of servers against a server on loopback that answers, fails and lies."""

import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import CUT_CONNECTION, FakeServer, Fault, Raw, copied_or_unknown, fake_server, is_probe, shown_of

from icdsel.errors import CallsError, SettingsError
from icdsel.records import Answer
from icdsel.settings import settings_from
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.server import client, fleet
from icdsel.vlm.server.engine import ServerEngine, open_server
from icdsel.vlm.server.failures import Unusable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.replies import completion_of
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer


def right(request: Request) -> str:
    *icds, query = request.shown
    texts = [(icd.image, icd.question, icd.answer) for icd in icds] + [(query.image, query.question, "")]
    return copied_or_unknown([shown_of(*each) for each in texts])


def are_right(answers: Sequence[Answer], requests: Sequence[Request]) -> bool:
    return [(answer.text, answer.error) for answer in answers] == [(right(request), None) for request in requests]


def after_probes(fault: Fault) -> Fault:
    """The fault for prompts alone, which are numbered from 0."""
    lock, prompts = threading.Lock(), 0

    def made(number: int, body: dict[str, Any]) -> Any:
        nonlocal prompts
        if is_probe(body):
            return None
        with lock:
            prompts += 1
            number = prompts - 1
        return fault(number, body)

    return made


def test_answers_are_those_of_the_prompts_in_their_order(requests: list[Request], opened: Any):
    with fake_server() as server:
        answers = opened(server).answer(requests)
    assert are_right(answers, requests) and len({answer.text for answer in answers}) > 2
    assert [answer.prompt_tokens for answer in answers] == [10 * len(request.shown) for request in requests]
    assert not any(answer.cut for answer in answers)


def test_a_prompt_is_greedy_whatever_the_model_says(requests: list[Request], opened: Any):
    with fake_server(owner="vllm") as server:
        opened(server, repetition_penalty=1.2, max_new_tokens=7).answer(requests[:1])
    [body] = server.prompts
    assert body["temperature"] == 0 and body["top_p"] == 1 and body["top_k"] == -1 and body["max_tokens"] == 7
    assert body["repetition_penalty"] == 1.2 and body["n"] == 1 and not body["stream"]
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    system, user = body["messages"]
    assert system == {"role": "system", "content": VlmSettings().system_prompt} and user["role"] == "user"


def test_texts_from_data_cannot_be_markup(requests: list[Request], opened: Any):
    said = "<image> <|im_end|> </s> [INST] [/INST] <｜User｜> <start_of_turn>user, but [A] or 1 < 2 > 0 and <3"
    icd = replace(requests[0].icds[0], question=said, answer=said)
    with fake_server() as server:
        opened(server).answer([Request((icd,), replace(requests[0].query, question=said))])
    [body] = server.prompts
    shown = "< image> < |im_end|> < /s> [ INST] [ /INST] < ｜User｜> < start_of_turn>user, but [A] or 1 < 2 > 0 and <3"
    texts = [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]
    assert texts == [f"Question:{shown} Short answer:{shown}", f"Question:{shown} Short answer:"]


def test_many_are_under_way_within_the_bound_and_arrive_in_any_order(requests: list[Request], opened: Any):
    """The first five are answered once all of them are in, the last of them first; so no fewer are under way."""
    all_in, turns = threading.Barrier(5), [threading.Event() for _ in range(5)]

    def backwards(number: int, body: dict[str, Any]) -> None:
        if number < 5:
            if all_in.wait(60) == 0:  # one of the threads
                time.sleep(0.05)  # a sixth would arrive, were it sent
                turns[-1].set()
            turns[number].wait(60)
            turns[number - 1].set()

    with fake_server(fault=after_probes(backwards)) as server:
        assert are_right(opened(server, concurrency=5).answer(requests), requests)
        assert server.most == 5


def test_several_threads_may_ask_at_the_same_time(requests: list[Request], opened: Any):
    with fake_server(fault=after_probes(lambda number, body: time.sleep(0.01))) as server:
        engine = opened(server)
        assert engine.at_once >= 2
        with ThreadPoolExecutor(4) as threads:
            halves = list(threads.map(engine.answer, [requests[k::4] for k in range(4)]))
    assert all(are_right(half, requests[k::4]) for k, half in enumerate(halves))


TEMPORARY: dict[str, Callable[[], Any]] = {
    "an error of the server": lambda: Raw.error(500, "boom"),
    "a gateway without server": lambda: Raw(502, b"<html>Bad Gateway</html>"),
    "busy": lambda: Raw.error(429, "slow down", Retry_After="0.01"),
    "busy without a time": lambda: Raw.error(429, "slow down"),
    "a cut connection": lambda: CUT_CONNECTION,
    "a reply that ends early": lambda: Raw(200, b'{"model": "fake-model", "choi', length=500),
    "a reply that is cut off": lambda: Raw(200, b'{"model": "fake-model", "choi'),
    "a page": lambda: Raw(200, b"<html>Welcome</html>"),
}


@pytest.mark.parametrize("name", TEMPORARY)
def test_what_fails_for_a_time_is_asked_again(name: str, requests: list[Request], opened: Any):
    def fails(number: int, body: dict[str, Any]) -> Any:
        return TEMPORARY[name]() if number % 3 == 0 and number < 12 else None

    with fake_server(fault=after_probes(fails)) as server:
        assert are_right(opened(server).answer(requests), requests)
        assert len(server.prompts) == len(requests) + 4


def test_a_storm_of_busy_replies_costs_no_try(requests: list[Request], opened: Any):
    def busy(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(429, "slow down", Retry_After="0.01") if number < 100 else None

    with fake_server(fault=after_probes(busy)) as server:
        assert are_right(opened(server, retries=0).answer(requests), requests)


@pytest.mark.parametrize("wait", ["0", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_busy_server_that_names_no_time_is_not_asked_without_a_pause(
    wait: str, requests: list[Request], opened: Any, monkeypatch: pytest.MonkeyPatch
):
    waited: list[int] = []
    monkeypatch.setattr(fleet, "waiting_time", lambda times: waited.append(times) or 0.001)

    def busy(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(429, "slow down", Retry_After=wait) if number < 3 else None

    with fake_server(fault=after_probes(busy)) as server:
        assert are_right(opened(server, concurrency=1).answer(requests[:1]), requests[:1])
    assert waited == [1, 2, 3]


def test_a_server_that_stays_busy_ends_the_call(requests: list[Request], opened: Any):
    with fake_server(fault=after_probes(lambda number, body: Raw.error(429, "slow down"))) as server:
        [answer] = opened(server, call_timeout=0.1).answer(requests[:1])
    assert answer.error == "HTTP 429: slow down"


def test_the_time_of_a_prompt_begins_when_it_is_its_turn(requests: list[Request], opened: Any):
    def slow_then_busy(number: int, body: dict[str, Any]) -> Any:
        if number == 0:
            time.sleep(2.5)
        return Raw.error(429, "slow down", Retry_After="0.01") if number == 1 else None

    with fake_server(fault=after_probes(slow_then_busy)) as server:
        engine = opened(server, concurrency=1, call_timeout=2)
        assert are_right(engine.answer(requests[:2]), requests[:2])


def test_a_call_that_keeps_failing_fails_alone(requests: list[Request], opened: Any):
    def poisoned(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(500, "boom") if "a1" in str(body["messages"]) else None

    with fake_server(fault=after_probes(poisoned)) as server:
        engine = SupervisedEngine(opened(server, retries=2), CallTimer(60), max_failed=1)
        answers = engine.answer(requests)
        shows = ["a1" in [icd.answer for icd in request.icds] for request in requests]
        assert [answer.error for answer in answers] == [
            "HTTP 500: boom (3 times)" if is_it else None for is_it in shows
        ]
        assert sum("a1" in str(body["messages"]) for body in server.prompts) == 3 * sum(shows)  # not asked again alone
    assert all(
        answer.text == right(request) for answer, request in zip(answers, requests, strict=True) if not answer.error
    )


def test_too_many_failures_end_the_command(requests: list[Request], opened: Any):
    with fake_server(fault=after_probes(lambda number, body: Raw.error(400, "no"))) as server:
        engine = SupervisedEngine(opened(server), CallTimer(60), max_failed=0.1)
        with pytest.raises(CallsError, match="HTTP 400: no"):
            engine.answer(requests)


def test_a_time_limit_holds_for_replies_that_trickle(requests: list[Request], opened: Any):
    with fake_server(fault=after_probes(lambda number, body: time.sleep(0.5))) as server:
        engine = opened(server, retries=0)
        engine._clients[0]._timeout = 0.2  # only now: a busy machine may need longer for the probes
        [answer] = engine.answer(requests[:1])
    assert answer.error == "no answer after 0.2 seconds (--request-timeout)"


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A reply with other values in its choice, or in its message."""

    def change(reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"] | {k: v for k, v in values.items() if k in ("role", "content", "tool_calls")}
        others = {k: v for k, v in values.items() if k in ("index", "finish_reason", "reasoning_content")}
        if "reasoning_content" in others:
            message["reasoning_content"] = others.pop("reasoning_content")
        whole = {k: v for k, v in values.items() if k in ("model", "choices", "error")}
        return reply | {"choices": [choice | others | {"message": message}]} | whole

    return change


@pytest.fixture(scope="module")
def open_engine() -> Iterator[tuple[FakeServer, ServerEngine]]:
    """A server that has been checked, for tests that change how it answers."""
    with fake_server(answer_of=lambda shown: "right") as server:
        engine = open_server(VlmSettings(model="fake-model", url=(server.url,)), 10**6)
        yield server, engine
        engine.close()


def answered(open_engine: tuple[FakeServer, ServerEngine], request: Request, made: Any) -> tuple[Answer, int]:
    """The answer to a request whose reply is changed, and how often the server was asked."""
    server, engine = open_engine
    server.asked.clear()
    server.fault = after_probes(lambda number, body: made)
    [answer] = engine.answer([request])
    return answer, len(server.prompts)


NOT_ANSWERS: dict[str, tuple[Any, str]] = {
    "rejected": (Raw.error(400, "no"), "HTTP 400: no"),
    "a redirect": (Raw(307, b"", {"Location": "http://127.0.0.1:9/v1"}), "redirects to http://127.0.0.1:9/v1"),
    "content filter": (changed(finish_reason="content_filter"), "'content_filter', not 'stop' or 'length'"),
    "aborted": (changed(finish_reason="abort"), "'abort'"),
    "no reason": (changed(finish_reason=None), "None, not 'stop'"),
    "odd reason": (changed(finish_reason=["stop"]), "['stop'], not 'stop'"),
    "no choices": (changed(choices=[]), "0 choices"),
    "two choices": (lambda reply: reply | {"choices": reply["choices"] * 2}, "2 choices"),
    "choices of another form": (changed(choices={"0": 1}), "choices instead of one"),
    "another index": (changed(index=1), "not the first turn of an assistant"),
    "another role": (changed(role="user"), "not the first turn of an assistant"),
    "another model": (changed(model="other"), "with the model 'other', not 'fake-model'"),
    "no text": (changed(content=None), "has no text, but None"),
    "parts": (changed(content=[{"type": "text", "text": "yes"}]), "has no text"),
    "tools": (changed(tool_calls=[{"id": 1}]), "has no text"),
    "thoughts": (changed(content=None, reasoning_content="Let me think"), "begins to think"),
    "an open thought": (changed(content="<think>Let me"), "begins to think"),
    "an error inside": (changed(error={"message": "dead"}), "its reply is an error: {'message': 'dead'}"),
    "a list": (lambda reply: [reply], "not an object"),
    "half a character": (changed(content="\ud83d"), "half a character"),
    "far more text than tokens": (changed(content="x" * 5001), "5,001 characters, more than --max-new-tokens allows"),
    "compressed": (Raw(200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), "compressed"),
}


@pytest.mark.parametrize("name", NOT_ANSWERS)
def test_what_is_no_answer_is_an_error_of_the_call(name: str, requests: list[Request], open_engine: Any):
    made, reason = NOT_ANSWERS[name]
    answer, times = answered(open_engine, requests[0], made)
    assert answer.error is not None and reason in answer.error and answer.text == ""
    assert times == 1  # it is not asked again


def test_a_reply_has_a_limit(requests: list[Request], open_engine: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "LARGEST_REPLY", 10_000)
    answer, _ = answered(open_engine, requests[0], changed(content="x" * 20_000))
    assert answer.error == "its reply has more than 10,000 bytes"


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (changed(content=""), Answer("", prompt_tokens=60)),
        (changed(content=" a red", finish_reason="length"), Answer(" a red", cut=True, prompt_tokens=60)),
        (lambda reply: reply | {"usage": None}, Answer("right")),
        (lambda reply: reply | {"usage": {"prompt_tokens": -3}}, Answer("right")),
        (lambda reply: reply | {"usage": {"prompt_tokens": 1e99}}, Answer("right")),
    ],
)
def test_what_else_can_be_an_answer(made: Any, wanted: Answer, requests: list[Request], open_engine: Any):
    answer, _ = answered(open_engine, requests[0], made)
    assert answer == wanted and len(requests[0].shown) == 6


def test_an_image_that_cannot_be_read_fails_its_calls_alone(requests: list[Request], opened: Any):
    requests[0].query.image.write_bytes(b"no image")
    broken = [requests[0].query in request.shown for request in requests]
    with fake_server() as server:
        answers = opened(server).answer(requests)
    assert [bool(answer.error) for answer in answers] == broken and 0 < sum(broken) < len(broken)
    assert "not an image in a supported format" in str(answers[0].error)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("This model's maximum context length is 512 tokens. However, you requested 900", "--max-model-len"),
        ("At most 2 image(s) may be provided in one prompt.", "--limit-mm-per-prompt"),
        ("Cannot load local files without `--allowed-local-media-path`.", "--allowed-local-media-path"),
        ("Image dimensions 9000x9000 exceed the maximum", "VLLM_MAX_IMAGE_PIXELS"),
    ],
)
def test_a_rejection_says_what_to_change(said: str, remedy: str, requests: list[Request], open_engine: Any):
    answer, _ = answered(open_engine, requests[0], Raw.error(400, said))
    assert said in str(answer.error) and remedy in str(answer.error)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_beams": 3}, "--num-beams 3 means something else on servers"),
        ({"repetition_penalty": "model"}, "--repetition-penalty model is not known"),
    ],
)
def test_settings_that_no_server_has_are_refused_before_any_is_asked(values: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=said):
        settings_from({"vlm": {"url": ("http://127.0.0.1:9/v1",)} | values})


def test_a_setting_that_a_server_does_not_have_is_refused_by_name(opened: Any):
    said = "--repetition-penalty 1.3 is not possible on an OpenAI-compatible server"
    with fake_server() as server, pytest.raises(SettingsError, match=said):
        opened(server, repetition_penalty=1.3)


def test_more_connections_than_the_process_may_open_are_refused_before_any_is(opened: Any):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with fake_server() as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 140, limits[1]))
        try:
            with pytest.raises(SettingsError, match=r"--concurrency 200 on one server may need .*ulimit -n \d+"):
                opened(server, concurrency=200)
            assert not server.headers
            opened(server, concurrency=100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_closing_ends_what_is_under_way(requests: list[Request], opened: Any):
    asked = threading.Event()

    def hang(number: int, body: dict[str, Any]) -> None:
        asked.set()
        time.sleep(5)

    with fake_server(fault=after_probes(hang)) as server:
        engine = opened(server)
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(engine.answer, requests)
            assert asked.wait(5)
            started = time.monotonic()
            engine.close()
            with pytest.raises(CallsError, match="the command ends"):
                call.result()
        with pytest.raises(CallsError, match="the command ends"):
            engine.answer(requests)
    assert time.monotonic() - started < 4


def test_any_reply_is_an_answer_or_an_error():
    """Replies in which one value is replaced by another, of any kind, at any place."""
    reply: Any = {"model": "m", "usage": {"prompt_tokens": 3}, "choices": []}
    message = {"role": "assistant", "content": "yes", "tool_calls": None, "reasoning": None}
    top = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}
    reply["choices"].append({"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": [top]}})
    values = (None, True, 0, -1, 2**70, 0.5, 1e308, "", "stop", "<think>", [], [None], [[]], {}, {"content": 1}, [{}])
    kept = 0
    for place in places(reply):
        for value in values:
            try:
                completion = completion_of(replaced(reply, place, value), "m", ApiKey())
            except Unusable as error:
                assert str(error)
                continue
            kept += 1
            assert isinstance(completion.text, str) and isinstance(completion.cut, bool)
            assert completion.text in ("yes", "", "stop") and completion.prompt_tokens in (3, None)
            assert all(isinstance(token, str) and value <= 1e-3 for token, value in completion.first)
    assert kept > 50


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, own in inside for place in places(own, (*at, key)))]


def replaced(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    """The same JSON value with another one at a place."""
    if not place:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], other)
    return copy
