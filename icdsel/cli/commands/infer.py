"""`icdsel infer`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import Overwrite, with_settings
from icdsel.console import note, out
from icdsel.settings import Settings


@with_settings("data", "vlm", "infer")
def infer(
    settings: Settings,
    run: Annotated[
        str | None, typer.Option("--run", help="Run whose policy selects ICDs. [default: the last trained run]")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Checkpoint of the policy. [default: the run's recommended checkpoint]"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Selects ICDs for held-out queries and has the VLM answer them, with 1 to 4 shots.

    The policy of the last training selects, and so do the baselines that it has to beat: random and nearest neighbours,
    and, from the whole training set, nearest neighbours, MMICES, MMR, k-DPP and facility location. Two more are always
    included: zero-shot, and a copy of the neighbours' majority answer. Answers that exist are reused.

    For example:

    ```
    icdsel infer --n 800
    icdsel infer --n 800 --selector policy --run my-run
    icdsel infer --n 800 --pool-size all
    icdsel infer --n -1 --shots 2 --selector policy,random,nearest-both
    ```
    """
    from icdsel.cli.tables import inference_table
    from icdsel.stages.infer import infer as infer_stage

    rows = infer_stage(settings, run, checkpoint, overwrite)
    out.print(inference_table(rows, settings.data.task), soft_wrap=False)
    scored = any(row.score for row in rows)
    then = "`icdsel compare` adds confidence intervals." if scored else "Nothing is scored, so there is no comparison."
    note(f"Predictions: {rows[0].path.parent}. {then}")
    finish(settings, failed=sum(row.failed for row in rows))
