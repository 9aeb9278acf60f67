"""Engines are found by name, and a local model is run by the class that supports it."""

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, fake_kind

from icdsel.errors import SettingsError, VlmError
from icdsel.records import Answer, Example
from icdsel.settings.identity import identity
from icdsel.settings.loading import load_settings
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Engine, Request
from icdsel.vlm.engines import ENGINES, EngineKind, open_engine
from icdsel.vlm.local import loading
from icdsel.vlm.local.any_vlm import AnyVlm
from icdsel.vlm.local.qwen_vl import QwenVl

REQUEST = Request((), Example(1, 1, Path("1.png"), "What?", "a", ("a",)))


def opened(**settings: Any) -> Any:
    return open_engine(VlmSettings(device="cpu", **settings), 1_000_000)


@pytest.mark.parametrize(
    ("name", "kind"), [("auto", QwenVl), ("shared-prefix", QwenVl), ("qwen-vl", QwenVl), ("transformers", AnyVlm)]
)
def test_the_tiny_vlm_is_run_by_the_engine_that_is_named(name: str, kind: type):
    assert type(opened(engine=name).engine) is kind


def test_different_model_classes_have_different_fingerprints():
    assert (
        opened(engine="shared-prefix").fingerprint == opened().fingerprint != opened(engine="transformers").fingerprint
    )


def test_a_model_that_an_engine_does_not_run_is_rejected(monkeypatch: pytest.MonkeyPatch):
    class Other(QwenVl):
        @classmethod
        def supports(cls, model: Any) -> bool:
            return False

    monkeypatch.setitem(
        ENGINES, "other", EngineKind("other", lambda s, pixels, timer: loading.load_local(s, pixels, timer, Other))
    )
    with pytest.raises(VlmError, match="tiny-vlm is a qwen2_5_vl, which this engine does not run: --engine auto"):
        opened(engine="other")


def test_an_unknown_engine_is_rejected_with_those_that_exist():
    with pytest.raises(
        SettingsError, match=r"unknown engine 'transformer': did you mean 'transformers'.*auto, shared-prefix"
    ):
        opened(engine="transformer")


def test_an_engine_is_added_with_an_answer_and_a_name(monkeypatch: pytest.MonkeyPatch):
    class Parrot(Engine):
        name, fingerprint = "parrot", "1"

        def answer(self, requests: Any) -> list[Answer]:
            return [Answer(request.query.question) for request in requests]

    monkeypatch.setitem(ENGINES, "parrot", EngineKind("parrot", lambda settings, pixels, timer: Parrot()))
    parrot = opened(engine="parrot", model="any")
    assert parrot.answer([REQUEST] * 200) == [Answer("What?")] * 200
    assert not parrot.can_embed and parrot.advice() is None


def test_the_settings_reach_the_engine_and_its_supervision(monkeypatch: pytest.MonkeyPatch):
    engine = FakeEngine("any", answer_of=lambda request: Answer("", error="no"))
    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: engine))
    made = opened(engine="fake", max_failed=1)
    assert [answer.error for answer in made.answer([REQUEST] * 40)] == ["no"] * 40
    assert made.engine is engine


def test_the_engine_is_part_of_a_results_identity_only_if_it_was_chosen(tmp_path: Path, monkeypatch):
    """Results from before this setting existed stay valid."""
    monkeypatch.chdir(tmp_path)
    assert "vlm.engine" not in identity(load_settings({}), "vlm")
    assert identity(load_settings({"vlm": {"engine": "transformers"}}), "vlm")["vlm.engine"] == "transformers"


def test_servers_have_no_workers() -> None:
    with pytest.raises(SettingsError, match="leave out --workers"):
        open_engine(VlmSettings(url=("http://localhost:1/v1",), workers=2), 10**6)
