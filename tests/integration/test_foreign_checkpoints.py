"""Checkpoints from elsewhere that hold more than plain data: every command that takes one says so, and runs nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import icdsel
from test_mistaken_paths import plain

from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork


@pytest.mark.parametrize(
    "words",
    [["convert"], ["infer", "--n", "2", "--checkpoint"], ["train", "--init"], ["gen-rl-data", "--init"]],
    ids=" ".join,
)
def test_it_is_reported(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_into: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    world_into(Path("data"))
    save_policy("own.pt", PointerNetwork(PointerConfig(d_model=8)), epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    torch.save(torch.load("own.pt", weights_only=True) | {"tool": os.mkdir}, "theirs.pt")
    # --results-dir is no folder: the command ends before any work.
    Path("file").touch()
    end = [] if words[0] == "convert" else ["--results-dir", "file/results"]
    said = plain(icdsel(*words, "theirs.pt", *end, code=0 if words[0] == "convert" else 2))
    assert "theirs.pt holds objects that are not plain data: posix.mkdir" in said
    assert "not plain data" not in plain(icdsel(*words, "own.pt", *end, code=0 if words[0] == "convert" else 2))
