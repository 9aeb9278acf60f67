"""Commands on servers: the same bytes as an engine in this process, whatever the servers do."""

from pathlib import Path

import pytest
from command_line import icdsel
from fake_server import FakeServer, fake_server, same_in_process
from fakes import FakeEngine
from made_up import write_dataset

from icdsel.retrieval.encoders import VlmEncoder
from icdsel.settings.tables import VlmSettings
from icdsel.stages import session
from icdsel.vlm.engines import ENGINES, EngineIdentity

DATA = ("--dataset", "made.jsonl", "--pool-size", 12, "--encoder", "vlm")
INFER = ("infer", *DATA, "--n", 12, "--shots", "1,2", "--selector", "random,nearest-both")


def fake_encoder(settings: VlmSettings, most_pixels: int) -> VlmEncoder:
    """In place of the bundled VLM, for speed; the engine `same` embeds alike."""
    return VlmEncoder(lambda: FakeEngine("any"), lambda: EngineIdentity("any", "float32"), settings, most_pixels)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENGINES, "same", same_in_process())
    monkeypatch.setattr(session, "_bundled_encoder", fake_encoder)
    write_dataset(tmp_path, 12)


def predictions(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("made/infer/*/*.jsonl")}


def on(*servers: FakeServer) -> tuple[str, ...]:
    return ("--vlm-url", ",".join(server.url for server in servers))


def test_answers_have_the_bytes_of_an_engine_in_this_process():
    with fake_server() as server:
        icdsel(*INFER, *on(server), "--results-dir", "a")
    icdsel(*INFER, "--engine", "same", "--model", "fake-model", "--results-dir", "b")
    assert predictions("a") == predictions("b") and len(predictions("a")) == 4
