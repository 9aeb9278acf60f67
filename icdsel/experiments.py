"""Experiments in one line: variants of the training, several seeds of each, trained where they are missing, compared.

Every variant and seed is a run of its own, all on the same RL data; every run answers the same queries. What stands
already is used again, so an interrupted comparison goes on where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from icdsel.compare import ComparisonRow, compare
from icdsel.console import note, warn
from icdsel.infer import Row, infer
from icdsel.plan import missing
from icdsel.settings import Settings
from icdsel.sources import open_sources
from icdsel.train import train
from icdsel.variants import Experiment, answering, baselines


def run_experiments(
    settings: Settings, experiments: Sequence[Experiment], *, reference: str | None = None, overwrite: bool = False
) -> list[ComparisonRow]:
    """Trains and answers what is missing, and compares the variants with the baselines, and with nothing else.

    Args:
        settings: Say which queries are answered, at which numbers of shots.
        experiments: The runs (`plan_experiments`).
        reference: Name of the row that differences are taken to; by default `random`.
        overwrite: Move aside what was made under other settings.

    Raises:
        UserError: something exists under other settings, which is told before anything is trained, or a stage
            cannot work.
    """
    sources = open_sources(settings)
    steps = missing(experiments, settings, sources, overwrite)
    note(f"{sum(not step.todo for step in steps)} of {len(steps)} steps are done already; --dry-run lists them")
    names: dict[Path, str] = {}
    failed = 0

    def keep(rows: Sequence[Row], name: str | None = None) -> None:
        nonlocal failed
        for row in rows:
            names[row.path] = name or row.name
            failed += row.failed

    for asked in baselines(settings):  # first: they need no training to say what is wrong
        name = "random" if asked.infer.selector == ("random",) else None
        keep(infer(asked, overwrite=overwrite, sources=sources, beside=()), name)
    for number, experiment in enumerate(experiments, 1):
        note(f"experiment {number} of {len(experiments)}: {experiment}")
        run = train(experiment.settings, run=experiment.run, overwrite=overwrite, sources=sources)
        rows = infer(answering(experiment), run.name, overwrite=overwrite, sources=sources, beside=())
        keep(rows, experiment.variant)
    if failed:
        warn(f"{failed} VLM calls failed: their queries count for no row; the reasons stand in the predictions")
    return compare(settings, reference=reference, shots=settings.infer.shots, names=names)
