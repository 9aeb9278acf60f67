"""The engine of servers against a server on loopback that answers, fails and lies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer, copied_or_unknown, fake_server, shown_of
from PIL import Image

from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.server.engine import ServerEngine, open_server


def settings(*servers: FakeServer, **values: Any) -> VlmSettings:
    return VlmSettings(model="fake-model", url=tuple(server.url for server in servers), **values)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    made = []
    for n in range(8):
        path = tmp_path / f"{n}.png"
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        made.append(Example(n, n, path, f"What is {n % 2}?", f"a{n}", (f"a{n}",)))
    return made


@pytest.fixture
def requests(examples: list[Example]) -> list[Request]:
    return [Request(tuple(examples[k] for k in range(8) if k != q and (k + q) % 3), examples[q]) for q in range(8)]


@pytest.fixture
def opened() -> Iterator[list[ServerEngine]]:
    engines: list[ServerEngine] = []
    yield engines
    for engine in engines:
        engine.close()


def right(request: Request) -> str:
    *icds, query = request.shown
    texts = [(icd.image, icd.question, icd.answer) for icd in icds] + [(query.image, query.question, "")]
    return copied_or_unknown([shown_of(*each) for each in texts])


def test_answers_are_those_of_the_prompts_in_their_order(requests: list[Request], opened: list[ServerEngine]):
    with fake_server() as server:
        opened.append(engine := open_server(settings(server), 10**6))
        answers = engine.answer(requests)
    assert [answer.text for answer in answers] == [right(request) for request in requests]
    assert len({answer.text for answer in answers}) > 2
    assert [answer.prompt_tokens for answer in answers] == [10 * len(request.shown) for request in requests]
    assert not any(answer.cut or answer.error for answer in answers)
