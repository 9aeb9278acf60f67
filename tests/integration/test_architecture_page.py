"""The selector, task, engine and sampler of docs/architecture.md run as the page says, in a new folder."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python|toml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = {
    "my_icdsel.py": "# my_icdsel.py",
    "icdsel.toml": "[data]",
    "shortest_answers.py": "class ShortestAnswers",
    "first_word.py": "class FirstWord",
    "echo_engine.py": "class EchoEngine",
    "near_and_far.py": "def near_and_far",
}
COMMANDS = (
    "gen-rl-data",
    "train --rce-epochs 1",
    "infer --n 6 --selector shortest-answers",
    "compare --json table.json --html out.html",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world_into: Callable[[Path], None]) -> Path:
    folder = tmp_path_factory.mktemp("page")
    world_into(folder / "data")
    for name, mark in FILES.items():
        [block] = [block for block in BLOCKS if mark in block]
        (folder / name).write_text(block, encoding="utf-8")
    for command in COMMANDS:
        words = [sys.executable, "my_icdsel.py", *command.split()]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    return folder


def test_everything_was_used(folder: Path) -> None:
    metadata = json.loads(next(folder.glob("results/*/generated_data/*.meta.json")).read_text())
    data, vlm = metadata["settings"]["data"], metadata["settings"]["vlm"]
    assert (data["task"], data["sampler"]) == ("first-word", "near-and-far")
    assert (vlm["engine"], vlm["model"]) == ("echo", "my-echo")
    rows = json.loads((folder / "table.json").read_text())
    assert {(row["selector"], row["task"]) for row in rows} >= {("shortest-answers", "first-word")}


def test_the_task_is_named_instead_of_vqa(folder: Path) -> None:
    text = (folder / "out.html").read_text(encoding="utf-8")
    assert "First word" in text and "VQA" not in text
