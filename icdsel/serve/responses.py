"""Responses that end when the client leaves, and what they say about the demonstrations that were shown."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from icdsel.records import Example
from icdsel.serve.errors import ApiError, unexpected
from icdsel.serve.events import event
from icdsel.serve.upstream import Events

_T = TypeVar("_T")
_LAST_BYTES = 5.0  # seconds that a client has to take the end of a stream


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of some work, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: It has left.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        await _ended(working, gone)


class EventStream(Response):
    """Sends the events of an upstream as they arrive; closes the upstream's stream when the client leaves.

    Args:
        events: The bytes of the stream. An `ApiError` becomes its last event.
        ends: The time of the event loop by which it has to be complete.
        headers: Headers of the response.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, ends: float, headers: Mapping[str, str]) -> None:
        super().__init__(None, 200, dict(headers))
        self._events, self._ends = events, ends
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        del scope
        sending, gone = asyncio.create_task(self._send(send)), asyncio.create_task(_disconnected(receive))
        try:
            async with asyncio.timeout_at(self._ends + _LAST_BYTES):
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except TimeoutError:
            pass  # the client does not take the answer: its connection is closed
        finally:
            await _ended(sending, gone)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for part in self._events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": error.event, "more_body": True})
        except Exception as error:  # noqa: BLE001 - it is logged, and the client told
            await send({"type": "http.response.body", "body": unexpected(error).event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def with_first(first: bytes, events: Events) -> Events:
    """A stream with another event in front."""

    async def parts() -> AsyncGenerator[bytes, None]:
        yield first
        async for part in events:
            yield part

    return Events(parts(), events.aclose)


def chunk_with(shown: Mapping[str, Any], model: object) -> bytes:
    """A chunk of a streamed completion that adds nothing to the answer, and has the field `icdsel`."""
    return event(
        {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model if isinstance(model, str) else "",
            "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
            "icdsel": shown,
        }
    )


def body_with(shown: Mapping[str, Any], body: bytes) -> bytes:
    """A completion with the field `icdsel`."""
    value = json.loads(body)
    return json.dumps({**value, "icdsel": shown}).encode() if isinstance(value, dict) else body


def ids_header(icds: Sequence[Example]) -> str:
    """The ids of demonstrations in a header: separated by commas, other characters than letters and digits escaped."""
    return ",".join(quote(str(icd.question_id), safe="") for icd in icds)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels tasks, and waits for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
