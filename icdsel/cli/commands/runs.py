"""`icdsel runs`."""

from typing import Annotated

import typer

from icdsel.cli.options import with_settings
from icdsel.cli.outputs import JsonFile
from icdsel.console import note, out
from icdsel.settings import Settings
from icdsel.settings.tables import DataSettings


@with_settings("data", leave_out=[f"data.{name}" for name in DataSettings.model_fields if name != "results_dir"])
def runs(
    settings: Settings,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="List only runs of this dataset. [default: all]")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Lists the training runs with their changed settings, quality, age and size; the newest is last.

    Tables name a run by its number, or by its name if that is short. `--run` takes either.

    The expected reward, and its share of the oracle's, is that of the recommended checkpoint on held-out training
    queries. The accuracies, by number of shots, are those that `icdsel infer` measured with that checkpoint.

    For example:

    ```
    icdsel runs
    icdsel runs --dataset okvqa --json runs.json
    ```
    """
    from datetime import datetime

    from icdsel.cli.tables import runs_table
    from icdsel.comparison.runs import list_runs, write_runs

    folder = settings.data.results_dir
    found = list_runs(folder, dataset)
    if found:
        out.print(runs_table(found, datetime.now().astimezone()), soft_wrap=False)
    else:
        of, flags = (f" of {dataset}", f" --dataset {dataset}") if dataset else ("", "")
        out.print(f"No runs{of} in {folder}. Train one with `icdsel train{flags}`.")
    if json_file:
        write_runs(found, json_file)
        note(f"Written to {json_file}")
