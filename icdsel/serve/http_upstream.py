"""Servers of OpenAI's protocol as upstream: bytes go through as they arrive."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

import httpx

from icdsel.console import logger, plain
from icdsel.errors import reason_of
from icdsel.serve.errors import ApiError, bad_request
from icdsel.serve.metrics import Metrics
from icdsel.serve.upstream import Events, Reply, Turn
from icdsel.vlm.server.client import http_client
from icdsel.vlm.server.key import ApiKey

_EACH = 16
"""Connections of a client of httpx."""
_LARGEST_BODY = 16 * 2**20  # bytes
_MOST_VALUES = 1_000_000
"""Values in a body, by its punctuation: while it is parsed, nothing else is done, whatever the thread."""
_PASSED_ON = ("retry-after", "x-request-id")
_WITHOUT_BODY = (204, 205)
"""Statuses of a reply that is empty. If it is not, its rest would be read as the reply to the next request."""
_EVENTS = "text/event-stream"
_DONE = b"[DONE]"
_TAIL = 64  # bytes of a stream in which its end is looked for
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)


class _Server:
    """One server, with several clients that share the requests: one that has many looks at all of them for each.

    Args:
        address: Its address.
        key: Its key.
        seconds: The longest time of a request.
        connections: Requests at the same time, at most.
    """

    def __init__(self, address: str, key: ApiKey, seconds: float, connections: int) -> None:
        self.address = address
        count = -(-connections // _EACH)
        self._clients = [http_client(address, key, seconds, _EACH) for _ in range(count)]
        self._busy = [0] * count

    @contextmanager
    def client(self) -> Iterator[httpx.AsyncClient]:
        """The client that has the fewest requests."""
        least = min(range(len(self._clients)), key=self._busy.__getitem__)
        self._busy[least] += 1
        try:
            yield self._clients[least]
        finally:
            self._busy[least] -= 1

    async def close(self) -> None:
        """Closes all connections."""
        for client in self._clients:
            await client.aclose()


class HttpUpstream:
    """Sends requests to one of several servers of the same model.

    A server without a connection is passed over; any other failure is told, since the request may have been worked on.

    Args:
        addresses: Such as `http://host:8000/v1`.
        key: The upstream's key. That of a client is never sent on.
        seconds: The longest time of a request.
        connections: Requests to a server at the same time, at most.
        metrics: Where failures are counted.
    """

    def __init__(
        self, addresses: Sequence[str], key: ApiKey, seconds: float, connections: int, metrics: Metrics
    ) -> None:
        self._key, self._seconds, self._metrics = key, seconds, metrics
        self._servers = [_Server(address, key, seconds, connections) for address in addresses]

    @property
    def name(self) -> str:
        """The addresses."""
        return ", ".join(server.address for server in self._servers)

    async def chat(self, turn: Turn) -> Reply:
        """The reply of the first server that has a connection."""
        try:
            content = json.dumps(turn.body, allow_nan=False).encode()
        except ValueError:
            raise bad_request("a number in the body is not one that JSON has", "invalid_json") from None
        first = int(hashlib.sha256(turn.place.encode(errors="replace")).hexdigest(), 16) % len(self._servers)
        streams = turn.body.get("stream") is True
        return await self._ask("POST", "/chat/completions", turn.ends, content, first, streams)

    async def models(self, ends: float) -> Reply:
        """The list of models of the first server that has a connection."""
        return await self._ask("GET", "/models", ends)

    async def close(self) -> None:
        """Closes all connections."""
        for server in self._servers:
            await server.close()

    async def _ask(
        self, method: str, path: str, ends: float, content: bytes | None = None, first: int = 0, streams: bool = False
    ) -> Reply:
        reason = ""
        for server in [*self._servers[first:], *self._servers[:first]]:
            try:
                return await self._reply(server, method, path, content, ends, streams)
            except _NO_CONNECTION as error:
                reason = self._kind(error)
            except (TimeoutError, httpx.TimeoutException):
                raise self._timeout() from None
            except httpx.HTTPError as error:
                raise self._broken(error) from None
        self._count("unreachable")
        raise ApiError(502, f"no connection to the model's server ({reason})", "upstream_unreachable")

    async def _reply(
        self, server: _Server, method: str, path: str, content: bytes | None, ends: float, streams: bool
    ) -> Reply:
        headers = {} if content is None else {"Content-Type": "application/json"}
        async with asyncio.timeout_at(ends), AsyncExitStack() as opened:
            http = opened.enter_context(server.client())
            request = http.build_request(method, f"{server.address}{path}", content=content, headers=headers)
            response = await http.send(request, stream=True)
            opened.push_async_callback(response.aclose)
            self._require_usable(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if streams and response.status_code == httpx.codes.OK and kind == _EVENTS:
                events = Events(self._events(response, ends), opened.pop_all().aclose)
                return Reply(200, events=events, media_type=_EVENTS)
            body = await self._body(response)
            return await asyncio.to_thread(self._whole, response, body)

    def _whole(self, response: httpx.Response, body: bytes) -> Reply:
        """A reply that is not a stream; an error of the upstream goes through with its own status."""
        headers = self._headers(response)
        if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
            self._count("too_large")
            raise ApiError(502, f"the reply of the model's server has more than {_MOST_VALUES:,} values", "too_large")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if response.status_code == httpx.codes.OK and not isinstance(value, dict):
            self._count("garbage")
            raise ApiError(502, "the model's server sent a reply that is not JSON, or cut off", "upstream_invalid")
        if response.status_code >= 400:
            self._count(str(response.status_code))
            if not isinstance(value, dict) or "error" not in value:
                said = plain(self._key.hidden_in(body[:500].decode(errors="replace")))
                error = ApiError(response.status_code, f"the model's server says: {said}", "upstream_error")
                body = json.dumps(error.body).encode()
        return Reply(response.status_code, self._key.hidden_in(body.decode(errors="replace")).encode(), headers=headers)

    def _headers(self, response: httpx.Response) -> dict[str, str]:
        """The headers that clients need, where a response can hold them."""
        given = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        return {
            name: self._key.hidden_in(value) for name, value in given.items() if value.isascii() and value.isprintable()
        }

    async def _events(self, response: httpx.Response, ends: float) -> AsyncGenerator[bytes, None]:
        """The bytes of a stream. One that breaks off ends with an error that clients recognise."""
        tail, hidden = b"", self._key.stream
        parts: AsyncIterator[bytes] = response.aiter_raw()
        while True:
            try:
                async with asyncio.timeout_at(ends):
                    part = await anext(parts)
            except StopAsyncIteration:
                break
            except (TimeoutError, httpx.TimeoutException):
                raise self._timeout() from None
            except httpx.HTTPError as error:
                raise self._broken(error) from None
            tail = (tail + part)[-_TAIL:]
            if shown := hidden.next(part):
                yield shown
        if rest := hidden.last():
            yield rest
        if _DONE not in tail:
            self._count("cut_off")
            message = "the model's server ended the stream before the answer was complete"
            raise ApiError(502, message, "upstream_cut_off")

    async def _body(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > _LARGEST_BODY:
                self._count("too_large")
                raise ApiError(
                    502, f"the reply of the model's server has more than {_LARGEST_BODY:,} bytes", "too_large"
                )
        return bytes(content)

    def _require_usable(self, response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            self._count("garbage")
            raise ApiError(502, "the model's server compresses its reply, which was not asked for", "upstream_invalid")
        status = response.status_code
        if not 200 <= status < 600 or status in _WITHOUT_BODY:  # of which a response cannot be made
            self._count("garbage")
            raise ApiError(502, f"the model's server replied with the status {status}", "upstream_invalid")
        if 300 <= status < 400:
            self._count("garbage")
            raise ApiError(502, "the model's server redirects, which is not followed", "upstream_invalid")

    def _timeout(self) -> ApiError:
        self._count("timeout")
        return ApiError(504, f"the model's server did not answer within {self._seconds:g} seconds", "upstream_timeout")

    def _broken(self, error: Exception) -> ApiError:
        self._count("broken")
        return ApiError(502, f"the connection to the model's server broke ({self._kind(error)})", "upstream_broken")

    def _kind(self, error: Exception) -> str:
        """What happened, in a word. The text of the error, which may hold another client's answer, is not told."""
        logger.debug("the model's server: %s", plain(self._key.hidden_in(reason_of(error))))
        return type(error).__name__

    def _count(self, kind: str) -> None:
        self._metrics.upstream_errors.labels(kind).inc()
