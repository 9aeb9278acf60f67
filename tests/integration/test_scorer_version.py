"""The draws and answers of this version's scorer: `SCORER_VERSION` must be raised if any of them changes.

`python tests/integration/test_scorer_version.py` writes the figures again.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from icdsel.artefacts.rl_data import read_groups
from icdsel.settings.loading import load_settings
from icdsel.stages.generate import generate
from icdsel.tasks.scoring import SCORER_VERSION

FIGURES = Path(__file__).parents[1] / "data" / "scorer_version.json"
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "beams": {"vlm": {"num_beams": 3, "layout": "turns"}, "data": {"sampler": "mix"}},
}


def made(folder: Path, name: str) -> list[dict[str, Any]]:
    """A few records of RL data."""
    few = {"queries": 4, "beam": 2, "samples": 1, "retrieval": 1, "random": 1, "references": "labels"}
    data = {"data_dir": folder / "data", "results_dir": folder / "results"} | ASKED[name].get("data", {})
    settings = load_settings({**ASKED[name], "data": data, "proposals": few})
    return [group.to_json() for group, _ in read_groups(generate(settings, folder / f"{name}.jsonl").path)]


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Probabilities to the 1e-4 that is the same for any size of batch and any processor."""
    candidates = [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in candidate.items()}
        for candidate in record["pointer_candidates"]
    ]
    return record | {"pointer_candidates": candidates}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scorer")


@pytest.mark.parametrize("name", ASKED)
def test_the_scorer_is_that_of_its_version(folder: Path, name: str):
    figures = json.loads(FIGURES.read_text())
    remedy = "raise SCORER_VERSION if this change is meant, then run: python tests/integration/test_scorer_version.py"
    assert figures["version"] == SCORER_VERSION, remedy
    for ours, kept in zip(made(folder, name), figures[name], strict=True):
        candidates = ours.pop("pointer_candidates"), kept.pop("pointer_candidates")
        assert ours == kept, remedy
        for one, other in zip(*candidates, strict=True):
            assert one.keys() == other.keys(), remedy
            assert 0 <= one["vqa_gt_prob"] <= one["vqa_gt_prob_norm"] + 1e-6
            for field, value in one.items():
                expected = pytest.approx(other[field], abs=2e-3) if isinstance(value, float) else other[field]
                assert value == expected, f"{field}: {remedy}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        figures = {name: list(map(rounded, made(Path(place), name))) for name in ASKED}
    FIGURES.write_text(json.dumps({"version": SCORER_VERSION} | figures, indent=1) + "\n")
    sys.stdout.write(f"written to {FIGURES}\n")
