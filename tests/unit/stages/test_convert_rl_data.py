"""RL data converted to Lever-Plus's form."""

import json
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import RlDataError
from icdsel.settings.loading import settings_from
from icdsel.stages.convert_rl_data import convert


def line(candidates: list[dict[str, Any]]) -> str:
    group = {"question_id": 5, "image_id": 5, "question": "?", "answers": ["a"], "candidate_pool_ids": [11, 12, 13]}
    return json.dumps(group | {"pointer_candidates": candidates}) + "\n"


def test_data_are_not_replaced_by_their_conversion(tmp_path: Path) -> None:
    path = tmp_path / "rl.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RlDataError, match="is the file to be converted"):
        convert(settings_from({}), path, path)
    assert path.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"pointer": [11, 12], "vqa_acc_score": 1e308}, "line 2: a score is not a number, or is out of range"),
        ({"pointer": [11, 12], "vqa_acc_score": "1"}, "line 2: a score is not a number, or is out of range"),
        ({"pointer": [11, 14], "vqa_acc_score": 1.0}, "line 2: an ICD is not in the pool"),
        ({"pointer": [11, 11], "vqa_acc_score": 1.0}, "line 2: an ICD is repeated"),
        ({"pointer": ["11", 12], "vqa_acc_score": 1.0}, "line 2: an ICD is not in the pool"),
        ({"pointer": [11.5], "vqa_acc_score": 1.0}, "line 2: the pointer of a candidate is missing, or not a list"),
    ],
)
def test_data_that_no_training_would_accept_are_not_converted(
    tmp_path: Path, candidate: dict[str, Any], message: str
) -> None:
    path = tmp_path / "rl.jsonl"
    failed = {"pointer": [11, 13], "eval_failed": True, "error": "out of memory"}  # which is kept, with its mark
    path.write_text(line([failed]) + line([failed, candidate]))
    with pytest.raises(RlDataError, match=message):
        convert(settings_from({}), path)
    assert [*tmp_path.iterdir()] == [path]
