"""The script runs: a command whose workers and machine are lost leaves the bytes of a single process."""

import subprocess
import sys
from pathlib import Path

import pytest

from .network import why_not


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f"no cluster can be made here: {why_not()}")
def test_commands_on_a_cluster_that_loses_a_worker_and_a_machine_leave_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray_cluster", "--only", "gen-rl-data"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing differs." in done.stdout
