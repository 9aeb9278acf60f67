"""`icdsel experiment` and the hidden `icdsel compare --train`, up to the work itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel

from icdsel.cli.commands import compare, experiment
from icdsel.settings import Settings


@dataclass
class Runner:
    """Stands for `run_variants`."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, settings: Settings, variants: str, **options: Any) -> None:
        self.calls.append({"settings": settings, "variants": variants, **options})


@pytest.fixture(autouse=True)
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.chdir(tmp_path)
    fake = Runner()
    for command in (compare, experiment):
        monkeypatch.setattr(command, "run_variants", fake)
    return fake


OPTIONS = (
    *("--seeds", "2", "--n", "30", "--shots", "1,2", "--rce-lr", "0.5", "--reference", "rce"),
    *("--selector", "nearest-both", "--json", "table.json", "--overwrite", "--rl-data", "a.jsonl"),
)


def test_both_commands_pass_the_same_to_the_experiment(runner: Runner) -> None:
    icdsel("experiment", "rce,grpo", *OPTIONS)
    said = icdsel("compare", "--train", "rce,grpo", *OPTIONS)
    assert "compare --train is now a separate command: icdsel experiment rce,grpo" in said
    first, second = runner.calls
    assert first == second
    assert (first["variants"], first["seeds"], first["overwrite"], first["dry_run"]) == ("rce,grpo", 2, True, False)
    assert (first["settings"].infer.n, first["settings"].infer.shots) == (30, (1, 2))
    assert first["settings"].train.rce_lr == 0.5
    assert first["outputs"].json_file == Path("table.json")


def test_without_options_both_answer_the_default_queries(runner: Runner) -> None:
    icdsel("experiment", "rce")
    icdsel("compare", "--train", "rce")
    assert runner.calls[0] == runner.calls[1]
    assert (runner.calls[0]["settings"].infer.n, runner.calls[0]["settings"].infer.shots) == (100, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment", "rce", "--dry-run", "--csv", "t.csv", "--gallery", "3"], "leave --gallery, --csv out"),
        (["compare", "--train", "rce", "--dry-run", "--plots", "p"], "leave --plots out with --dry-run"),
        (["compare", "--train", "rce", "--set", "tuning-3"], "--set chooses among existing predictions"),
        (["compare", "--train", "rce", "--shots", "1,x"], "--shots takes numbers and auto with commas"),
        (["compare", "--dry-run"], "--dry-run has no effect without --train"),
        (["compare", "--selector", "policy"], "--selector has no effect without --train"),
        (["compare", "--train-device", "cpu"], "--train-device has no effect without --train"),
    ],
)
def test_options_that_do_not_fit_together_are_rejected(runner: Runner, arguments: list[str], message: str) -> None:
    assert message in " ".join(icdsel(*arguments, code=2).split())
    assert runner.calls == []


def test_an_experiment_needs_variants() -> None:
    assert "VARIANTS" in icdsel("experiment", code=2)
