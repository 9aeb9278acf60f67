"""`icdsel demo`: the whole way on the bundled world, command by command, each one printed as it could be typed."""

import shlex
import time
from pathlib import Path

import typer

from icdsel.commands import flags
from icdsel.console import note, out
from icdsel.errors import SettingsError
from icdsel.settings import WORLD, Settings

HELD_OUT = 800
RANDOM_SEEDS = 3
SHOTS = "1,2"
BASELINES = "random,nearest-image,nearest-question,nearest-both,nearest-both-all,oracle"
EPOCHS = 10
# Sharper weights and larger steps than the original's: chosen on the tuning split (docs/world.md).
TRAINING = (
    *("--rce-epochs", EPOCHS, "--rce-lr", "1e-3", "--batch-size", 8),
    *("--rce-temp-start", 0.5, "--rce-temp-end", 0.2),
)


def run_tour(app: typer.Typer, settings: Settings, seeds: int) -> None:
    """Runs the commands in this process.

    Raises:
        SettingsError: the settings name another dataset.
    """
    if settings.data.dataset != WORLD:
        raise SettingsError(f"demo runs on the bundled world, not on {settings.data.dataset!r}: leave --dataset out")
    started = time.monotonic()
    generated = settings.dataset_dir / "generated_data"
    first, second = (generated / f"demo_round{i}.jsonl" for i in (1, 2))
    run = _Runner(app, flags(settings, "data"))

    # Round 1: pointers proposed by the cosine of the embeddings. Round 2: by the policy that learnt from them.
    run("gen-rl-data", "--output", first)
    run("train", "--rl-data", first, "--run", "demo-round1", *TRAINING)
    proposer = settings.dataset_dir / "model_cpk" / "demo-round1" / f"rce_epoch{EPOCHS}.pt"
    run("gen-rl-data", "--init", proposer, "--samples", 4, "--output", second)
    names = []
    for k in range(seeds):
        seed = ["--train-seed", str(settings.data.seed + k)] if k else []
        names.append("_".join(["demo", *(f"train-seed-{value}" for value in seed[1:])]))
        both = ["--rl-data", str(first), "--rl-data", str(second)]
        run("train", *both, "--grpo-epochs", 3, "--freeze-backbone", "--run", names[k], *TRAINING, *seed)
    run("convert", "grpo_epoch3.pt", "--run", "demo")
    run("gen-rl-data", "--split", "validation", "--queries", HELD_OUT)
    answer = ("infer", "--n", HELD_OUT, "--shots", SHOTS)
    for name in names:
        run(*answer, "--run", name)
    run(*answer, "--selector", BASELINES)
    for k in range(1, RANDOM_SEEDS):
        run(*answer, "--selector", "random", "--random-seed", settings.data.seed + k)
    run("compare")
    note(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")


class _Runner:
    """Prints a command as a user would type it, and runs it."""

    def __init__(self, app: typer.Typer, common: list[str]) -> None:
        self.command, self.common = typer.main.get_command(app), common

    def __call__(self, *words: str | float | Path) -> None:
        line = [str(word) for word in words] + self.common
        out.print(f"\n$ icdsel {shlex.join(line)}", style="bold")
        code = self.command.main(args=line, prog_name="icdsel", standalone_mode=False)
        if code:
            raise typer.Exit(int(code))
