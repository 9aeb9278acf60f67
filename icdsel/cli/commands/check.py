"""`icdsel check`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.options import with_settings
from icdsel.cli.outputs import JsonFile
from icdsel.console import note, out, warn
from icdsel.settings import Settings


@with_settings("data", "vlm", "proposals", "reward", leave_out=["proposals.query_split"])
def check(
    settings: Settings,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            help="Datasets, RL data, predictions, run folders or checkpoints. [default: the dataset of the settings]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Also open every image of a dataset.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Lists problems of datasets, RL data, predictions, runs and checkpoints. The exit code is 1 if there are errors.

    The kind of each path is detected. No VLM is loaded, and no code in a file is run. RL data are checked against the
    current dataset and settings.

    For example:

    ```
    icdsel check --dataset okvqa --images
    icdsel check results/okvqa/generated_data/*.jsonl --dataset okvqa
    icdsel check results/world/model_cpk/my-run policy.ckpt --json report.json
    ```
    """
    from icdsel.check.findings import report
    from icdsel.check.paths import check as check_paths
    from icdsel.cli.tables import findings_list
    from icdsel.store.files import write_json

    checked = check_paths(settings, paths or (), images)
    for one in checked:
        out.print(findings_list(one), soft_wrap=False)
    if json_file:
        write_json(json_file, report(checked), indent=1)
        note(f"Written to {json_file}")
    if count := sum(one.errors for one in checked):
        warn(f"errors found: {count}")
        raise typer.Exit(1)
