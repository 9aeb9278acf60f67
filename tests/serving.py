"""The proxy on a real socket, for tests."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fake_chooser import FakeChooser, candidates_in, png

from icdsel.serve.app import make_app
from icdsel.serve.choices import Plan
from icdsel.serve.feedback import Feedback
from icdsel.serve.http_upstream import HttpUpstream
from icdsel.serve.limits import Limits, Opened
from icdsel.serve.metrics import Metrics
from icdsel.serve.security import AccessKey
from icdsel.serve.server import listen
from icdsel.serve.service import Service
from icdsel.serve.upstream import Upstream
from icdsel.vlm.server.key import ApiKey


class Running:
    """A proxy that runs in a thread.

    Attributes:
        url: Its address.
        service: What it does.
        chooser: Who chooses.
    """

    def __init__(self, service: Service, key: str) -> None:
        self.service, self.chooser = service, service.chooser
        opened = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        app = make_app(service, AccessKey(key), "127.0.0.1")
        config = uvicorn.Config(
            app, log_config=None, lifespan="on", timeout_graceful_shutdown=1, ws="none", http="h11", loop="uvloop"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [opened]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.005)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def proxy(
    folder: Path,
    upstream: str | Upstream,
    *,
    limits: Limits | None = None,
    opened: Opened | None = None,
    key: str = "",
    upstream_key: str = "",
    feedback: Path | None = None,
    chooser: FakeChooser | None = None,
) -> Iterator[Running]:
    """A proxy in front of an upstream, with 20 candidates in a folder."""
    limits, metrics = limits or Limits(seconds=10), Metrics()
    if isinstance(upstream, str):
        upstream = HttpUpstream([upstream], ApiKey(upstream_key), limits.seconds, limits.at_once, metrics)
    service = Service(
        chooser or FakeChooser(*candidates_in(folder, 20)),
        upstream,
        metrics,
        Plan("policy", 2),
        limits,
        opened or Opened(),
        None if feedback is None else Feedback(feedback, "vqa"),
    )
    with running_with(service, key) as running:
        yield running


@contextmanager
def running_with(service: Service, key: str = "") -> Iterator[Running]:
    """A proxy that does what a service does, for the time of the block."""
    running = Running(service, key)
    try:
        yield running
    finally:
        running.stop()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chat_body(question: str = "Which colour?", image: bytes | str | None = None, **more: Any) -> dict[str, Any]:
    """A chat request with one image and a question."""
    url = image if isinstance(image, str) else data_url(png() if image is None else image)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": "fake-model", "messages": [{"role": "user", "content": content}], **more}
