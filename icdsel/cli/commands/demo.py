"""`icdsel demo`: all stages on a bundled world. Prints every command that it runs."""

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from icdsel.cli.options import Overwrite, with_settings
from icdsel.console import note, out
from icdsel.errors import SettingsError
from icdsel.settings import Settings
from icdsel.settings.flags import given_again
from icdsel.settings.presets import TINY_VLM
from icdsel.settings.tables import VlmSettings
from icdsel.settings.worlds import is_world, world_names

DEFAULT = "world-hard"
"""The world of the demo: similarity misleads there, some queries need two ICDs that complete each other, some none."""
QUERIES, HELD_OUT = 2400, 800
RANDOM_SEEDS = 3
SHOTS = "1,2"
BASELINES = "random,balanced,nearest-image,nearest-question,nearest-both,mmices,mmr,k-dpp,facility-location,oracle"
DRAWS = "random,balanced"
NOT_FOR_DEMO = [name for name in VlmSettings.model_fields if name not in (*VlmSettings.MACHINE, "model")]
"""The settings of the VLM that decide results: the demo has its own. The others say where the VLM runs."""
# A trained policy proposes all pointers itself, by beam search and sampling.
BY_POLICY = ("--retrieval", 0, "--answers", 0, "--temperatures", "1,2")


@with_settings(
    *("data", "vlm"),
    leave_out=[f"vlm.{name}" for name in NOT_FOR_DEMO],
    defaults={"data.preset": "whole-set", "data.dataset": DEFAULT},
)
def demo(
    context: typer.Context,
    settings: Settings,
    seeds: Annotated[int, typer.Option("--seeds", help="Policies to train, each with its own seed.", min=1)] = 1,
    queries: Annotated[int, typer.Option("--queries", help="Training queries to score.", min=2)] = QUERIES,
    n: Annotated[int, typer.Option("--n", help="Held-out queries to answer.", min=2)] = HELD_OUT,
    overwrite: Overwrite = False,
) -> None:
    """Runs all stages on a bundled world: RL data, training, inference, comparison.

    Without --dataset it is `world-hard`. Without --preset it is `whole-set`: policy and baselines select from the whole
    training set, and the policy also decides how many ICDs it shows. The table ends with the strongest method that
    learns nothing, and whether the policy beats it.

    Prints every command that it runs. Takes a few minutes on two cores, and needs neither network nor GPU. Fewer
    `--queries` and a smaller `--n` take less, and their results say less. The tiny VLM may run in several workers or on
    Ray, and with `--vlm-url` servers answer in its place.

    For example:

    ```
    icdsel demo
    icdsel demo --seeds 3
    icdsel demo --dataset world
    icdsel demo --queries 100 --n 50 --workers 2
    icdsel demo --queries 100 --n 50 --vlm-url http://localhost:8000/v1
    ```
    """
    from icdsel.artefacts.rl_data import rl_data_path
    from icdsel.artefacts.run_folder import find_run

    if settings.vlm.model != TINY_VLM and not settings.vlm.url:
        raise SettingsError(f"demo runs {settings.vlm.model} on a server only: name it with --vlm-url")
    if not is_world(settings.data.dataset):
        raise SettingsError(
            f"demo runs on a bundled world, not on {settings.data.dataset!r}: leave --dataset out, or choose one of "
            f"{', '.join(world_names())}"
        )
    started = time.monotonic()
    first, second = rl_data_path(settings), settings.dataset_dir / "generated_data" / "demo_round2.jsonl"
    run = _Runner(context.find_root().command, given_again(settings, "data", "vlm", leave_out=NOT_FOR_DEMO))
    again: list[str | float | Path] = ["--overwrite"] if overwrite else []

    # Round 1: pointers proposed by the cosine of the embeddings and by answers. Round 2: by the policy trained on them.
    scored = ["--queries", queries, *again]
    run("gen-rl-data", *scored)
    run("train", *scored, "--run", "demo-round1")
    proposer = find_run(settings, "demo-round1").checkpoint
    run("gen-rl-data", *scored, "--init", proposer, *BY_POLICY, "--output", second)
    names = []
    for k in range(seeds):
        seed = ["--train-seed", str(settings.data.seed + k)] if k else []
        names.append("_".join(["demo", *(f"train-seed-{value}" for value in seed[1:])]))
        run("train", "--rl-data", first, "--rl-data", second, "--run", names[k], *seed, *again)
    # What the best of many pointers would reach.
    policy = find_run(settings, "demo").checkpoint
    run("gen-rl-data", "--split", "validation", "--queries", n, "--init", policy, *again)
    answer = ["infer", "--n", n, *again, "--shots"]
    for name in names:
        run(*answer, f"{SHOTS},auto", "--selector", "policy", "--run", name)
    run(*answer, SHOTS, "--selector", BASELINES)
    for k in range(1, RANDOM_SEEDS):
        run(*answer, SHOTS, "--selector", DRAWS, "--random-seed", settings.data.seed + k)
    run("compare", "--n", n)
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
