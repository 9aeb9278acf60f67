"""The program of docs/tasks.md runs, and its task is that of its answers."""

import json
import re
import subprocess
import sys
from pathlib import Path

from worlds import write_small_world

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
[PROGRAM] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_a_task_of_ones_own_takes_40_lines_and_runs(tmp_path: Path) -> None:
    assert sum(bool(line.strip()) for line in PROGRAM.splitlines()) <= 40
    (tmp_path / "lists.py").write_text(PROGRAM, encoding="utf-8")
    write_small_world(tmp_path / "data", train=20, tuning=2, validation=6)
    words = ["infer", "--task", "lists", "--shots", "1", "--selector", "nearest-both", "--n", "6", "--pool-size", "all"]
    ended = subprocess.run(
        [sys.executable, "lists.py", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "F1 of the items in points" in ended.stdout
    [path] = (tmp_path / "results/world/infer").glob("*/nearest-both_*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert {record["task"] for record in records} == {"lists"}
    questions = json.loads((tmp_path / "data/world/annotations_validation.json").read_text())["annotations"]
    answers = {each["question_id"]: [answer["answer"] for answer in each["answers"]] for each in questions}
    right = [record for record in records if record["accuracy"] == 1]
    assert all(record["prediction"].lower() in answers[record["question_id"]] for record in right)
