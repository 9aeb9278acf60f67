"""The long fault tests. `pytest -m slow -n0 -s tests/faults` prints the tables of docs/robustness.md."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "words", [("--kills", "60", "--signals", "20", "--seed", "5"), ("--sweep", "4", "--seed", "1")]
)
def test_every_stage_ends_with_the_bytes_of_an_undisturbed_run(words: tuple[str, ...]) -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "tests.faults.kills", *words], cwd=root, check=True)
