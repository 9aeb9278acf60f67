import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from icdsel.stages import train
from icdsel.stages.run_journal import clean_up
from icdsel.store.files import write_json
from icdsel.store.metadata import read_metadata


def test_a_trained_run_is_left_without_what_interruptions_need_and_leave(tmp_path: Path) -> None:
    kept = ["rce_epoch1.pt", "rce_epoch1_v2format.ckpt", "metrics.jsonl", "online.jsonl", "run.json", "log.txt"]
    left = [f".{name}.123.part" for name in ("rce_epoch1.pt", "resume.pt", "metrics.jsonl", "run.json")]
    others = [".rce_epoch1_v2format.ckpt.123.part"]  # `infer` may just be writing it
    for name in [*kept, "resume.pt", *left, *others]:
        (tmp_path / name).touch()
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept + others)
    clean_up(tmp_path)


def test_of_trainings_that_finish_at_one_time_one_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [tmp_path / "model_cpk" / name / train.METADATA_FILE for name in "ab"]
    for side in sides:
        write_json(side, {"identity": {}})
    look = train.read_metadata_files

    def slowly(paths: Any) -> Any:
        found = list(look(paths))
        time.sleep(0.1)
        return found

    monkeypatch.setattr(train, "read_metadata_files", slowly)
    with ThreadPoolExecutor() as threads:
        list(threads.map(train._mark_finished, sides))
    assert sorted(read_metadata(side)["finished"] for side in sides) == [1, 2]
