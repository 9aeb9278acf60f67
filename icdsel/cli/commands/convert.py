"""`icdsel convert`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import Overwrite, with_settings, written_file
from icdsel.console import out, warn
from icdsel.settings import Settings


@with_settings("data", "vlm")
def convert(
    settings: Settings,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint (a bare name is also searched in the last run), or RL data (.jsonl). [default: the "
            "recommended checkpoint of the run]"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", parser=written_file)
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Search for the checkpoint in this run, or in this bundle (DIR, hub:owner/name)."),
    ] = None,
    legacy_names: Annotated[
        bool, typer.Option("--legacy-names", help="Use the parameter names that Lever-Plus had before 2025-11-27.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Converts to Lever-Plus's formats: a checkpoint to `<name>_v2format.ckpt`, RL data to `<name>.json`.

    For example:

    ```
    icdsel convert
    icdsel convert rce_epoch5.pt
    icdsel convert results/okvqa/generated_data/rl_data_RandSampler_Qwen2_5-VL-3B-Instruct.jsonl --dataset okvqa
    icdsel convert --run hub:owner/name --output policy.ckpt
    icdsel convert results/okvqa/model_cpk/my-run/grpo_epoch3.pt --output policy.ckpt
    ```
    """
    import warnings

    from icdsel.artefacts.checkpoint_conversion import convert_checkpoint
    from icdsel.artefacts.lever_plus_rl_data import is_lever_plus
    from icdsel.artefacts.run_folder import find_run
    from icdsel.errors import BundleError, RlDataError
    from icdsel.stages.convert_rl_data import convert as convert_rl_data

    if file is None:
        found = find_run(settings, run)
        if found.is_bundle and output is None:
            raise BundleError(f"nothing is written into the bundle {found.folder}: name a file with --output")
        file = found.checkpoint
    if file.suffix == ".jsonl":
        out.print(f"{file} → {convert_rl_data(settings, file, output, overwrite)}")
        finish(settings)
        return
    if is_lever_plus(file):
        raise RlDataError(f"{file} is already in Lever-Plus's format: train on it with `icdsel train --rl-data {file}`")
    path = file
    if not path.exists() and path.parent == Path():
        path = find_run(settings, run).folder / file
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = convert_checkpoint(path, output, legacy_names, overwrite)
    for warning in caught:
        warn(str(warning.message))
    out.print(f"{path} → {written}")
    finish(settings)
