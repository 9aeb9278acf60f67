import json
from pathlib import Path

import pytest

from icdsel.data.datasets import Split
from icdsel.records import Example, Prediction, QuestionId, Shots
from icdsel.submissions import FORMATS
from icdsel.submissions.writing import write_submissions

SPLIT = Split("test", [Example(i, i, Path(f"{i}.jpg"), f"What is {i}?", "", ()) for i in (30, 10, 20)])


def predictions(folder: Path, *records: Prediction) -> Path:
    path = folder / "policy-a.b_test-3.jsonl"
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    return path


def answered(question_id: QuestionId, shots: Shots, text: str) -> Prediction:
    return Prediction(question_id, shots, (), text)


def test_there_is_a_file_for_each_number_of_shots_and_format(tmp_path: Path) -> None:
    path = predictions(
        tmp_path,
        *(answered(i, shots, f"{shots} for {i}") for shots in (1, 2, "auto+1.5") for i in (20, 10)),
    )
    written = write_submissions(path, SPLIT, (2, "auto+1.5"), [FORMATS["submission"], FORMATS["csv"]])
    assert written.refused == ()
    assert [file.relative_to(tmp_path).as_posix() for file in written.paths] == [
        "submissions/policy-a.b_test-3_2.submission.json",
        "submissions/policy-a.b_test-3_2.csv",
        "submissions/policy-a.b_test-3_auto+1.5.submission.json",
        "submissions/policy-a.b_test-3_auto+1.5.csv",
    ]
    assert {*(tmp_path / "submissions").iterdir()} == {*written.paths}
    # In the order of the split, whatever that of the file.
    assert json.loads(written.paths[0].read_text()) == [
        {"question_id": 10, "answer": "2 for 10"},
        {"question_id": 20, "answer": "2 for 20"},
    ]
    before = [file.read_bytes() for file in written.paths]
    again = write_submissions(path, SPLIT, (2, "auto+1.5"), [FORMATS["submission"], FORMATS["csv"]])
    assert again == written and [file.read_bytes() for file in again.paths] == before


@pytest.mark.parametrize("name", ["submission", "lmms-eval"])
def test_a_failed_call_leaves_no_file_that_needs_all_answers(tmp_path: Path, name: str) -> None:
    fine = predictions(tmp_path, answered(10, 1, "a"), answered(20, 1, "b"))
    [earlier] = write_submissions(fine, SPLIT, (1,), [FORMATS[name]]).paths
    content = earlier.read_bytes()
    path = predictions(
        tmp_path,
        *(answered(10, 1, "a"), Prediction(20, 1, (), error="no memory")),
        *(answered(i, 2, "c") for i in (10, 20)),
    )
    written = write_submissions(path, SPLIT, (1, 2), [FORMATS[name], FORMATS["csv"]])
    assert [file.name.split("_test-3_")[1] for file in written.paths] == ["1.csv", f"2.{FORMATS[name].ending}", "2.csv"]
    [refused] = written.refused
    assert refused.startswith(f"{earlier.name} is not written: 1 of 2 calls failed (question_id 20), ")
    assert str(path) in refused
    assert not earlier.exists() and earlier.with_name(f"{earlier.name}.old-1").read_bytes() == content
