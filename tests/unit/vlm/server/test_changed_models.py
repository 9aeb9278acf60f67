"""Servers whose model changes while they are asked: no answer is returned that may be of another model."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_server import FakeServer, Raw, Shown, copied_or_unknown, fake_server, is_probe
from test_server_engine import after_probes, are_right

from icdsel.errors import CallsError
from icdsel.vlm.engine import Request

OTHER = r"no server is left: .*it serves another model under the name fake-model now.* Completed work is kept"


def wrong(shown: list[Shown]) -> str:
    return f"not {copied_or_unknown(shown)}"


def change(server: FakeServer) -> None:
    """Other weights from now on."""
    server.salt, server.answer_of = "other weights", wrong


def test_a_server_that_was_started_again_with_another_model_while_idle(requests: list[Request], opened: Any):
    server = FakeServer()
    engine = opened(server)
    assert are_right(engine.answer(requests[:4]), requests[:4])
    server.stop()
    with (
        fake_server(port=server.port, salt="other weights", answer_of=wrong),
        pytest.raises(CallsError, match=OTHER),
    ):
        engine.answer(requests[4:])


def test_a_server_that_asks_to_wait_while_it_changes(requests: list[Request], opened: Any):
    def unload(number: int, body: dict[str, Any]) -> Any:
        if number == 3:
            change(server)
            return Raw.error(503, "loading", Retry_After="0.01")
        return None

    with fake_server(fault=after_probes(unload)) as server:
        engine = opened(server, concurrency=1)
        with pytest.raises(CallsError, match=OTHER):
            engine.answer(requests)


def newer(server: FakeServer) -> None:
    server.version = "1.2.4"


def another_kind(server: FakeServer) -> None:
    server.owner = "sglang"


@pytest.mark.parametrize(
    ("changed", "said"),
    [(newer, "it is vLLM 1.2.4 now, and was vLLM 1.2.3"), (another_kind, "it is SGLang now, and was vLLM 1.2.3")],
)
def test_a_server_of_another_version(
    changed: Callable[[FakeServer], None], said: str, requests: list[Request], opened: Any
):
    with fake_server(owner="vllm") as server:
        engine = opened(server)
        assert are_right(engine.answer(requests), requests)
        changed(server)
        with pytest.raises(CallsError, match=said):
            engine.answer(requests)


def test_a_model_whose_first_probe_alone_is_answered_as_before(requests: list[Request], opened: Any):
    """The probes take turns, so one of the first four units shows it."""
    kept: list[dict[str, Any]] = []

    def as_before(number: int, body: dict[str, Any]) -> Any:
        if not is_probe(body):
            return None
        if body["messages"] == server.asked[0]["messages"]:
            kept.append(kept[0] if kept else server.reply(body))
            return lambda reply: kept[0]
        return None

    with fake_server(fault=as_before) as server:
        engine = opened(server)
        change(server)
        with pytest.raises(CallsError, match=OTHER):
            for k in range(4):
                engine.answer(requests[k : k + 1])


def test_without_log_probs_the_texts_tell(requests: list[Request], opened: Any):
    with fake_server(log_probs=False) as server:
        engine = opened(server)
        assert are_right(engine.answer(requests), requests)
        change(server)
        with pytest.raises(CallsError, match=OTHER):
            engine.answer(requests)


def test_of_several_servers_the_same_ones_answer_again(
    requests: list[Request], opened: Any, capfd: pytest.CaptureFixture[str]
):
    def change_b(number: int, body: dict[str, Any]) -> None:
        if number == 2:
            change(b)

    with fake_server() as a, fake_server(fault=after_probes(change_b)) as b:
        engine = opened(a, b)
        assert are_right(engine.answer(requests), requests)
        asked = len(b.prompts)
        assert asked > 2 and are_right(engine.answer(requests), requests) and len(b.prompts) == asked
    said = capfd.readouterr().err
    assert f"{b.url} is not used any more: it serves another model under the name fake-model now" in said


def test_a_call_costs_one_small_prompt_for_each_server(requests: list[Request], opened: Any):
    with fake_server() as server:
        engine = opened(server)
        before = len(server.asked)
        engine.answer(requests)
        engine.answer(requests)
        [first, second] = [body for body in server.asked[before:] if is_probe(body)]
    assert first["max_tokens"] == second["max_tokens"] == 1 and first["messages"] != second["messages"]


def test_a_check_that_fails_for_a_time_is_tried_again(requests: list[Request], opened: Any):
    failing: list[Raw] = []

    def fails(number: int, body: dict[str, Any]) -> Any:
        return failing.pop() if failing and is_probe(body) else None

    with fake_server(fault=fails) as server:
        engine = opened(server)
        failing += [Raw.error(500, "boom"), Raw.error(502, "gone"), Raw.error(429, "busy", Retry_After="0.01")]
        failing += [Raw.error(400, "no")]
        assert are_right(engine.answer(requests), requests) and not failing
        assert len(server.prompts) == len(requests)  # nothing was asked twice
