"""`icdsel bench` measures everything next to a baseline, and rejects unknown names."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import icdsel
from fake_server import Raw, fake_server, is_probe
from fakes import FakeEngine, fake_kind

from icdsel.stages import threads
from icdsel.vlm.engines import ENGINES
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
from icdsel.vlm.workers import processes
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.worker import EngineWorker, Reply

SMALL = ("--queries", 2, "--pointers", 3, "--images", 8, "--plain", 3, "--neighbours", 200, "--train-queries", 4)
SMALL += ("--proposal-pool", 50)


@pytest.mark.parametrize(
    "model", [(), ("--random-weights", "tiny", "--image-size", "140x98"), ("--num-beams", 3, "--shots", 0)]
)
def test_every_rate_has_the_baselines_next_to_it(tmp_path: Path, model: tuple[object, ...]) -> None:
    output = icdsel("bench", *SMALL, *model, "--json", tmp_path / "figures.json")
    assert "would take" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["device"].startswith(("cpu", "NVIDIA"))
    for name in ("scorer", "proposals", "train_batch_1", "train_batch_32", "neighbours"):
        row = figures[name]
        assert row["ratio"] == pytest.approx(row["per_second"] / row["plain_per_second"], rel=1e-2)
    scorer = figures["scorer"]
    # Whatever the speed, answers are the same, and no image is encoded twice.
    assert scorer["answers_like_plain"] == 1.0
    # Both round in float32: with AVX2 kernels each differs by up to 1.4e-4 from torch's default ones.
    assert scorer["largest_log_prob_difference"] < 5e-4
    assert scorer["images_encoded_again"] == 0
    assert 0 < scorer["mfu"] < 2


def test_unknown_names_are_rejected_with_those_that_exist() -> None:
    assert "qwen2.5-vl-3b" in icdsel("bench", "--random-weights", "qwen9", code=2)
    assert "WIDTHxHEIGHT" in icdsel("bench", "--image-size", "large", code=2)


class WorkerHere:
    """A worker whose engine is a fake in this process; `threads` are those that it was told to compute with."""

    def __init__(self, name: str) -> None:
        self.name, self.threads = name, set[Any]()
        self._worker = EngineWorker(lambda: SupervisedEngine(FakeEngine(), CallTimer(60), 1.0))

    def start(self) -> None:
        """Runs already."""

    def call(self, method: str, *values: Any) -> Reply:
        self.threads |= {values[0]} if method == "answer" else set()
        return getattr(self._worker, method)(*values)

    def stop(self) -> None:
        """Ends with the test."""


def test_engines_are_measured_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, told = [WorkerHere("one"), WorkerHere("two")], [1]
    pool = lambda *_: EnginePool(workers, "cpu (2 workers)", 0.1, lambda: told[-1])  # noqa: E731
    monkeypatch.setattr(processes, "open_processes", pool)
    monkeypatch.setattr(threads, "available_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", told.append)  # two would be slow beside other tests
    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, lambda request: "doni")))
    monkeypatch.setenv("COLUMNS", "200")  # no cell of the table is wrapped, however fast the machine
    prompts = itertools.count()
    # One of the six prompts behind those that warm the server up, which are of a query for each list that two workers
    # take; one in the middle, since a busy machine may send one of those before it again.
    reject = lambda _, body: Raw.error(400, "too long") if not is_probe(body) and next(prompts) == 15 else None  # noqa: E731
    flags = (*SMALL, "--engine", "fake,server", "--workers", 2, "--rounds", 1, "--json", tmp_path / "figures.json")
    with fake_server("tiny-vlm", answer_of=lambda shown: "nothing", fault=reject) as server:
        output = " ".join(icdsel("bench", *flags, "--vlm-url", server.url).split())  # however lines are wrapped
    figures = json.loads((tmp_path / "figures.json").read_text())
    plain, local, fake, _, asked = figures["ways"]
    assert [way["name"] for way in figures["ways"]] == ["plain way", "local scorer", "fake", "fake", "server"]
    assert [way["workers"] for way in figures["ways"]] == [None, None, None, 2, None]
    assert [way["threads"] for way in figures["ways"]] == [2, 2, 2, 1, None]
    assert [worker.threads for worker in workers] == [{1}, {1}]
    missing = [word for word in ("plain", "scorer", "workers", "each", "server", "(1 of") if word not in output]
    assert not missing, output
    for way in figures["ways"]:
        assert way["ratio"] == pytest.approx(way["per_second"] / plain["per_second"], rel=1e-2)
        if way is not asked:
            assert way["scored_ratio"] == pytest.approx(way["scored_per_second"] / plain["scored_per_second"], rel=1e-2)
    assert asked["scored_per_second"] is None  # this server tells no log-probs of chosen tokens
    assert [way["asked"] for way in figures["ways"]] == [6, 12, 12, 12, 6]
    assert [way["failed"] for way in figures["ways"]] == [0, 0, 0, 0, 1]
    assert "too long" in asked["failure"] and "too long" in output
    # Whatever the speed, the scorer answers as the plain way does, and fakes are seen to answer otherwise.
    assert local["answers_like_plain"] == 1.0 and local["largest_log_prob_difference"] < 5e-4
    assert fake["answers_like_plain"] < 1 and fake["largest_log_prob_difference"] > 0.1
    assert asked["answers_like_plain"] == 0.0 and asked["largest_log_prob_difference"] is None


def test_a_server_whose_model_is_not_here_is_measured_alone(tmp_path: Path) -> None:
    place = ("--local-model", "./missing", "--image-size", "56x56", "--json", tmp_path / "figures.json")
    with fake_server("large") as server:
        output = icdsel("bench", *SMALL, "--vlm-url", server.url, "--rounds", 1, *place)
    assert "Nothing is compared" in output and "missing" in output
    [asked] = json.loads((tmp_path / "figures.json").read_text())["ways"]
    assert asked["per_second"] > 0 and asked["ratio"] is None and asked["compared"] == 0


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (("--engine", "server"), "--vlm-url"),
        (("--engine", "auto,vllm"), "choose one of auto"),
        (("--local-model", "none"), "--vlm-url"),
        (("--random-weights", "tiny", "--vlm-url", "http://localhost:9/v1", "--model", "any"), "leave out --vlm-url"),
    ],
)
def test_engines_that_cannot_be_measured_are_rejected(flags: tuple[str, ...], remedy: str) -> None:
    assert remedy in icdsel("bench", *flags, code=2)


def test_choosing_from_encoded_candidates_is_measured_beside_encoding_them_every_time(tmp_path: Path) -> None:
    output = icdsel("bench", "--whole-set", 600, "--json", tmp_path / "figures.json")
    assert "600 candidates" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "scorer" not in figures
    for name, tables in (("default", 3), ("no-layers", 1), ("whole-set", 1)):  # unit vectors; keys, values of a layer
        row = figures[name]
        default = figures["default"]["plain_per_second"]
        assert row["ratio_to_default"] == pytest.approx(row["per_second"] / default, rel=1e-2)
        assert row["ratio"] == pytest.approx(row["per_second"] / row["plain_per_second"], rel=1e-2)
        assert row["choices_like_plain"] == 1.0
        assert row["encoded_mib"] == pytest.approx(tables * 600 * 256 * 4 / 2**20, rel=1e-3)
        assert 0 < row["peak_mib"] < 100_000 and row["encode_seconds"] > 0
