"""An upstream for tests that answers with what it was asked, fast, in streams too, and misbehaves on demand.

The field `user` of a request names how: "hang", "silent-stream", "cut-stream", "unfinished-stream", "slow-stream",
"error-NNN", or one of `_FAULTS`; anything else is answered.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PIECES = 4
"""Chunks of a streamed answer, apart from the first and the last."""


def echo_of(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the messages show: their texts, and the digests of their images, in order."""
    texts, images = [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
            continue
        for part in content or []:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image_url":
                images.append(hashlib.sha256(part["image_url"]["url"].encode()).hexdigest()[:16])
    return {"texts": texts, "images": images}


class EchoServer:
    """A server on loopback, in a thread of its own.

    Attributes:
        asked: The bodies of all requests so far, if they are kept.
        headers: Their headers.
        left: How many clients closed a connection before they had their answer.
    """

    def __init__(self, keep: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = 0
        self._keep = keep
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26, backlog=2048)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(5)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    line, *rest = head.strip().split("\r\n")
                    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
                    content = await reader.readexactly(int(headers.get("content-length", 0)))
                    if not await self._reply(line, headers, content, reader, writer):
                        return
        finally:
            writer.close()

    async def _reply(self, line: str, headers: dict[str, str], content: bytes, reader: Any, writer: Any) -> bool:
        if line.startswith("GET /v1/models"):
            card = {"id": "echo", "object": "model", "owned_by": "tests"}
            return await _send(writer, 200, json.dumps({"object": "list", "data": [card]}).encode())
        body = json.loads(content)
        if self._keep:
            self.asked.append(body)
            self.headers.append(headers)
        how = str(body.get("user", ""))
        answer = json.dumps(echo_of(body["messages"]))
        if how == "hang":
            await self._until_left(reader)
            return False
        if how.startswith("error-"):
            error = {"error": {"message": "told by the upstream", "type": "test", "code": how}}
            return await _send(writer, int(how.removeprefix("error-")), json.dumps(error).encode())
        if how in _FAULTS:
            writer.write(_FAULTS[how])
            await writer.drain()
            return False
        if body.get("stream"):
            return await self._stream(how, answer, reader, writer)
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        value = {"id": "1", "object": "chat.completion", "created": 1, "model": body.get("model"), "choices": [choice]}
        return await _send(writer, 200, json.dumps(value).encode())

    async def _stream(self, how: str, answer: str, reader: Any, writer: Any) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        size = max(1, -(-len(answer) // PIECES))
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        for delta in ({"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            _write_chunk(writer, _event({"choices": [choice]}))
            await writer.drain()
            if how == "silent-stream":
                await self._until_left(reader)
                return False
            if how == "cut-stream":
                return False
            if how == "slow-stream":
                await asyncio.sleep(0.2)
        if how != "unfinished-stream":
            _write_chunk(writer, _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
            _write_chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _until_left(self, reader: asyncio.StreamReader) -> None:
        await reader.read()
        self.left += 1


_FAULTS = {
    "garbage": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    "html": b"HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<h1>Oops</h1>",
    "redirect": b"HTTP/1.1 307 Go\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
    "nothing": b"",
    "not-http": b"SSH-2.0-OpenSSH\r\n",
    "status-600": b"HTTP/1.1 600 X\r\nContent-Length: 2\r\n\r\n{}",
    "status-999": b"HTTP/1.1 999 X\r\nContent-Length: 2\r\n\r\n{}",
    "no-content": b"HTTP/1.1 204 X\r\nContent-Length: 8\r\n\r\nsecret-1",
    "many-values": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3000001\r\n\r\n["
    + b"[],[]," * 500_000,
}


def _event(value: dict[str, Any]) -> bytes:
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "echo", **value}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _write_chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> bool:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return True


@contextmanager
def echo_server() -> Iterator[EchoServer]:
    """A server for the time of the block."""
    server = EchoServer()
    try:
        yield server
    finally:
        server.stop()
