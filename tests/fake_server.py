"""A server for tests that speaks OpenAI's protocol on loopback. It answers by a function of what a prompt shows.

It reads the images that it is sent, so a wrong or missing one changes the answer. Faults are functions that are called
with each chat completion before it is answered.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fakes import FAKE_TOKENS, FakeEngine
from PIL import Image

from icdsel.data.images import open_image
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import EngineKind

KEY = "sk-very-secret-0123456789"
_SHOWN = re.compile(r"Question:(.*?) ?Short answer:(.*)", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """What a prompt shows of an example."""

    pixels: str
    question: str
    answer: str


AnswerOf = Callable[[list[Shown]], str]


def copied_or_unknown(shown: list[Shown]) -> str:
    """The answer of the last ICD with the query's question, or for a third of all prompts "unknown": images decide."""
    *icds, query = shown
    drawn = hashlib.sha256("".join(each.pixels for each in shown).encode()).digest()[0]
    answers = [icd.answer for icd in icds if icd.question == query.question] or [icd.answer for icd in icds]
    return "unknown" if not answers or drawn % 3 == 0 else answers[-1]


def pixels_of(picture: Image.Image) -> str:
    """Identifies a picture by its pixels."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()[:16]


def shown_in(messages: list[dict[str, Any]]) -> list[Shown]:
    """What the messages of a prompt in the layout one-turn show."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    pixels = [_pixels_at(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
    texts = [_SHOWN.fullmatch(part["text"]) for part in parts if part["type"] == "text"]
    return [Shown(each, text[1], text[2].strip()) for each, text in zip(pixels, texts, strict=True) if text is not None]


@cache
def _pixels_at(url: str) -> str:
    return pixels_of(_picture(url))


def _picture(url: str) -> Image.Image:
    if url.startswith("file://"):
        return Image.open(unquote(urlsplit(url).path))
    kind, _, content = url.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg"), kind
    return Image.open(BytesIO(base64.b64decode(content, validate=True)))


@dataclass(frozen=True)
class Raw:
    """A reply of a fault: status, body and headers as they are; `None` in place of it cuts the connection."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """The Content-Length, if it is not that of the body."""

    @classmethod
    def error(cls, status: int, message: str, **headers: str) -> "Raw":
        """An error as vLLM reports it."""
        body = json.dumps({"error": {"message": message, "type": "BadRequestError", "code": status}}).encode()
        return cls(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    @classmethod
    def value(cls, value: Any, status: int = 200) -> "Raw":
        """JSON."""
        return cls(status, json.dumps(value).encode())


CUT_CONNECTION = object()
Fault = Callable[[int, dict[str, Any]], Any]
"""Called with the number of the completion (from 0) and its body. Returns None to answer, a `Raw`, `CUT_CONNECTION`, or
a function that changes the reply (a dictionary) in its place."""


class FakeServer:
    """A server on loopback.

    Args:
        models: The names of its models.
        answer_of: Gives the text of an answer.
        log_probs: Whether it gives log-probs.
        owner: What it calls itself; "vllm" and others are known dialects.
        key: The key that it asks for.
        salt: Goes into log-probs: servers with other salts have other weights.
        version: The version that "vllm" tells.
        fault: Makes completions fail.
        port: The port; 0 for any.

    Attributes:
        asked: The bodies of all completions so far.
        headers: The headers of all requests so far.
        most: The largest number of completions that were under way at once.
    """

    def __init__(
        self,
        *models: str,
        answer_of: AnswerOf = copied_or_unknown,
        log_probs: bool = True,
        owner: str = "fake",
        key: str = "",
        salt: str = "",
        version: str = "1.2.3",
        fault: Fault = lambda number, body: None,
        port: int = 0,
    ) -> None:
        self.models, self.answer_of, self.log_probs, self.owner = models or ("fake-model",), answer_of, log_probs, owner
        self.key, self.salt, self.version, self.fault = key, salt, version, fault
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._now = 0
        self.lock = threading.Lock()
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.fake = self
        self.port: int = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The bodies of completions that are not probes."""
        return [body for body in self.asked if not is_probe(body)]

    def stop(self) -> None:
        """Ends it, as a kill does: connections are cut."""
        self._http.shutdown()
        self._http.server_close()
        self._http.cut()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to a completion if nothing fails."""
        shown = shown_in(body["messages"])
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": self.answer_of(shown)},
            "finish_reason": "stop",
        }
        if body.get("logprobs") and self.log_probs:
            choice["logprobs"] = {"content": [self._first_token(shown)]}
        usage = {"prompt_tokens": FAKE_TOKENS * len(shown), "completion_tokens": 1}
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

    def _first_token(self, shown: list[Shown]) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self.salt}{shown}".encode()).digest()
        top = [{"token": f"t{k}", "logprob": -0.5 * k - digest[k] / 256, "bytes": None} for k in range(5)]
        return top[0] | {"top_logprobs": top}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts a completion as under way."""
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self.lock:
                self._now -= 1


def is_probe(body: dict[str, Any]) -> bool:
    """Whether a completion is one of the probes at start-up."""
    return "lines" in json.dumps(body["messages"])[-4000:] or "shades" in str(body["messages"][0]["content"][-3:])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    fake: FakeServer

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in list(self._open):
            with_error = connection.shutdown
            try:
                with_error(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections are cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        fake = self.server.fake
        fake.headers.append(dict(self.headers))
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            self._send(Raw.error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}"))
        elif self.path == "/v1/models":
            cards = [{"id": name, "object": "model", "owned_by": fake.owner} for name in fake.models]
            self._send(Raw.value({"object": "list", "data": cards}))
        elif self.path == "/version" and fake.owner == "vllm":
            self._send(Raw.value({"version": fake.version}))
        else:
            self._send(Raw.value({"detail": "Not Found"}, 404))

    def do_POST(self) -> None:
        fake = self.server.fake
        fake.headers.append(dict(self.headers))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            self._send(Raw.error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}"))
            return
        if self.path != "/v1/chat/completions":
            self._send(Raw.value({"detail": "Not Found"}, 404))
            return
        if body["model"] not in fake.models:
            self._send(Raw.error(404, f"The model `{body['model']}` does not exist."))
            return
        with fake.lock:
            number = len(fake.asked)
            fake.asked.append(body)
        with fake.counted():
            made = fake.fault(number, body)
            if made is CUT_CONNECTION:
                self.close_connection = True
                return
            if made is None or callable(made):
                reply = fake.reply(body)
                made = Raw.value(made(reply) if made else reply)
        self._send(made)

    def _send(self, raw: Raw) -> None:
        self.send_response(raw.status)
        for name, value in {"Content-Type": "application/json", **raw.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw.body) if raw.length is None else raw.length))
        self.end_headers()
        self.wfile.write(raw.body)
        if raw.length is not None:
            self.close_connection = True


@contextmanager
def fake_server(*models: str, **options: Any) -> Iterator[FakeServer]:
    """A server for the time of the block."""
    server = FakeServer(*models, **options)
    try:
        yield server
    finally:
        server.stop()


def same_in_process(answer_of: AnswerOf = copied_or_unknown, name: str = "same") -> EngineKind:
    """An engine in this process that gives the answers of such a server."""

    def answer(request: Request) -> str:
        return answer_of([shown_of(example.image, example.question, example.answer) for example in request.shown])

    return EngineKind(name, lambda settings, most, timer: FakeEngine(str(settings.model), answer))


def shown_of(image: Path, question: str, answer: str) -> Shown:
    """What a prompt shows of an example of a dataset."""
    return Shown(pixels_of(open_image(image, 10**8)), question, answer)
