"""Paths that cannot be meant: one message that names the path and what to do, exit code 2, and no work before it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import icdsel

LONG = "a" * 256  # bytes: one more than file systems hold


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def plain(said: str) -> str:
    """What was said, without the frame and the line ends that typer gives it."""
    return " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(
    "words",
    [
        *[["runs", "--json"], ["check", "--json"], ["bench", "--json"], ["check"], ["compare"], ["convert"]],
        *[["compare", option] for option in ("--json", "--csv", "--markdown", "--html", "--plots", "--rl-data")],
        *[["convert", "policy.pt", "-o"], ["gen-rl-data", "-o"], ["train", "--rl-data"], ["infer", "--checkpoint"]],
        *[["train", option] for option in ("--init", "--warm-start", "--image-dir", "--data-dir", "--results-dir")],
        *[["infer", option] for option in ("--train-embeddings", "--image-cache-dir")],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_rejected(words: list[str]) -> None:
    assert "it is empty" in plain(icdsel(*words, "", code=2))


@pytest.mark.parametrize("words", [["runs", "--json"], ["gen-rl-data", "-o"], ["compare", "--html"]], ids=" ".join)
def test_a_path_that_may_not_be_replaced_is_rejected_before_any_work(tmp_path: Path, words: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "a pipe or a device" in plain(icdsel(*words, tmp_path / "pipe.jsonl", code=2))
    assert "it is a folder: name a file in it" in plain(icdsel(*words, tmp_path, code=2))
    assert (tmp_path / "pipe.jsonl").is_fifo()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gen-rl-data", "--data-dir", "file"], "file: File exists. A file is where a folder should be"),
        (["gen-rl-data", "--results-dir", "file"], "A file is where a folder should be: name another place"),
        (["runs", "--json", "file/table.json"], "file/table.json: Not a directory"),
        (["gen-rl-data", "--results-dir", LONG], "File name too long. Use shorter names"),
        (["runs", "--json", LONG], "File name too long. Use shorter names"),
        (["train", "--rl-data", LONG], "File name too long. Use shorter names"),
        (["infer", "--checkpoint", "folder"], "--checkpoint folder is a folder, not a file"),
        (["gen-rl-data", "--init", "folder"], "--init folder is a folder, not a file"),
        (["train", "--init", "folder"], "folder is a folder, not a file: give the path of a file"),
        (["train", "--warm-start", "folder"], "folder is a folder, not a file: give the path of a file"),
        (["train", "--rl-data", "folder"], "folder is a folder, not a file: give the path of a file"),
    ],
)
def test_paths_that_cannot_be_meant(words: list[str], expected: str, world_into: Callable[[Path], None]) -> None:
    world_into(Path("data"))
    Path("file").touch()
    Path("folder").mkdir()
    said = plain(icdsel(*words, code=2))
    assert expected in said and "Finished work is kept" not in said
