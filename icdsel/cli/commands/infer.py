"""`icdsel infer`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import Overwrite, with_settings
from icdsel.console import note, out, warn
from icdsel.errors import SettingsError
from icdsel.records import AUTO
from icdsel.selection import POLICY
from icdsel.settings import Settings, with_values
from icdsel.submissions import FORMATS, SERVER, Format, formats_named

if TYPE_CHECKING:
    from icdsel.stages.infer import Row
    from icdsel.stages.session import Session

_LISTED = 4  # files in a message


@with_settings("data", "vlm", "infer")
def infer(
    settings: Settings,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Run whose policy selects ICDs: its name or number, a bundle's folder, or hub:owner/name. [default: "
            "the last trained run]",
        ),
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
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME,…",
            help="Also write the answers in formats that other programs read, into the folder submissions beside the "
            f"predictions. Names: {', '.join(FORMATS)}. [default: {SERVER.name} for a split without answers, else "
            "none]",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Selects ICDs for held-out queries and has the VLM answer them, with 1 to 4 shots.

    The policy of the last training selects, and so do the baselines that it has to beat: random and nearest neighbours,
    and, from the whole training set, nearest neighbours, MMICES, MMR, k-DPP and facility location. Two more are always
    included: zero-shot, and a copy of the neighbours' majority answer. Answers that exist are reused.

    With `--shots auto`, a policy that may stop (`train --min-shots 0`) decides for each query how many ICDs it shows.

    A split without answers (`--split test`) is answered, and written as evaluation servers take it.

    For example:

    ```
    icdsel infer --n 800
    icdsel infer --n 800 --selector policy --run my-run
    icdsel infer --n 800 --pool-size all
    icdsel infer --n 800 --pool-size all --run hub:owner/name
    icdsel infer --n -1 --shots 2,auto --selector policy,random,nearest-both
    icdsel infer --certify 1
    icdsel infer --split test --n -1 --shots 2 --selector policy
    icdsel infer --n 800 --format csv,lmms-eval,vlmevalkit
    icdsel infer --dataset okvqa --ray-address head:6379
    icdsel infer --dataset okvqa --vlm-url http://gpu1:8000/v1,http://gpu2:8000/v1
    ```
    """
    from icdsel.cli.tables import inference_table
    from icdsel.stages.infer import infer as infer_stage
    from icdsel.stages.session import Session
    from icdsel.tasks.base import TASKS

    if certify is not None:
        if formats:
            raise SettingsError("--certify writes a certificate: leave out --format")
        _certify(settings, certify, run, checkpoint, overwrite)
        return
    session = Session(settings)
    named = formats_named(",".join(formats), session.split(settings.infer.split)) if formats else None
    rows = infer_stage(settings, run, checkpoint, overwrite, session=session)
    scored = any(row.score for row in rows)
    if scored:
        task = TASKS.named(settings.data.task).named_by(settings.data.metric)
        out.print(inference_table(rows, task), soft_wrap=False)
    then = "`icdsel compare` adds confidence intervals." if scored else "Nothing is scored, so there is no comparison."
    note(f"Predictions: {rows[0].path.parent}. {then}")
    _write(rows, session, named)
    finish(settings, failed=sum(row.failed for row in rows))


def _write(rows: "Sequence[Row]", session: "Session", named: Sequence[Format] | None) -> None:
    """Writes the answers in the named formats, by default in that of servers if no query of the split has answers."""
    from icdsel.submissions.writing import write_submissions

    split = session.split(session.settings.infer.split)
    if named is None:
        if any(query.answers for query in split):
            return
        if why := SERVER.unfit(split):
            note(f"No {SERVER.name} is written, since {why}. --format writes other files.")
            return
        named = [SERVER]
    paths: list[Path] = []
    for row in rows:
        written = write_submissions(row.path, split, row.shots, named)
        paths += written.paths
        for refused in written.refused:
            warn(refused)
    if not paths:
        return
    names = ", ".join(path.name for path in paths[:_LISTED])
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    note(f"Written to {paths[0].parent}: {names}{more}.")
    n = session.settings.infer.n
    whole = [one.name for one in named if one.needs_split]
    if whole and 0 < n < len(split):
        warn(
            f"{', '.join(whole)}: servers reject answers to a part of a split, and these are {n} of the {len(split)} "
            f"queries of {split.name}. --n -1 answers all"
        )


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
