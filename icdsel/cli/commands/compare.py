"""`icdsel compare`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.commands.experiment import require_possible, run_variants
from icdsel.cli.options import given_flags, with_settings
from icdsel.cli.outputs import Outputs, Reference, show_comparison
from icdsel.console import note
from icdsel.errors import SettingsError
from icdsel.records import parsed_shots
from icdsel.settings import Settings, with_values

# What `--train` uses, and `icdsel experiment` shows.
_EXPERIMENTS = ("proposals", "reward", "train", "infer")


@with_settings(
    *("data", "vlm", *_EXPERIMENTS),
    leave_out=["proposals.init", "proposals.query_split", "infer.n", "infer.shots"],
    hidden=_EXPERIMENTS,
    shown=["train.tracker"],
    varied=_EXPERIMENTS,
)
def compare(
    context: typer.Context,
    settings: Settings,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            help="Predictions files, or folders of them. [default: all of this dataset, sampler and model, with "
            "pools of any size]",
            show_default=False,
        ),
    ] = None,
    train: Annotated[str | None, typer.Option("--train", hidden=True)] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, hidden=True)] = 1,
    rl_data: Annotated[list[Path] | None, typer.Option("--rl-data", hidden=True)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", hidden=True)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", hidden=True)] = False,
    reference: Reference = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Compare results for this number of queries. [default: all]")
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--set", help="Compare results on this set of queries, such as validation-800.")
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option("--shots", help="Compare only these numbers of shots, such as 1,2,auto. [default: all]"),
    ] = None,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different",
            help="Also compare results with different metrics, prompts or models.",
        ),
    ] = False,
    outputs: Outputs = Outputs(),  # noqa: B008
) -> None:
    """Compares the results of policies and baselines: accuracies, paired differences, and confidence intervals.

    Results over different queries are compared on those that all share; the table says how many.

    Every accuracy and difference has its 95 % confidence interval, for other queries (drawn by image) and, for means
    over seeds, other seeds. Differences also have p-values, corrected for the number of comparisons, and the smallest
    difference that this number of queries can detect.

    To train variants of a policy and compare them in one command, use `icdsel experiment`.

    For example:

    ```
    icdsel compare
    icdsel compare --html report.html --plots plots
    icdsel compare --shots 2 --reference nearest-both --json table.json --markdown table.md
    icdsel compare results/world/infer/* --allow-different
    icdsel compare --fail-if-worse --reference nearest-both
    icdsel compare --tracker wandb,mlflow
    ```
    """
    given = given_flags(context)
    try:
        counts = [parsed_shots(count) for count in shots.split(",")] if shots else []
    except ValueError:
        raise SettingsError(
            f"--shots takes numbers and auto with commas, as in --shots 1,2,auto, not {shots!r}"
        ) from None
    if train is None:
        _require_no_experiment(given)
        if not paths:
            note(f"Dataset {settings.data.dataset}, model {settings.vlm.model}.")
        show_comparison(
            settings,
            outputs,
            paths=paths or (),
            n=n,
            subset=subset,
            reference=reference,
            shots=counts,
            allow_different=allow_different,
        )
        return
    for shown, name in given.items():
        if name in ("paths", "subset", "allow_different"):
            shown = "PATH" if name == "paths" else shown
            raise SettingsError(f"{shown} chooses among existing predictions: leave it out with --train")
    require_possible(dry_run, given)
    note(f"compare --train is now a separate command: icdsel experiment {train}")
    settings = with_values(settings, {"infer": {"n": n, "shots": counts or None}})
    run_variants(
        settings,
        train,
        seeds=seeds,
        rl_data=rl_data or (),
        dry_run=dry_run,
        overwrite=overwrite,
        reference=reference,
        outputs=outputs,
    )


def _require_no_experiment(given: dict[str, str]) -> None:
    """Rejects what has no effect without `--train`."""
    for shown, name in given.items():
        table, _, setting = name.partition("__")
        if name in ("seeds", "rl_data", "dry_run", "overwrite") or (table in _EXPERIMENTS and setting != "tracker"):
            raise SettingsError(f"{shown} has no effect without --train: to train variants, use icdsel experiment")
