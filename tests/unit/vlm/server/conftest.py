from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer
from PIL import Image

from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.server import fleet
from icdsel.vlm.server.engine import ServerEngine, open_server

QUERIES = 8


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits hundredths of seconds where users wait seconds."""
    for name, seconds in {"FIRST_WAIT": 0.01, "LONGEST_WAIT": 0.05, "FIRST_LOOK": 0.01, "LONGEST_LOOK": 0.05}.items():
        monkeypatch.setattr(fleet, name, seconds)
    monkeypatch.setattr(fleet, "PATIENCE", 10)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    made = []
    for n in range(QUERIES):
        path = tmp_path / f"{n}.png"
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        made.append(Example(n, n, path, f"What is {n % 2}?", f"a{n}", (f"a{n}",)))
    return made


@pytest.fixture
def requests(examples: list[Example]) -> list[Request]:
    """Two prompts for each query, of different ICDs."""
    return [
        Request(tuple(icd for icd in examples if icd is not query and (icd.image_id + query.image_id + k) % 3), query)
        for k in range(2)
        for query in examples
    ]


class Opener:
    """Opens engines that the test closes at its end."""

    def __init__(self) -> None:
        self.engines: list[ServerEngine] = []

    def __call__(self, *servers: FakeServer | str, **values: Any) -> ServerEngine:
        urls = tuple(server if isinstance(server, str) else server.url for server in servers)
        settings = VlmSettings(**{"model": "fake-model", "url": urls} | values)
        self.engines.append(open_server(settings, 10**6))
        return self.engines[-1]


@pytest.fixture
def opened() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    for engine in opener.engines:
        engine.close()
