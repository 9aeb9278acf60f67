"""Tables of the command line at several widths."""

import io

import pytest
from rich.console import Console

from icdsel.cli.tables import plan_table
from icdsel.experiments.plan import Estimate, Step
from icdsel.settings import settings_from


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_plan_cuts_no_word(width: int) -> None:
    settings = settings_from({})
    steps = {
        "RL data": "score 800 queries, up to 12,000 pointers",
        "rce-normalized+grpo-frozen, seed 43: training": "train 5 rce epochs of 640 queries, 3 grpo epochs",
    }
    plan = [Estimate(Step("model and data", settings, "open them"), 3.0, "just now")]
    plan += [Estimate(Step(what, settings, todo), 400.0, "recorded and probed") for what, todo in steps.items()]
    screen = Console(width=width, file=io.StringIO())
    screen.print(plan_table(plan))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    for phrase in (*steps, *steps.values(), *(["recorded and probed"] if width > 60 else [])):
        assert all(word in text.split() for word in phrase.split())
