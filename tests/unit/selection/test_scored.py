"""The scored pointers that the oracle chooses from, read from the RL data of the queries."""

import json
from pathlib import Path
from typing import Any

import pytest

from icdsel.artefacts.rl_data import metadata_path
from icdsel.errors import RlDataError
from icdsel.selection.scored import read_scored, scored_path
from icdsel.settings.loading import Settings, load_settings
from icdsel.store.fingerprints import fingerprint_file
from icdsel.store.metadata import Metadata

INPUTS = {"dataset": "d", "scorer_version": 1}
CANDIDATES = [
    {"pointer": [11, 12], "vqa_acc_score": 0.6, "vqa_gt_prob": 0.25},
    {"pointer": [12, 11], "vqa_acc_score": 0.3},
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with RL data of one validation query, scored with two pointers."""
    settings = load_settings({"data": {"results_dir": str(tmp_path)}})
    path = scored_path(settings)
    path.parent.mkdir(parents=True)
    group: dict[str, Any] = {"question_id": 5, "image_id": 5, "question": "?", "answers": ["a"]}
    group |= {"candidate_pool_ids": [11, 12, 13], "pointer_candidates": CANDIDATES}
    path.write_text(json.dumps(group) + "\n")
    Metadata(inputs=INPUTS | {"shots": 2}).write(metadata_path(path))
    return settings


def test_pointers_come_with_their_score_and_the_probability_of_the_right_answer(settings: Settings) -> None:
    scored = read_scored(settings, 1, INPUTS, fingerprint_file(scored_path(settings)))
    assert scored == {5: [(0.6, 0.25, (11, 12)), (0.3, 0.0, (12, 11))]}


def test_they_are_those_of_the_split_to_answer(settings: Settings) -> None:
    assert scored_path(settings).stem.endswith("_validation")


def test_rl_data_of_other_inputs_are_rejected_with_the_difference(settings: Settings) -> None:
    with pytest.raises(RlDataError, match=r"different settings:\n  .*dataset.*: 'd' then, 'e' now$"):
        read_scored(settings, 1, INPUTS | {"dataset": "e"}, fingerprint_file(scored_path(settings)))


def test_rl_data_that_changed_meanwhile_are_rejected(settings: Settings) -> None:
    with pytest.raises(RlDataError, match="changed while it was read"):
        read_scored(settings, 1, INPUTS, "of before")


def test_without_rl_data_the_message_names_the_command(settings: Settings) -> None:
    scored_path(settings).unlink()
    with pytest.raises(RlDataError, match="`icdsel gen-rl-data --split validation --queries 7`"):
        read_scored(settings, 7, INPUTS, None)
