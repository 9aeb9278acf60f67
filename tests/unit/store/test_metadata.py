"""The fingerprints of files, and what is told of the machine."""

import hashlib
from pathlib import Path

import pytest

from icdsel.store.fingerprints import fingerprint_file, has_fingerprint
from icdsel.store.metadata import environment


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment("cpu")["revision"] is None


def test_the_fingerprint_of_what_never_ends() -> None:
    """A regular file for the system, of no size, that gives hundreds of gigabytes; another that cannot be read."""
    assert fingerprint_file(Path("/proc/self/pagemap")) == hashlib.sha256().hexdigest()[:16]
    assert not has_fingerprint(Path("/proc/self/mem"), "0" * 16)
    assert not has_fingerprint(Path("nowhere"), None)
