"""What claiming and moving aside make of what is there, and of what a killed process left."""

from pathlib import Path

import pytest

from icdsel.errors import RunError
from icdsel.store.files import write_json
from icdsel.store.reuse import Result, move_aside


def claimed(run: Path, overwrite: bool = False) -> bool:
    result = Result("run x", (run,), run / "run.json", {"data.seed": 1}, RunError, "Use --overwrite.")
    return result.claim(overwrite)


def test_a_move_that_was_cut_short_is_gone_on_with_under_the_same_number(tmp_path: Path) -> None:
    side, data = tmp_path / "x.meta.json", tmp_path / "x.jsonl"
    for content in ("first", "second"):
        side.write_text(content)
        data.write_text(content)
        move_aside(side)  # and killed
        move_aside(side, data)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.meta.json.old-1": "first",
        "x.jsonl.old-1": "first",
        "x.meta.json.old-2": "second",
        "x.jsonl.old-2": "second",
    }


def test_a_run_that_was_killed_before_it_could_say_what_it_is_is_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert not claimed(run)
    (run / ".run.json.123.part").write_text('{"identity": {"da')
    assert not claimed(run)
    (run / "rce_epoch1.pt").write_bytes(b"whose?")
    with pytest.raises(RunError, match=r"run\.json is missing"):
        claimed(run)


def test_what_stands_there_is_told_apart_by_its_settings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_json(run / "run.json", {"identity": {"data.seed": 1}})
    assert claimed(run)
    write_json(run / "run.json", {"identity": {"data.seed": 2}})
    with pytest.raises(RunError, match=r"data\.seed: 2 then, 1 now"):
        claimed(run)
    assert not claimed(run, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.old-1"]
