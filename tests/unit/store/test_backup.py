from pathlib import Path

from icdsel.store.backup import back_up


def test_an_interrupted_backup_is_completed_under_the_same_number(tmp_path: Path) -> None:
    metadata, data = tmp_path / "x.meta.json", tmp_path / "x.jsonl"
    for content in ("first", "second"):
        metadata.write_text(content)
        data.write_text(content)
        back_up(metadata)  # killed after it
        assert back_up(metadata, data) == [tmp_path / f"x.jsonl.old-{1 + (content == 'second')}"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.meta.json.old-1": "first",
        "x.jsonl.old-1": "first",
        "x.meta.json.old-2": "second",
        "x.jsonl.old-2": "second",
    }


def test_what_does_not_exist_is_skipped(tmp_path: Path) -> None:
    assert back_up(tmp_path / "none") == []
