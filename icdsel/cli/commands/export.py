"""`icdsel export`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.options import Overwrite, with_settings
from icdsel.console import note, out, progress
from icdsel.errors import RunError
from icdsel.settings import Settings


@with_settings("data", "vlm")
def export(
    settings: Settings,
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The run: its name, its number, a checkpoint's path, or hub:owner/name."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the bundle to; it must not exist.")],
    images: Annotated[
        str,
        typer.Option(
            "--images",
            metavar="full|thumbnails|none",
            help="What to write of the candidates' images: the files, small copies, or nothing.",
        ),
    ] = "full",
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle. [default: the folder's]")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence of the policy and its candidates, such as cc-by-4.0.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Writes a bundle: one folder with all that choosing needs, for other programs, machines and people.

    It holds the policy, the training examples that it chooses from, their embeddings and images, the settings of the
    prompt, the figures of `icdsel compare`, and a model card. The settings are those that the run was trained with.
    Choosing with it needs no VLM (unless that is the encoder) and no GPU.

    For example:

    ```
    icdsel export my-run my-bundle
    icdsel export 3 my-bundle --images thumbnails --licence cc-by-4.0
    icdsel export my-run my-bundle --dataset okvqa
    icdsel choose --run my-bundle --image photo.jpg --question "What is shown?"
    icdsel push my-bundle owner/name
    ```
    """
    from icdsel.artefacts.bundle.writing import require_free, write_bundle
    from icdsel.artefacts.run_folder import Run, find_run_anywhere, recorded_settings
    from icdsel.stages.bundle_of_run import bundle_of, chosen_images
    from icdsel.stages.session import Session

    wanted = chosen_images(images)
    require_free(folder, overwrite)
    named = Path(run)
    found = Run(named.parent) if named.is_file() else find_run_anywhere(settings, run)
    policy = named if named.is_file() else found.checkpoint
    note(f"Policy: {policy}")
    settings = recorded_settings(settings, found)
    headline, figures = _compared(settings)
    session = Session(settings)
    bundle = bundle_of(
        session, policy, name or folder.absolute().name, licence=licence or "", headline=headline, figures=figures
    )
    with progress("Writing the candidates", len(bundle.train)) as advance:
        write_bundle(bundle, folder, wanted, overwrite, advance)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    out.print(f"{folder}: {len(bundle.train):,} candidates, {size / 1e6:.1f} MB")
    if licence is None:
        note(
            "No --licence was given, and the card says so: whoever is handed the bundle needs to know what is allowed."
        )


def _compared(settings: Settings) -> tuple[str, list[dict[str, object]]]:
    """The headline and the rows of the comparison that `icdsel compare` shows; nothing if there is none."""
    from icdsel.comparison.compare import compare
    from icdsel.comparison.headline import headlines

    try:
        rows = compare(settings)
    except RunError as error:
        note(f"The card has no figures: {error}")
        return "", []
    own = [{key: value for key, value in row.to_json().items() if key != "files"} for row in rows]
    return " ".join(str(headline) for headline in headlines(rows)), own
