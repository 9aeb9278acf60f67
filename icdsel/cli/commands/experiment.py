"""`icdsel experiment`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.choices import ignored_settings, require_known
from icdsel.cli.options import Overwrite, RlData, given_flags, with_settings
from icdsel.cli.outputs import Outputs, Reference, show_comparison
from icdsel.console import note, out, warn
from icdsel.errors import SettingsError
from icdsel.experiments.variants import VARIANTS, VARIED, plan_experiments
from icdsel.settings import Settings
from icdsel.settings.hints import without_effect


@with_settings(
    *("data", "vlm", "proposals", "reward", "train", "infer"),
    leave_out=["proposals.init", "proposals.query_split"],
    varied=VARIED,
)
def experiment(
    context: typer.Context,
    settings: Settings,
    variants: Annotated[
        str,
        typer.Argument(
            metavar="VARIANTS",
            help=f"Variants of the training, separated by commas: {', '.join(VARIANTS)}, or training settings such as "
            "rce_lr=1e-3. Join several with + to combine them.",
        ),
    ],
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds per variant, each of them a run.", min=1)] = 1,
    rl_data: RlData = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be done, and how long it should take.")
    ] = False,
    overwrite: Overwrite = False,
    reference: Reference = None,
    outputs: Outputs = Outputs(),  # noqa: B008
) -> None:
    """Trains variants of a policy with several seeds, answers queries with each, and compares the results.

    Every variant and seed is a separate run; all share the same RL data and queries, and the settings that the
    variants do not change. Baselines are included. Existing results are reused, so an interrupted experiment resumes
    where it stopped. The results are shown as in `icdsel compare`.

    For example:

    ```
    icdsel experiment rce,grpo-frozen,rce-normalized+grpo-frozen --seeds 3 --n 800 --shots 1,2 --dry-run
    icdsel experiment rce,grpo-frozen,rce-normalized+grpo-frozen --seeds 3 --n 800 --shots 1,2
    icdsel experiment rce,rce_lr=1e-3,rce_lr=1e-3+batch_size=8 --reference rce --html report.html
    icdsel experiment rce,grpo --dataset okvqa --workers 4
    icdsel experiment rce,grpo --dataset okvqa --vlm-url http://localhost:8000/v1
    ```
    """
    require_possible(dry_run, given_flags(context))
    run_variants(
        settings,
        variants,
        seeds=seeds,
        rl_data=rl_data or (),
        dry_run=dry_run,
        overwrite=overwrite,
        reference=reference,
        outputs=outputs,
    )


def require_possible(dry_run: bool, given: Mapping[str, str]) -> None:
    """Rejects outputs of a comparison together with `--dry-run`, which creates none."""
    outputs = {field.name for field in dataclasses.fields(Outputs)}
    if dry_run and (needless := [flag for flag, name in given.items() if name in outputs]):
        raise SettingsError(f"a dry run creates no table: leave {', '.join(needless)} out with --dry-run")


def run_variants(
    settings: Settings,
    variants: str,
    *,
    seeds: int,
    rl_data: Sequence[Path],
    dry_run: bool,
    overwrite: bool,
    reference: str | None,
    outputs: Outputs,
) -> None:
    """Trains and answers what is missing, then shows the comparison; with `dry_run` only lists it."""
    from icdsel.artefacts.hub import local_rl_data

    experiments = plan_experiments(settings, variants, seeds)
    known = set(_warnings(settings))
    for one in experiments[: len(experiments) // seeds]:  # those of the first seed
        try:
            require_known(one.settings)
        except SettingsError as error:
            raise SettingsError(f"variant {one.variant}: {error}") from None
        for warning in _warnings(one.settings):
            if warning not in known:
                warn(f"{one.variant}: {warning}")
    rl_data = local_rl_data(rl_data)
    if dry_run:
        from icdsel.cli.tables import plan_table
        from icdsel.experiments.plan import dry_run as estimate

        out.print(plan_table(estimate(settings, experiments, overwrite, rl_data)), soft_wrap=False)
        note(f"Nothing was written but caches: embeddings in {settings.dataset_dir / 'cache'}, the bundled world")
        return
    from icdsel.experiments.run import run_experiments

    names, failed = run_experiments(settings, experiments, overwrite=overwrite, rl_data_files=rl_data)
    show_comparison(settings, outputs, reference=reference, shots=settings.infer.shots, names=names, failed=failed)


def _warnings(settings: Settings) -> list[str]:
    return [*without_effect(settings, VARIED), *ignored_settings(settings, VARIED)]
