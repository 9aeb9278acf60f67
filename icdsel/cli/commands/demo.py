"""`icdsel demo`: all stages on a bundled world. Prints every command that it runs."""

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from icdsel.cli.options import with_settings
from icdsel.console import note, out
from icdsel.errors import SettingsError
from icdsel.settings import Settings
from icdsel.settings.flags import flags
from icdsel.settings.worlds import is_world, world_names

HELD_OUT = 800
RANDOM_SEEDS = 3
SHOTS = "1,2"
NEAREST = "random,nearest-image,nearest-question,nearest-both"
# By pool size. All that learns nothing chooses from the whole training set; the oracle knows the scored pointers of
# pools of the usual size only.
BASELINES = {None: f"{NEAREST},oracle", "all": f"{NEAREST},balanced,mmices,mmr,k-dpp,facility-location"}
DRAWS = {None: "random", "all": "random,balanced"}
# A trained policy proposes all pointers itself, by beam search and sampling.
BY_POLICY = ("--samples", 4, "--retrieval", 0, "--random", 0)


@with_settings("data")
def demo(
    context: typer.Context,
    settings: Settings,
    seeds: Annotated[int, typer.Option("--seeds", help="Policies to train, each with its own seed.", min=1)] = 1,
) -> None:
    """Runs all stages on a bundled world: RL data, training, conversion, inference, comparison.

    Policy and baselines select twice: within pools of 64 candidates, and from the whole training set, where MMICES,
    MMR, k-DPP, facility location and balanced draws select too. The table ends with the strongest method that learns
    nothing, and whether the policy beats it.

    Prints every command that it runs. Takes a few minutes on two cores, and needs neither network nor GPU.

    For example:

    ```
    icdsel demo
    icdsel demo --seeds 3
    icdsel demo --dataset world-hard
    ```
    """
    from icdsel.artefacts.rl_data import rl_data_path
    from icdsel.artefacts.run_folder import find_run

    if not is_world(settings.data.dataset):
        raise SettingsError(
            f"demo runs on a bundled world, not on {settings.data.dataset!r}: leave --dataset out, or choose one of "
            f"{', '.join(world_names())}"
        )
    started = time.monotonic()
    first, second = rl_data_path(settings), settings.dataset_dir / "generated_data" / "demo_round2.jsonl"
    run = _Runner(context.find_root().command, flags(settings, "data"))

    # Round 1: pointers proposed by the cosine of the embeddings. Round 2: by the policy trained on them.
    run("gen-rl-data")
    run("train", "--run", "demo-round1")
    proposer = find_run(settings, "demo-round1").checkpoint
    run("gen-rl-data", "--init", proposer, *BY_POLICY, "--output", second)
    names = []
    for k in range(seeds):
        seed = ["--train-seed", str(settings.data.seed + k)] if k else []
        names.append("_".join(["demo", *(f"train-seed-{value}" for value in seed[1:])]))
        both = ["--rl-data", str(first), "--rl-data", str(second)]
        run("train", *both, "--grpo-epochs", 3, "--freeze-backbone", "--run", names[k], *seed)
    run("convert", "--run", "demo")
    # What the best of many pointers would reach.
    run("gen-rl-data", "--split", "validation", "--queries", HELD_OUT, "--init", proposer, "--samples", 4)
    # Within the pools that it was trained on, and from the whole training set, as one would use it.
    for pool, baselines in BASELINES.items():
        answer = ("infer", "--n", HELD_OUT, "--shots", SHOTS, *(("--pool-size", pool) if pool else ()))
        for name in names:
            run(*answer, "--selector", "policy", "--run", name)
        run(*answer, "--selector", baselines)
        for k in range(1, RANDOM_SEEDS):
            run(*answer, "--selector", DRAWS[pool], "--random-seed", settings.data.seed + k)
    run("compare")
    note(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")


class _Runner:
    """Prints a command as a user would type it, and runs it in this process."""

    def __init__(self, command: Any, common: list[str]) -> None:
        self.command, self.common = command, common

    def __call__(self, *arguments: str | float | Path) -> None:
        name, *more = map(str, arguments)
        line = [name, *self.common, *more]
        out.print(Text(f"\n$ icdsel {shlex.join(line)}", style="bold"))  # not broken into lines: it may be copied
        code = self.command.main(args=line, prog_name="icdsel", standalone_mode=False)
        if code:
            raise typer.Exit(int(code))
