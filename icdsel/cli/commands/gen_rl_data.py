"""`icdsel gen-rl-data`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import Overwrite, with_settings, written_file
from icdsel.console import out
from icdsel.errors import SettingsError
from icdsel.settings import Settings


@with_settings("data", "vlm", "proposals")
def gen_rl_data(
    settings: Settings,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", parser=written_file)
    ] = None,
    shard: Annotated[str | None, typer.Option("--shard", help="Score only part K of N, given as K/N.")] = None,
    unsolved: Annotated[
        list[Path] | None,
        typer.Option("--unsolved", help="Score only queries without a right pointer in these RL data.", exists=True),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Proposes pointers (sequences of ICDs) for training queries and has the VLM score them.

    Writes one JSON line per query to `results/<dataset>/generated_data/rl_data_<Sampler>_<Model>.jsonl`.
    An interrupted run resumes where it stopped. `--ray-address` spreads the work over the machines of a Ray cluster.
    Without Ray, run `--shard 1/4` to `--shard 4/4`; then run the same command without `--shard` to merge the parts.

    For example:

    ```
    icdsel gen-rl-data
    icdsel gen-rl-data --queries 2000 --sampler mix
    icdsel gen-rl-data --init rce_epoch5.pt --output round2.jsonl
    icdsel gen-rl-data --init rce_epoch5.pt --unsolved round1.jsonl --samples 8 --output round2.jsonl
    icdsel gen-rl-data --dataset okvqa --ray-address head:6379
    icdsel gen-rl-data --dataset okvqa --vlm-url http://localhost:8000/v1
    ```
    """
    from icdsel.stages.generate import Shard, generate

    part = None
    if shard is not None:
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise SettingsError(f"--shard is K/N with 1 ≤ K ≤ N, as in 2/4, not {shard!r}")
        part = Shard(int(numbers[1]), int(numbers[2]))
    summary = generate(settings, output, overwrite, shard=part, unsolved=unsolved or ())
    out.print(str(summary))
    finish(settings, failed=summary.failed)
