import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from icdsel.trackers import Subject

OWN = ("WANDB_", "MLFLOW_")


@pytest.fixture(autouse=True)
def not_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the trackers' own variables, of whoever runs the tests, and of tests before."""
    for name in [name for name in os.environ if name.startswith(OWN)]:
        monkeypatch.delenv(name)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A training with a few settings."""
    folder = tmp_path / "results/world/model_cpk/mine"
    folder.mkdir(parents=True)
    settings = {"data": {"dataset": "world", "columns": None}, "train": {"rce_lr": 1e-4, "tracker": ["wandb"]}}
    return Subject("training", "mine", "world", folder, tmp_path / "results/world", settings, "0123456789abcdef")


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What is asked of a proxy that every process of the test is told to use."""
    asked: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # it was closed
                return
            with connection:
                asked.append(connection.recv(200))

    threading.Thread(target=serve, daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, address)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield asked
    server.shutdown(socket.SHUT_RDWR)
    server.close()
