"""Experiments in one line: variants of the training, several seeds of each, trained and answered where missing.

Every variant and seed is a run of its own, all on the same RL data; every run answers the same queries. What stands
already is used again, so an interrupted comparison goes on where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from icdsel.console import note
from icdsel.experiments.plan import missing, require_all_files
from icdsel.experiments.variants import Experiment, answering, baselines
from icdsel.selection import RANDOM
from icdsel.settings.loading import Settings
from icdsel.stages.infer import Row, infer
from icdsel.stages.session import open_session
from icdsel.stages.train import train


def run_experiments(
    settings: Settings,
    experiments: Sequence[Experiment],
    *,
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
) -> tuple[dict[Path, str], int]:
    """Trains and answers what is missing.

    Args:
        settings: Say which queries are answered, at which numbers of shots.
        experiments: The runs (`plan_experiments`).
        overwrite: Move aside what was made under other settings.
        rl_data_files: What all are trained on; by default the RL data of the settings, made where they are missing.

    Returns:
        The predictions of the variants and of the baselines beside them, and what their rows are called: those of
        one variant by its name, those of `random` by that, so that `compare` makes each the mean over its seeds; and
        how many VLM calls failed, whose queries count for no row.

    Raises:
        UserError: something exists under other settings or is missing, which is told before anything is trained, or a
            stage cannot work.
    """
    require_all_files(experiments, rl_data_files)
    session = open_session(settings)
    steps = missing(experiments, settings, session, overwrite, rl_data_files)
    note(f"{sum(not step.todo for step in steps)} of {len(steps)} steps are done already; --dry-run lists them")
    names: dict[Path, str] = {}
    failed = 0

    def keep(rows: Sequence[Row], name: str | None = None) -> None:
        nonlocal failed
        for row in rows:
            names[row.path] = name or row.name
            failed += row.failed

    for asked in baselines(settings):  # first: they need no training to say what is wrong
        name = RANDOM.name if asked.infer.selector == (RANDOM.name,) else None
        keep(infer(asked, with_baselines=False, overwrite=overwrite, session=session), name)
    for number, experiment in enumerate(experiments, 1):
        note(f"experiment {number} of {len(experiments)}: {experiment}")
        run = train(
            experiment.settings, run=experiment.run, rl_data_files=rl_data_files, overwrite=overwrite, session=session
        )
        failed += run.failed
        rows = infer(answering(experiment), run.name, with_baselines=False, overwrite=overwrite, session=session)
        keep(rows, experiment.variant)
    return names, failed
