from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where `icdsel.toml` is looked for."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
