import json
from pathlib import Path

import pytest

from icdsel.data.implied_task import implied_task
from icdsel.settings.tables import DataSettings

ROW = {"question_id": 1, "image": "a.png", "question": "What?", "answer": "cat"}


def of(path: Path, **settings: object) -> str:
    return implied_task(DataSettings(dataset=str(path), **settings))


def written(folder: Path, *rows: dict) -> Path:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_field_of_the_first_record_says_it(tmp_path: Path) -> None:
    assert of(written(tmp_path, ROW | {"task": "choice"}, ROW)) == "choice"
    assert of(written(tmp_path, ROW | {"kind": "classify"}), columns=("task=kind",)) == "classify"


@pytest.mark.parametrize("row", [ROW, ROW | {"task": "closed choice"}, ROW | {"task": None}, ROW | {"task": 3}])
def test_without_a_known_task_there_is_none(tmp_path: Path, row: dict) -> None:
    assert of(written(tmp_path, row)) == ""


def test_the_form_of_the_data_says_it(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").touch()
    assert of(tmp_path) == "classify"


def test_data_that_cannot_be_read_and_named_datasets_say_none(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("{damaged")
    assert of(tmp_path / "set.jsonl") == of(tmp_path / "missing.jsonl") == ""
    assert implied_task(DataSettings(dataset="okvqa")) == implied_task(DataSettings(dataset="world")) == ""
