"""A test split without answers, from its questions to the files that servers and toolkits take."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import icdsel
from documented_files import undocumented
from fakes import FakeEngine, fake_kind, raises

from icdsel.data.world import files
from icdsel.submissions import FORMATS
from icdsel.vlm.engines import ENGINES

SIZE = 6
ON = ("--engine", "fake", "--model", "anything", "--selector", "nearest-both", "--shots", "1,2")
ANSWERS = Path("results/world/infer/RandSampler_anything_engine-fake")
SUBMISSIONS = ANSWERS / "submissions"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_into: Callable[[Path], None]) -> FakeEngine:
    """The engine of all commands, in a folder that holds the bundled world."""
    monkeypatch.chdir(tmp_path)
    world_into(tmp_path / "data")
    monkeypatch.setattr(files, "TEST_SIZE", SIZE)
    engine = FakeEngine("anything")
    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: engine))
    return engine


def said(output: str) -> str:
    return " ".join(output.split())


def names() -> set[str]:
    return {path.name for path in SUBMISSIONS.glob("*")}


def test_a_split_without_answers_is_written_as_servers_take_it(engine: FakeEngine) -> None:
    output = said(icdsel("infer", *ON, "--split", "test", "--n", -1))
    assert f"{SIZE} of the {SIZE} queries have no reference answers" in output and "Written to" in output
    assert "warning" not in output
    assert names() == {
        f"{row}_test-6_{shots}.submission.json" for row in ("nearest-both", "majority") for shots in (1, 2)
    } | {"zero-shot_test-6_0.submission.json"}
    asked = json.loads(Path("data/world/questions_test.json").read_text())["questions"]
    answers = {}
    for line in (ANSWERS / "nearest-both_test-6.jsonl").read_text().splitlines():
        prediction = json.loads(line)
        answers[prediction["question_id"], prediction["shots"]] = prediction["prediction"]
    for shots in (1, 2):
        written = json.loads((SUBMISSIONS / f"nearest-both_test-6_{shots}.submission.json").read_text())
        ids = [question["question_id"] for question in asked]
        assert written == [{"question_id": i, "answer": answers[i, shots]} for i in ids]
        assert len({record["answer"] for record in written}) > 1
    assert undocumented(Path.cwd()) == []


def test_every_format_is_written_on_request_and_stays_out_of_comparisons(engine: FakeEngine) -> None:
    words = ("infer", *ON, "--n", 4, "--format", "csv,lmms-eval", "--format", "vlmevalkit,submission")
    output = said(icdsel(*words))
    assert "nearest-both_validation-4_1.csv" in output and "and 16 more" in output
    assert "these are 4 of the 1000 queries of validation. --n -1 answers all" in output
    rows = {"nearest-both_validation-4_1", "nearest-both_validation-4_2", "zero-shot_validation-4_0"}
    rows |= {"majority_validation-4_1", "majority_validation-4_2"}
    assert names() == {f"{row}.{one.ending}" for row in rows for one in FORMATS.values()}
    before, calls = {path: path.read_bytes() for path in SUBMISSIONS.iterdir()}, len(engine.calls)
    icdsel(*words)
    assert {path: path.read_bytes() for path in SUBMISSIONS.iterdir()} == before and len(engine.calls) == calls
    assert undocumented(Path.cwd()) == []
    for place in ((), (ANSWERS,), (ANSWERS.parent,)):
        assert "nearest-both" in icdsel("compare", *place, *(() if place else ON[:4]))
    output = said(icdsel("check", SUBMISSIONS, SUBMISSIONS / "nearest-both_validation-4_1.lmms-eval.jsonl"))
    assert output.count("nothing to check") == 2


def test_a_comparison_of_a_folder_leaves_out_what_is_not_scored(engine: FakeEngine) -> None:
    icdsel("infer", *ON, "--split", "test", "--n", -1)
    output = said(icdsel("compare", ANSWERS, code=2))
    assert "holds only answers to queries without reference answers" in output
    icdsel("infer", *ON, "--n", 4)
    for words in ((ANSWERS,), (ANSWERS.parent,), (*ON[:4], "--set", "validation-4")):
        output = said(icdsel("compare", *words, "--json", "table.json"))
        assert "left out: 3 of 6 files" in output
        assert {row["n"] for row in json.loads(Path("table.json").read_text())} == {4}
    assert "left out" not in icdsel("compare", *ON[:4])  # reads the files over the split alone


def test_nothing_is_written_for_a_split_with_answers_unless_it_is_asked_for(engine: FakeEngine) -> None:
    icdsel("infer", *ON, "--n", 2)
    assert not SUBMISSIONS.exists()


def test_a_mistake_is_told_before_the_vlm_is_asked(engine: FakeEngine) -> None:
    output = said(icdsel("infer", *ON, "--split", "test", "--format", "submision", code=2))
    assert "unknown format 'submision': did you mean 'submission'?" in output and "vlmevalkit" in output
    output = said(icdsel("infer", *ON, "--certify", 1, "--format", "csv", code=2))
    assert "leave out --format" in output
    assert engine.calls == [] and not Path("results").exists()


def test_failed_calls_leave_no_submission_and_are_made_again(engine: FakeEngine) -> None:
    icdsel("infer", *ON, "--split", "test", "--n", -1, "--results-dir", "complete")
    failing = raises(lambda: ValueError("a cosmic ray"), lambda request: request.query.question_id == 44035)
    engine._fault = failing
    words = ("infer", *ON, "--split", "test", "--n", -1, "--max-failed", 1)
    output = said(icdsel(*words, code=1))
    told = "nearest-both_test-6_2.submission.json is not written: 1 of 6 calls failed (question_id 44035)"
    assert told in output and "Move that file away" in output
    assert names() == {f"majority_test-6_{shots}.submission.json" for shots in (1, 2)}  # asks no VLM
    engine._fault = lambda requests: None
    for path in ANSWERS.glob("*.jsonl"):
        path.rename(path.name)
    engine.calls.clear()
    icdsel(*words)
    assert {request.query.question_id for call in engine.calls for request in call} == {44035}
    for path in Path("complete").glob("world/infer/*/submissions/*"):
        assert (SUBMISSIONS / path.name).read_bytes() == path.read_bytes()
    assert len(names()) == 5
