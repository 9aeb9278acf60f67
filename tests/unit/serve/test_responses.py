import asyncio
import json

import pytest
from starlette.requests import ClientDisconnect, Request

from icdsel.serve.errors import ApiError
from icdsel.serve.responses import EventStream, body_with, chunk_with, ids_header, unless_gone, with_first
from icdsel.serve.upstream import Events


class Ends:
    """Counts how often the work behind a stream was ended."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1


async def parts(*content: bytes, error: Exception | None = None, forever: bool = False):
    for part in content:
        yield part
    if error:
        raise error
    if forever:
        await asyncio.Event().wait()


async def sent_of(stream: EventStream, leaves: bool = False, sticks: bool = False) -> list[dict]:
    messages: list[dict] = []

    async def receive():
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if sticks and message["type"] == "http.response.body":
            await asyncio.Event().wait()
        messages.append(message)

    await stream({"type": "http"}, receive, send)
    return messages


def streamed(make, ends_in: float = 5.0, **client) -> tuple[bytes, int, bool]:
    """What was sent, how often the work was ended, and whether the response is complete."""

    async def main():
        ends, now = Ends(), asyncio.get_running_loop().time()
        stream = EventStream(make(ends), now + ends_in, {"X-A": "b"})
        messages = await sent_of(stream, **client)
        bodies = [message for message in messages if message["type"] == "http.response.body"]
        complete = bool(bodies) and not bodies[-1]["more_body"]
        return b"".join(message["body"] for message in bodies), ends.count, complete

    return asyncio.run(main())


def test_events_are_sent_and_the_work_is_ended():
    content, ended, complete = streamed(lambda end: Events(parts(b"a", b"b"), end))
    assert (content, complete) == (b"ab", True) and ended >= 1


def test_an_error_is_the_last_event():
    error = ApiError(502, "it broke", "upstream_broken")
    content, _, complete = streamed(lambda end: Events(parts(b"a", error=error), end))
    assert complete and json.loads(content.removeprefix(b"adata: "))["error"]["message"] == "it broke"


def test_an_unexpected_error_is_told_without_its_text():
    content, _, complete = streamed(lambda end: Events(parts(error=ValueError("secret")), end))
    assert complete and b"internal_error" in content and b"secret" not in content


def test_a_client_that_leaves_ends_the_work():
    for make in (lambda end: Events(parts(b"a", forever=True), end), lambda end: Events(parts(forever=True), end)):
        _, ended, complete = streamed(make, leaves=True)
        assert ended >= 1 and not complete


def test_a_client_that_does_not_take_the_answer_is_given_up():
    _, ended, complete = streamed(lambda end: Events(parts(b"a"), end), ends_in=-4.9, sticks=True)
    assert ended >= 1 and not complete


def test_a_stream_that_nobody_has_read_is_ended_too():
    async def main() -> int:
        ends = Ends()
        await with_first(b"first", Events(parts(b"a"), ends)).aclose()
        return ends.count

    assert asyncio.run(main()) == 1


def test_an_event_can_be_put_in_front():
    content, _, _ = streamed(lambda end: with_first(b"first ", Events(parts(b"a"), end)))
    assert content == b"first a"


def test_work_is_cancelled_when_the_client_leaves():
    cancelled = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main():
        messages = iter([{"type": "http.request", "body": b""}, {"type": "http.disconnect"}])

        async def receive():
            await asyncio.sleep(0)
            return next(messages)

        with pytest.raises(ClientDisconnect):
            await unless_gone(Request({"type": "http"}, receive), work())

    asyncio.run(main())
    assert cancelled == [True]


def test_what_was_shown_is_added_to_bodies_and_streams():
    assert json.loads(body_with({"icds": []}, b'{"id": 1}')) == {"id": 1, "icdsel": {"icds": []}}
    assert body_with({}, b"[1]") == b"[1]"
    chunk = json.loads(chunk_with({"icds": []}, "m").removeprefix(b"data: "))
    assert chunk["icdsel"] == {"icds": []} and chunk["model"] == "m" and chunk["choices"][0]["delta"] == {}


def test_ids_of_any_text_fit_into_a_header():
    class Icd:
        def __init__(self, question_id):
            self.question_id = question_id

    assert ids_header([Icd(7), Icd("a,b"), Icd("é\u2003")]) == "7,a%2Cb,%C3%A9%E2%80%83"
