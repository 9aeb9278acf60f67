"""Bundled worlds for tests: the easy one, which is drawn once for all tests, and small ones."""

import os
import shutil
from pathlib import Path

import pytest

from icdsel.data.world import files, write_world
from icdsel.settings.worlds import difficulty_of


def put_world(drawn: Path, data: Path) -> None:
    """Puts a drawn world into a data folder, as commands would draw it there.

    Images are hard links, so a test must not change them in place. The other files are copies.
    """

    def put(source: str, target: str) -> str:
        if source.endswith(".png"):
            os.link(source, target)
            return target
        return shutil.copy2(source, target)

    shutil.copytree(drawn, data / "world", copy_function=put)


def write_small_world(data: Path, train: int, tuning: int, validation: int, name: str = "world") -> None:
    """Draws a world with fewer examples into a data folder, under the name of the whole one."""
    difficulty = difficulty_of(name).model_copy(update={"train": train})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SPLIT_SIZES", {"train": train, "tuning": tuning, "validation": validation})
        write_world(data / name, difficulty)
