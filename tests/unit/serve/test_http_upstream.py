import asyncio
import json
import socket

import pytest
from echo_server import echo_server
from fake_server import KEY, Raw, fake_server

from icdsel.serve.errors import ApiError
from icdsel.serve.http_upstream import HttpUpstream
from icdsel.serve.metrics import Metrics
from icdsel.serve.upstream import Reply, Turn
from icdsel.vlm.server.key import ApiKey

HELLO = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}


def asked(addresses, places=("a",), key="", body=HELLO) -> list[Reply | BaseException]:
    async def main():
        upstream = HttpUpstream(addresses, ApiKey(key), 5, 16, Metrics())
        ends = asyncio.get_running_loop().time() + 5
        try:
            turns = [Turn(body, None, False, place, ends) for place in places]
            return await asyncio.gather(*map(upstream.chat, turns), return_exceptions=True)
        finally:
            await upstream.close()

    return asyncio.run(main())


def test_queries_are_shared_among_servers_and_each_keeps_its_own():
    with echo_server() as one, echo_server() as two:
        places = [f"image {n}" for n in range(20)]
        for _ in range(2):
            assert all(reply.status == 200 for reply in asked([one.url, two.url], places))
        counts = len(one.asked), len(two.asked)
    assert min(counts) > 4 and all(count % 2 == 0 for count in counts)


def test_a_server_without_a_connection_is_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with echo_server() as up:
        replies = asked([f"http://127.0.0.1:{port}/v1", up.url], [f"image {n}" for n in range(8)])
        assert all(isinstance(reply, Reply) and reply.status == 200 for reply in replies)
        assert len(up.asked) == 8


def test_a_request_that_may_have_been_worked_on_is_not_sent_again():
    with echo_server() as one, echo_server() as two:
        [error] = asked([one.url, two.url], body=HELLO | {"user": "cut"})
        assert isinstance(error, ApiError) and error.status == 502
        assert len(one.asked) + len(two.asked) == 1


@pytest.mark.parametrize("status", [200, 401])
def test_a_key_that_a_server_repeats_is_hidden(status):
    repeated = Raw.value({"error": {"message": f"the key {KEY} is wrong"}, "choices": []}, status)
    with fake_server(fault=lambda number, body: repeated) as server:
        [reply] = asked([server.url], key=KEY)
    assert reply.status == status and KEY not in reply.body.decode()
    assert "[key]" in json.loads(reply.body)["error"]["message"]


@pytest.mark.parametrize(
    ("given", "passed"), [("id-7", "id-7"), (f"of {KEY}", "of [key]"), ("\u00fc", None), ("a\tb", None)]
)
def test_a_request_id_is_passed_on_if_a_header_can_hold_it_and_without_the_key(given, passed):
    reply = Raw(200, b"{}", {"X-Request-Id": given})
    with fake_server(fault=lambda number, body: reply) as server:
        [got] = asked([server.url], key=KEY)
    assert got.headers.get("x-request-id") == passed


def test_a_key_in_a_stream_is_hidden_and_the_rest_is_as_it_was():
    text = f'data: {{"error": "{KEY} is wrong"}}\n\ndata: [DONE]\n\n'.encode()
    events = Raw(200, text, {"Content-Type": "text/event-stream"})

    async def main() -> bytes:
        upstream = HttpUpstream([server.url], ApiKey(KEY), 5, 16, Metrics())
        ends = asyncio.get_running_loop().time() + 5
        try:
            reply = await upstream.chat(Turn(HELLO | {"stream": True}, None, False, "a", ends))
            return b"".join([part async for part in reply.events])
        finally:
            await upstream.close()

    with fake_server(fault=lambda number, body: events) as server:
        assert asyncio.run(main()) == text.replace(KEY.encode(), b"[key]")


@pytest.mark.parametrize("key", ["choices", "EMPTY"])
def test_a_placeholder_in_a_reply_stays(key):
    reply = Raw.value({"choices": [], "text": key})
    with fake_server(fault=lambda number, body: reply) as server:
        [got] = asked([server.url], key=key)
    assert json.loads(got.body) == {"choices": [], "text": key}
