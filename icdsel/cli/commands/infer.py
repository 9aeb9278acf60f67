"""`icdsel infer`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import Overwrite, with_settings
from icdsel.console import note, out
from icdsel.errors import SettingsError
from icdsel.records import AUTO
from icdsel.selection import POLICY
from icdsel.settings import Settings, with_values


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
    certify: Annotated[
        float | None,
        typer.Option(
            "--certify",
            metavar="FLOAT",
            help="Certify, on held-out queries, how much a policy that decides how many ICDs it shows may show without "
            "being worse than zero-shot by more than this (in points), with a confidence of 95 %. The queries are "
            "those of --split, by default all of the split tuning.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Selects ICDs for held-out queries and has the VLM answer them, with 1 to 4 shots.

    The policy of the last training selects, and so do the baselines that it has to beat: random and nearest neighbours,
    and, from the whole training set, nearest neighbours, MMICES, MMR, k-DPP and facility location. Two more are always
    included: zero-shot, and a copy of the neighbours' majority answer. Answers that exist are reused.

    With `--shots auto`, a policy that may stop (`train --min-shots 0`) decides for each query how many ICDs it shows.

    For example:

    ```
    icdsel infer --n 800
    icdsel infer --n 800 --selector policy --run my-run
    icdsel infer --n 800 --pool-size all
    icdsel infer --n -1 --shots 2,auto --selector policy,random,nearest-both
    icdsel infer --certify 1
    icdsel infer --dataset okvqa --ray-address head:6379
    icdsel infer --dataset okvqa --vlm-url http://gpu1:8000/v1,http://gpu2:8000/v1
    ```
    """
    from icdsel.cli.tables import inference_table
    from icdsel.stages.infer import infer as infer_stage

    if certify is not None:
        _certify(settings, certify, run, checkpoint, overwrite)
        return
    rows = infer_stage(settings, run, checkpoint, overwrite)
    out.print(inference_table(rows, settings.data.task), soft_wrap=False)
    scored = any(row.score for row in rows)
    then = "`icdsel compare` adds confidence intervals." if scored else "Nothing is scored, so there is no comparison."
    note(f"Predictions: {rows[0].path.parent}. {then}")
    finish(settings, failed=sum(row.failed for row in rows))


def _certify(settings: Settings, delta: float, run: str | None, checkpoint: Path | None, overwrite: bool) -> None:
    """Answers the queries with zero-shot and with the policy at all offsets, and writes the certificate."""
    from icdsel.cli.tables import certificate_table
    from icdsel.comparison.certificate import CERTIFICATE_FILE, GRID, certificate_of, require_delta
    from icdsel.comparison.sources import read_source
    from icdsel.stages.infer import infer as infer_stage
    from icdsel.tasks.base import TASKS

    task, given = TASKS.named(settings.data.task), settings.infer.model_fields_set
    require_delta(delta, task)
    if settings.infer.shots != (AUTO,) and "shots" in given:
        raise SettingsError(f"--certify tests all offsets of --shots {AUTO}: leave out --shots")
    if "selector" in given and settings.infer.selector != (POLICY.name,):
        raise SettingsError(f"--certify compares {POLICY.name} with zero-shot: leave out --selector")
    queries = {name: value for name, value in {"split": "tuning", "n": -1}.items() if name not in given}
    asked = with_values(settings, {"infer": queries | {"shots": GRID, "selector": (POLICY.name, "zero-shot")}})
    policy, zero_shot = infer_stage(asked, run, checkpoint, overwrite, with_baselines=False)
    found = certificate_of(zero_shot.path, policy.path, delta, settings.data.seed)
    place = (read_source(policy.path).checkpoint or policy.path).parent / CERTIFICATE_FILE
    found.write(place)
    out.print(certificate_table(found, task), soft_wrap=False)
    note(f"Certificate: {place}. The same command computes it again from the predictions.")
    if found.offset is not None:
        note(f"Answer other queries with it: icdsel infer --shots {found.shots} --split validation")
    finish(settings, failed=policy.failed + zero_shot.failed)
