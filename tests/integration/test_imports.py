"""What is loaded by what: looking at results, settings and help must not wait for torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers")
LIGHT = (
    "icdsel",
    "icdsel.artefacts.hub",
    "icdsel.artefacts.predictions",
    "icdsel.artefacts.run_folder",
    "icdsel.check.paths",
    "icdsel.cli.app",
    "icdsel.comparison.compare",
    "icdsel.comparison.runs",
    "icdsel.comparison.tables",
    "icdsel.experiments.variants",
    "icdsel.page.build",
    "icdsel.settings.loading",
    "icdsel.submissions.writing",
    "icdsel.tasks.vqa",
)


@pytest.mark.parametrize("module", LIGHT)
def test_it_loads_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
