"""Experiments in one command: trains variants with several seeds each, and answers queries with every run.

Every variant and seed is a separate run. All are trained on the same RL data and answer the same queries. Results
that exist are reused, so an interrupted command resumes where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from icdsel.artefacts.rl_data import rl_data_path
from icdsel.console import note
from icdsel.experiments.plan import missing, require_all_files, rl_data_settings
from icdsel.experiments.variants import Experiment, answering, baselines
from icdsel.selection import SELECTORS
from icdsel.settings.loading import Settings
from icdsel.stages.generate import generate
from icdsel.stages.infer import Row, infer
from icdsel.stages.session import Session
from icdsel.stages.train import train


def run_experiments(
    settings: Settings,
    experiments: Sequence[Experiment],
    *,
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
    session: Session | None = None,
) -> tuple[dict[Path, str], int]:
    """Trains the runs and answers the queries whose results are missing.

    Args:
        settings: Which queries are answered, and at which numbers of shots.
        experiments: The runs (`plan_experiments`).
        overwrite: Rename results of other settings to backups instead of rejecting them.
        rl_data_files: The training data of all runs. [the RL data of the settings, generated if missing]
        session: An open session for the same data and VLM. [a new one]

    Returns:
        The files of predictions with the name of their row in the table, and the number of failed VLM calls. All
        seeds of a variant have the same name, as have those of a selector that draws: `compare` shows their mean.

    Raises:
        UserError: Results of other settings exist, or a file is missing (raised before anything is trained), or a
            stage fails.
    """
    require_all_files(experiments, rl_data_files)
    session = session or Session(settings)
    steps = missing(experiments, settings, session, overwrite, rl_data_files)
    note(f"{sum(not step.todo for step in steps)} of {len(steps)} steps are done already; --dry-run lists them")
    names: dict[Path, str] = {}
    failed = 0

    def keep(rows: Sequence[Row], name: str | None = None) -> None:
        nonlocal failed
        for row in rows:
            names[row.path] = name or row.name
            failed += row.failed

    for baseline in baselines(settings):  # first, so that wrong settings fail before hours of training
        draws = SELECTORS.named(baseline.infer.selector[0]).seed(baseline) is not None
        name = baseline.infer.selector[0] if draws else None
        keep(infer(baseline, with_baselines=False, overwrite=overwrite, session=session), name)
    if not rl_data_files:
        shared = rl_data_settings(experiments)
        exists = rl_data_path(shared).exists()  # its failures were reported when it was generated
        generated = generate(shared, overwrite=overwrite, session=session.under(shared))
        failed += 0 if exists else generated.failed
    for number, experiment in enumerate(experiments, 1):
        note(f"experiment {number} of {len(experiments)}: {experiment}")
        run = train(
            experiment.settings, run=experiment.run, rl_data_files=rl_data_files, overwrite=overwrite, session=session
        )
        failed += run.failed
        rows = infer(answering(experiment), run.name, with_baselines=False, overwrite=overwrite, session=session)
        keep(rows, experiment.variant)
    return names, failed
