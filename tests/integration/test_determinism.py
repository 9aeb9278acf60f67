"""The whole way in processes of their own: the same settings give the same bytes, other batches the same answers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

COMMANDS = (
    "gen-rl-data --queries 8 --samples 2 --retrieval 1 --random 2",
    "train --queries 8 --samples 2 --retrieval 1 --random 2 --rce-epochs 2 --rce-over pool --grpo-epochs 1 --run mine",
    "convert results/set/model_cpk/mine/grpo_epoch1.pt --output mine.ckpt",
    "infer --selector policy,random,nearest-both,majority --checkpoint mine.ckpt --n 6 --shots 1,2",
    "compare --json table.json --csv table.csv --markdown table.md",
)
SET = ("--dataset", "set.jsonl", "--model", "tiny-vlm", "--pool-size", "8")
UNCOMPARED = (".json", ".lock", ".txt", ".log")  # metadata and logs hold times; locks are empty
ONE_PROCESS = """
import json, sys
from icdsel.cli.app import app
for words in json.loads(sys.argv[1]):
    assert not app(words, standalone_mode=False)
"""


def made(folder: Path, hash_seed: int, *more: str) -> dict[str, bytes]:
    """What all commands leave in a folder, without what tells of times; sets have an order of their own in each."""
    (folder / "images").mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for number in range(30):
        Image.new("RGB", (56, 56), (8 * number, 250 - 8 * number, 40)).save(folder / f"images/{number}.png")
        split = "train" if number < 24 else "validation"
        lines.append(
            {"question_id": number, "image": f"images/{number}.png", "question": f"what colour has {number % 7}?"}
            | {"answers": ["red", "green", "blue"][number % 3 :], "split": split}
        )
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    commands = [command.split() for command in COMMANDS]
    commands = [words if words[0] == "convert" else [*words, *SET] for words in commands]
    commands = [words if words[0] in ("convert", "compare") else [*words, *more] for words in commands]
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = [path for place in ("results", ".") for path in (folder / place).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in left if path.suffix not in UNCOMPARED}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(tmp_path_factory.mktemp("first") / "work", 1)


def test_the_same_settings_give_the_same_bytes(first: dict[str, bytes], tmp_path: Path) -> None:
    again = made(tmp_path / "work", 2)
    assert {Path(name).suffix for name in first} >= {".jsonl", ".pt", ".ckpt", ".safetensors", ".csv", ".md"}
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []


def test_another_batch_size_gives_the_same_pointers_and_answers(first: dict[str, bytes], tmp_path: Path) -> None:
    other = made(tmp_path / "work", 1, "--batch-tokens", "1")
    assert other.keys() == first.keys()
    compared = 0
    for name in first:
        if name.endswith(".jsonl") and "metrics" not in name:
            for ours, theirs in zip(leaves(other[name]), leaves(first[name]), strict=True):
                compared += 1
                if isinstance(theirs, float):
                    assert ours == pytest.approx(theirs, abs=1e-4)
                else:
                    assert ours == theirs
    assert compared > 1000


def leaves(content: bytes) -> Iterator[object]:
    """All values of a file of JSON lines, in order."""
    waiting: list[object] = [json.loads(line) for line in reversed(content.splitlines())]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)
        else:
            yield value
