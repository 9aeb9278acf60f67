from pathlib import Path

from icdsel.run_journal import tidy


def test_a_trained_run_is_left_without_what_interruptions_need_and_leave(tmp_path: Path) -> None:
    kept = ["rce_epoch1.pt", "rce_epoch1_v2format.ckpt", "metrics.jsonl", "online.jsonl", "run.json", "log.txt"]
    left = [f".{name}.123.part" for name in ("rce_epoch1.pt", "resume.pt", "metrics.jsonl", "run.json")]
    others = [".rce_epoch1_v2format.ckpt.123.part"]  # `infer` may just be writing it
    for name in [*kept, "resume.pt", *left, *others]:
        (tmp_path / name).touch()
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept + others)
    tidy(tmp_path)
