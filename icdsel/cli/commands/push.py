"""`icdsel push`."""

from pathlib import Path
from typing import Annotated

import typer

from icdsel.cli.options import with_settings
from icdsel.console import note, out, warn
from icdsel.errors import SettingsError
from icdsel.settings import Settings


@with_settings(kept="large files that have arrived are not sent again.")
def push(
    settings: Settings,  # noqa: ARG001 - every command has them
    source: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="A bundle's folder, or a file of RL data (.jsonl).")
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is created if there is none.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="A new repository is seen by its owner and whom they let in. --public shows it to everybody.",
            show_default=False,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--licence", help="Licence, such as cc-by-4.0. [default: that of `icdsel export --licence`]"),
    ] = None,
    no_licence: Annotated[bool, typer.Option("--no-licence", help="Push without a licence.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch; it is created. [default: main]")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Message of the commit. [default: what is pushed]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and show what would go where.")] = False,
) -> None:
    """Uploads a bundle, or RL data, to the Hugging Face hub, for colleagues and other machines.

    Everything is checked first. Only the files of the bundle are uploaded, in one commit. Of RL data, reasons of failed
    calls are left out, and paths of this machine. A new repository is private unless `--public` says
    otherwise: what is public once cannot be taken back.

    Log in with `hf auth login`, or set `HF_TOKEN`.

    For example:

    ```
    icdsel push my-bundle owner/name --licence cc-by-4.0
    icdsel push my-bundle owner/name --public --message "Trained on all queries"
    icdsel push my-bundle owner/name --dry-run
    icdsel push results/okvqa/generated_data/rl_data_RandSampler_Qwen2_5-VL-3B-Instruct.jsonl owner/okvqa-rl-data
    icdsel infer --run hub:owner/name
    icdsel train --rl-data hub:owner/okvqa-rl-data --dataset okvqa
    ```
    """
    from icdsel.artefacts.hub import hub_name

    place_name = hub_name(name)
    if place_name.revision:
        raise SettingsError(f"name the branch with --revision {place_name.revision} instead of @{place_name.revision}")
    if licence is not None and no_licence:
        raise SettingsError("--licence and --no-licence contradict each other: leave one out")
    if revision is not None:
        place_name = hub_name(f"{place_name}@{revision}")

    from icdsel.artefacts.hub_upload import parcel_of, place_of, require_licence, upload

    parcel = parcel_of(source, place_name, licence)
    require_licence(parcel, no_licence)
    place = place_of(place_name, parcel.kind, private)
    who = "private" if place.is_private else "public"
    how = f"{who} {parcel.kind.repo_type} repository{'' if place.exists else ', which is created'}"
    out.print(f"{source} → {place_name} ({how})")
    out.print(
        f"{parcel.about}; licence: {parcel.licence or 'none'}; {len(parcel.files)} files, {parcel.size / 1e6:.1f} MB"
    )
    if parcel.images == "full" and not place.is_private:
        warn(
            "the candidates' images are pushed in full, for everybody: they are somebody's. If you may not pass them "
            "on, export with --images thumbnails or --images none"
        )
    if dry_run:
        for path in sorted(parcel.files)[:_LISTED]:
            out.print(f"  {path}")
        if len(parcel.files) > _LISTED:
            out.print(f"  … and {len(parcel.files) - _LISTED} more")
        note("Nothing was uploaded.")
        return
    address = upload(parcel, place, message or f"Push {parcel.about}")
    out.print(address)
    use = f"icdsel infer --run {place_name}" if parcel.images else f"icdsel train --rl-data {place_name}"
    note(f"Use it anywhere: {use}")


_LISTED = 12  # files of a dry run
