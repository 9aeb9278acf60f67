"""Programs of users, run in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path


def run_program(program: Path, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a Python program in a folder; it finds the modules that this process finds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
