"""A converted file is replaced only if the user says so, and left alone if it is up to date."""

import os
from pathlib import Path

import pytest

from icdsel.errors import CheckpointError
from icdsel.store.conversion import refuse_own_conversion, write_conversion

SOURCE = Path("policy.pt")


def write(target: Path, content: bytes, overwrite: bool = False) -> None:
    write_conversion(target, content, SOURCE, CheckpointError, overwrite)


def test_one_with_the_same_content_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "a" / "policy.ckpt"
    write(target, b"one")
    target.with_name(".policy.ckpt.lock").unlink()
    number = target.stat().st_ino
    write(target, b"one")
    assert target.stat().st_ino == number and [*target.parent.iterdir()] == [target]  # not even locked


def test_one_with_another_content_is_rejected_or_renamed(tmp_path: Path) -> None:
    target = tmp_path / "policy.ckpt"
    target.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"exists and is not the conversion of policy\.pt.*--output.*--overwrite"):
        write(target, b"one")
    assert target.read_bytes() == b"mine"
    write(target, b"one", overwrite=True)
    assert target.read_bytes() == b"one" and (tmp_path / "policy.ckpt.old-1").read_bytes() == b"mine"


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".policy.ckpt.123.part").write_bytes(b"half")
    write(tmp_path / "policy.ckpt", b"one")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".policy.ckpt.lock", "policy.ckpt"]


def test_a_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe"):
        write(tmp_path / "pipe", b"one", overwrite=True)


def test_a_file_is_not_converted_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="is the file to be converted: name another one with --output"):
        refuse_own_conversion(tmp_path / "b", tmp_path / "a", CheckpointError)
    refuse_own_conversion(tmp_path / "c", tmp_path / "a", CheckpointError)
