"""`icdsel bench` measures everything next to a baseline, and rejects unknown names."""

import json
from pathlib import Path

import pytest
from command_line import icdsel
from fakes import fake_kind

from icdsel.vlm.engines import ENGINES

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


def test_an_engine_outside_of_this_process_has_no_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fake", fake_kind())
    assert "not --engine fake" in icdsel("bench", "--engine", "fake", "--model", "any", code=2)


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
