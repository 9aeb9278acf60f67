"""The same prompt to the same VLM is answered once, across sets of queries, selectors and commands."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import icdsel
from fakes import FakeEngine, fake_kind, raises
from worlds import write_small_world

from icdsel.vlm.engine import Request
from icdsel.vlm.engines import ENGINES

ON = ("--engine", "fake", "--model", "anything")
INFER = ("infer", *ON, "--selector", "random,nearest-both", "--shots", "1,2")


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    write_small_world(place, train=200, tuning=2, validation=30)
    return place


@pytest.fixture
def asked(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Request]]:
    """The requests that commands sent to the VLM, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICDSEL_DATA_DATA_DIR", str(small_world))
    requests: list[Request] = []

    def keep(batch: list[Request]) -> None:
        requests.extend(batch)

    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, fault=keep)))
    yield requests


def rows(folder: str, name: str, suffix: str = ".jsonl") -> bytes:
    return (Path(folder) / f"world/infer/RandSampler_anything_engine-fake/{name}{suffix}").read_bytes()


def test_fewer_queries_cost_nothing_and_have_the_same_bytes(asked: list[Request]) -> None:
    icdsel(*INFER, "--n", 20)
    assert len(asked) == 20 * (2 * 2 + 1)
    asked.clear()
    said = icdsel(*INFER, "--n", 8)
    assert asked == [] and "16 of 16 answers are reused" in said
    icdsel(*INFER, "--n", 8, "--no-reuse-answers", "--results-dir", "fresh")
    assert len(asked) == 8 * (2 * 2 + 1)
    for name in ("random-42_validation-8", "nearest-both_validation-8", "zero-shot_validation-8"):
        assert rows("results", name) == rows("fresh", name)
    assert not list(Path("fresh").rglob("answers_*"))
    assert "work" not in json.loads(
        rows("results", "random-42_validation-8", ".meta.json")
    )  # estimates of durations count what the VLM answered


def test_more_queries_cost_only_the_new_ones(asked: list[Request]) -> None:
    icdsel(*INFER, "--n", 8)
    asked.clear()
    icdsel(*INFER, "--n", 10, "--subset", "first")
    assert len(asked) == 2 * (2 * 2 + 1)


def test_a_selector_that_chooses_the_same_pointers_costs_nothing(asked: list[Request]) -> None:
    icdsel("infer", *ON, "--selector", "nearest-both-all", "--shots", "1,2", "--n", 8)
    asked.clear()
    icdsel("infer", *ON, "--selector", "nearest-both", "--shots", "1,2", "--n", 8, "--pool-size", "all")
    assert asked == []


def test_rl_data_and_predictions_share_answers(asked: list[Request]) -> None:
    few = ("--queries", 8, "--beam", 1, "--samples", 1, "--retrieval", 1, "--random", 0)
    icdsel("gen-rl-data", *ON, *few, "--split", "validation", "--references", "labels")
    assert all(request.references for request in asked)
    answers = json.loads(rl_data().splitlines()[0])["pointer_candidates"]
    asked.clear()
    icdsel("infer", *ON, "--selector", "oracle", "--shots", 2, "--n", 8)
    assert len(asked) == 8 and not any(request.icds for request in asked)  # zero-shot alone
    first = json.loads(rows("results", "oracle_validation-8").splitlines()[0])
    assert [first["prediction"]] == [one["vqa_pred_answer"] for one in answers if one["pointer"] == first["icds"]]
    before, count = rl_data(), len(asked)
    icdsel("gen-rl-data", *ON, *few, "--split", "validation", "--results-dir", "fresh", "--references", "labels")
    assert Path("fresh/world/generated_data/rl_data_RandSampler_anything_validation.jsonl").read_bytes() == before
    assert len(asked) > count  # scores of references are not cached: their last digits depend on the batch


def rl_data() -> bytes:
    return Path("results/world/generated_data/rl_data_RandSampler_anything_validation.jsonl").read_bytes()


def test_another_prompt_is_not_reused(asked: list[Request]) -> None:
    icdsel(*INFER, "--n", 4)
    asked.clear()
    icdsel(*INFER, "--n", 4, "--system-prompt", "Be brief.")
    assert len(asked) == 4 * (2 * 2 + 1)
    asked.clear()
    icdsel(*INFER, "--n", 4, "--clean-answers", "lever-plus")  # the same answers, cleaned in another way
    assert asked == []


def test_another_metric_costs_nothing(asked: list[Request]) -> None:
    icdsel(*INFER, "--n", 4)
    asked.clear()
    icdsel(*INFER, "--n", 4, "--metric", "lemmatised")
    assert asked == []


def test_a_prompt_that_failed_is_asked_again(asked: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    failing = raises(lambda: RuntimeError("device-side assert"), lambda request: len(request.icds) == 2)
    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, fault=failing)))
        icdsel(*INFER, "--n", 8, "--max-failed", 1, code=1)
    icdsel(*INFER, "--n", 6)
    assert {len(request.icds) for request in asked} == {2}
    assert b"error" in rows("results", "nearest-both_validation-8")
    assert b"error" not in rows("results", "nearest-both_validation-6")
