"""Several servers of one model: who is asked what, and what happens when one goes."""

import threading
import time
from typing import Any

import pytest
from fake_server import CUT_CONNECTION, FakeServer, Raw, fake_server, shown_in
from test_server_engine import after_probes, are_right

from icdsel.errors import CallsError, VlmError
from icdsel.vlm.engine import Request
from icdsel.vlm.server import fleet


def queries(server: FakeServer) -> set[str]:
    """The query images that a server was asked about."""
    return {shown_in(body["messages"])[-1].pixels for body in server.prompts}


def test_a_query_stays_with_one_server(requests: list[Request], opened: Any):
    with fake_server() as a, fake_server() as b, fake_server() as c:
        assert are_right(opened(a, b, c).answer(requests), requests)
        assert len(queries(a)) + len(queries(b)) + len(queries(c)) == 8
        assert sum(bool(queries(server)) for server in (a, b, c)) >= 2


def test_prompts_of_a_query_that_begin_alike_are_neighbours(requests: list[Request], opened: Any):
    shuffled = requests[::2] + requests[1::2][::-1]
    with fake_server() as server:
        assert are_right(opened(server, concurrency=1).answer(shuffled), shuffled)
        asked = [[each.pixels for each in shown_in(body["messages"])] for body in server.prompts]
    order = [shown[-1] for shown in asked]
    assert all(order[k] == order[k + 1] for k in range(0, len(order), 2))


def test_one_that_dies_is_replaced_by_the_others_and_asked_again_when_it_is_back(
    requests: list[Request], opened: Any, capfd: pytest.CaptureFixture[str]
):
    with fake_server() as a:
        b = FakeServer()
        engine = opened(a, b)
        assert are_right(engine.answer(requests), requests)
        before = queries(b)
        b.stop()
        assert before and are_right(engine.answer(requests), requests)
        assert len(queries(a)) == 8
        with fake_server(port=b.port) as again:
            deadline = time.monotonic() + 10
            while not again.prompts and time.monotonic() < deadline:
                assert are_right(engine.answer(requests), requests)
            assert queries(again) <= before
    said = capfd.readouterr().err
    assert f"{b.url} fails: no connection" in said and "other servers take its prompts" in said


def test_one_that_dies_in_the_middle_of_many_prompts_loses_none(requests: list[Request], opened: Any):
    many = requests * 8
    with fake_server() as a:
        b = FakeServer()
        b.fault = after_probes(lambda number, body: threading.Thread(target=b.stop).start() if number == 5 else None)
        assert are_right(opened(a, b, concurrency=4).answer(many), many)


def test_one_that_comes_back_with_another_model_is_not_used(
    requests: list[Request], opened: Any, capfd: pytest.CaptureFixture[str]
):
    with fake_server() as a:
        b = FakeServer()
        engine = opened(a, b)
        b.stop()
        assert are_right(engine.answer(requests), requests)
        with fake_server(port=b.port, salt="other weights") as other:
            deadline = time.monotonic() + 10
            said = ""
            while "is not used any more" not in said and time.monotonic() < deadline:
                time.sleep(0.01)
                said += capfd.readouterr().err
            assert f"{b.url} is not used any more: it serves another model under the name fake-model now" in said
            assert are_right(engine.answer(requests), requests) and not other.prompts


def test_without_any_server_the_command_ends_soon(
    requests: list[Request], opened: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fleet, "PATIENCE", 0.2)
    server = FakeServer()
    engine = opened(server)
    server.stop()
    started = time.monotonic()
    with pytest.raises(CallsError, match=r"no server is left: http://127.* Completed work is kept"):
        engine.answer(requests * 20)
    assert time.monotonic() - started < 5


def test_a_server_that_is_started_again_within_the_patience_goes_on(requests: list[Request], opened: Any):
    server = FakeServer()
    engine = opened(server)
    server.stop()
    restart = threading.Timer(0.2, lambda: restarted.append(FakeServer(port=server.port)))
    restarted: list[FakeServer] = []
    restart.start()
    assert are_right(engine.answer(requests), requests)
    restarted[0].stop()


def test_a_server_that_cuts_each_prompt_but_lives_fails_the_calls(requests: list[Request], opened: Any):
    with fake_server(fault=after_probes(lambda number, body: CUT_CONNECTION)) as server:
        answers = opened(server, retries=3, concurrency=2).answer(requests[:4])
    assert all("the connection broke" in str(answer.error) and "(4 times)" in str(answer.error) for answer in answers)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"salt": "other weights"}, "answer the same prompts differently"),
        ({"owner": "sglang"}, "differ: use servers of one version"),
    ],
)
def test_servers_of_different_models_are_refused(other: dict[str, Any], said: str, opened: Any):
    with fake_server() as a, fake_server(**other) as b, pytest.raises(VlmError, match=said):
        opened(a, b)


def test_servers_whose_replies_name_the_model_differently_are_refused(opened: Any):
    with (
        fake_server() as a,
        fake_server(fault=lambda number, body: lambda reply: reply | {"model": "alias"}) as b,
        pytest.raises(VlmError, match=r"name the model 'fake-model', those of .* 'alias'.*--served-model-name"),
    ):
        opened(a, b)


def test_busy_replies_let_the_whole_server_wait(
    requests: list[Request], opened: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(fleet, "TOLD_FROM", 0.3)
    times: list[float] = []

    def busy_once(number: int, body: dict[str, Any]) -> Any:
        times.append(time.monotonic())
        return Raw.error(429, "slow down", Retry_After="0.3") if number == 0 else None

    with fake_server(fault=after_probes(busy_once)) as server:
        assert are_right(opened(server, concurrency=1).answer(requests), requests)
    assert times[1] - times[0] >= 0.3
    assert capfd.readouterr().err.count("is busy, its prompts wait 0 seconds: HTTP 429: slow down") == 1
