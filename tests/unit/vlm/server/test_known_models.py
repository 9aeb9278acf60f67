"""Models of servers are known again, whatever the last digits of their log-probs, and without asking them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import fake_server

from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import EngineIdentity, identify_engine, recall_engine
from icdsel.vlm.server.dialects import Dialect, Vllm
from icdsel.vlm.server.known import KnownModels
from icdsel.vlm.server.probes import STEP, TOLERANCE, Probed, fingerprint
from icdsel.vlm.server.startup import Served


def served(*values: float, dialect: Dialect | None = None, version: str = "1", text: str = "x") -> Served:
    kind = dialect or Vllm()
    probed = tuple(Probed((("a", value), ("b", value - 1)), text) for value in values)
    return Served("m", "m", kind, version, fingerprint(kind.name, "m", version, probed), probed)


def test_noise_across_a_boundary_keeps_the_fingerprint(tmp_path: Path):
    before, after = served(STEP / 2 - 2 - 0.01), served(STEP / 2 - 2 + 0.01)
    assert before.fingerprint != after.fingerprint
    KnownModels(tmp_path, "m").keep(before)
    again = KnownModels(tmp_path, "m").as_known(after)
    assert again.fingerprint == before.fingerprint and again.probed == after.probed


@pytest.mark.parametrize(
    "other", [served(-1 - TOLERANCE - 0.01), served(-1, version="2"), served(-1, dialect=Dialect()), served(-1, -1)]
)
def test_another_model_is_another_one(other: Served, tmp_path: Path):
    known = KnownModels(tmp_path, "m")
    known.keep(served(-1))
    assert known.as_known(other) == other


def test_the_last_one_that_was_asked_is_recalled_by_its_name(tmp_path: Path):
    a, b = served(-1), served(-3)
    known = KnownModels(tmp_path, "m")
    assert known.last() is None
    for each in (a, a, b, a):
        known.keep(each)
        assert KnownModels(tmp_path, "m").last() == known.last() == each.fingerprint
    assert len((tmp_path / "servers.jsonl").read_text().splitlines()) == 3
    assert KnownModels(tmp_path, "another").last() is None


def test_texts_are_compared_as_they_are(tmp_path: Path):
    words = replace(served(-1), probed=(Probed((), "red"),))
    known = KnownModels(tmp_path, "m")
    known.keep(words)
    assert known.as_known(replace(words, fingerprint="new")).fingerprint == words.fingerprint
    assert known.as_known(replace(words, fingerprint="new", probed=(Probed((), "blue"),))).fingerprint == "new"


PAIRS = ('["a"]', '["a", "b"]', "[1, 2]", f'["a", 1{"0" * 400}]', '["a", true]', "3")
DAMAGED = ['{"first": 3}', *(f'{{"first": [{pair}], "text": "x"}}' for pair in PAIRS)]


@pytest.mark.parametrize(
    "line",
    ["{", "3", '{"model": "m"}']
    + [f'{{"model": "m", "server": "s", "fingerprint": "f", "probes": [{probe}]}}' for probe in DAMAGED],
)
def test_damaged_lines_are_skipped(line: str, tmp_path: Path):
    (tmp_path / "servers.jsonl").write_text(f"{line}\n")
    assert KnownModels(tmp_path, "m").last() is None


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path):
    place = tmp_path / "file"
    place.write_text("")
    known = KnownModels(place, "m")
    known.keep(served(-1))
    assert known.last() is None


def test_the_engine_is_recalled_once_it_has_asked_something(requests: list[Request], opened: Any, tmp_path: Path):
    with fake_server() as server:
        engine = opened(server)
        settings: VlmSettings = engine.settings
        engine.recognise(tmp_path / "cache")
        assert identify_engine(settings) is None and recall_engine(settings, tmp_path / "cache") is None
        engine.answer(requests[:1])
    assert recall_engine(settings, tmp_path / "cache") == EngineIdentity(engine.fingerprint, "server")
    assert recall_engine(settings.model_copy(update={"url": ()}), tmp_path / "cache") is None
