"""`icdsel choose`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icdsel.choosing.messages import MESSAGE_FORMATS, addressed_below
from icdsel.choosing.output import VIEWS, line_of
from icdsel.cli.options import Overwrite, with_settings
from icdsel.console import note, warn
from icdsel.errors import SettingsError
from icdsel.records import parsed_shots
from icdsel.settings import Settings

if TYPE_CHECKING:
    from icdsel.choosing.selector import Selector
    from icdsel.records import Example
    from icdsel.settings.tables import DataSettings


@with_settings("data", "vlm")
def choose(
    settings: Settings,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Bundle (a folder, or `hub:owner/name`), or run on this machine. [default: the last run]"
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Image of a query; repeat it for several queries.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", help="Question about the image; one for each, or one for all.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="JSON lines with `image` (a path), `question`, and maybe `question_id`."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of the dataset whose queries to choose for, such as test.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Only the first queries of the split.")] = None,
    shots: Annotated[str, typer.Option("--shots", help="How many ICDs; `auto` if the policy may decide it.")] = "2",
    selector: Annotated[
        str, typer.Option("--selector", help="Who chooses: policy, or a baseline such as nearest-both.")
    ] = "policy",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="table; pictures; or JSON lines with the finished prompts: openai (images in them), openai-files "
            "(file:// addresses), transformers (paths).",
        ),
    ] = "table",
    image_url: Annotated[
        str | None,
        typer.Option(
            "--image-url", help="With openai: address of the folder that serves the images, in place of images."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of the lines, or folder of the pictures.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Chooses ICDs for new queries, without answers and without a VLM, and writes the finished prompts.

    The lines of `--format openai` hold chat messages for any client of OpenAI's protocol, those of `transformers` for
    `apply_chat_template`. They are worded as in training. A file that was interrupted is resumed.

    A run is used with the settings that it was trained with. For a bundle, `--image-dir` says where the candidates'
    images are if it has none, and `--encoder` where its encoder is if that was a folder elsewhere.

    For example:

    ```
    icdsel choose --image photo.jpg --question "What is shown?"
    icdsel choose --run my-bundle --image photo.jpg --question "What is shown?" --format pictures
    icdsel choose --run hub:owner/name --queries queries.jsonl --format openai --output prompts.jsonl
    icdsel choose --run my-run --split test --shots auto --format transformers --output prompts.jsonl
    ```
    """
    from icdsel.stages.choose import open_selector

    try:
        count = parsed_shots(shots)
    except ValueError as error:
        raise SettingsError(f"--shots: {error}") from None
    if form not in VIEWS and form not in MESSAGE_FORMATS:
        raise SettingsError(f"there is no --format {form!r}: there are {', '.join([*VIEWS, *MESSAGE_FORMATS])}")
    if image_url is not None and (form != "openai" or not image_url.startswith(("http://", "https://"))):
        raise SettingsError("--image-url is an address such as https://example.org/images, with --format openai")
    if output is not None and form == "table":
        raise SettingsError("--format table goes to the terminal: leave out --output, or choose another --format")
    if n is not None and split is None:
        raise SettingsError("--n goes with --split")
    _require_one_source(bool(image or question), queries is not None, split is not None)
    chooser, data = open_selector(settings, run)
    if isinstance(count, int) and count > (most := chooser.bundle.manifest.shots) and selector == "policy":
        warn(f"--shots {count} is more than the {most} ICDs that the policy was trained to show")
    if form not in ("table", "transformers") and image_url is None:
        _require_images(chooser)
    asked = _queries(chooser, data, image or [], question or [], queries, split, n)
    _write(chooser, asked, count, selector, form, image_url, output, overwrite)


def _require_images(chooser: "Selector") -> None:
    if not chooser.bundle.train[0].image.is_file():
        raise SettingsError(
            "the candidates' images are not in the bundle, and the prompts show them: say where they are with "
            "--image-dir, or use --format transformers or --image-url"
        )


def _require_one_source(typed: bool, file: bool, split: bool) -> None:
    if typed + file + split != 1:
        raise SettingsError(
            "name the queries in one way: --image and --question, --queries FILE, or --split test of a dataset"
        )


def _queries(
    chooser: "Selector",
    data: "DataSettings",
    images: list[Path],
    questions: list[str],
    file: Path | None,
    split: str | None,
    n: int | None,
) -> "list[Example]":
    from icdsel.data.datasets import load_split
    from icdsel.stages.new_queries import queries_of_file, typed_queries

    if split is not None:
        if "dataset" not in data.model_fields_set and chooser.bundle.manifest.dataset != data.dataset:
            raise SettingsError(
                f"the candidates come from {chooser.bundle.manifest.dataset}: name the dataset of --split {split} with "
                "--dataset"
            )
        held = load_split(data, split)
        note(f"Queries: {data.dataset}, split {split}.")
        return [held[row] for row in range(min(len(held), n or len(held)))]
    if file is not None:
        return queries_of_file(chooser, file)
    return typed_queries(chooser, images, questions)


def _write(
    chooser: "Selector",
    queries: "list[Example]",
    shots: int | str,
    by: str,
    form: str,
    image_url: str | None,
    output: Path | None,
    overwrite: bool,
) -> None:
    import json

    from icdsel.data.images import ImageError
    from icdsel.errors import DataError
    from icdsel.stages.choose import choose_in_units, write_prompts

    if form in MESSAGE_FORMATS:
        messages = addressed_below(image_url, chooser.bundle.images_root) if image_url else MESSAGE_FORMATS[form]
        if output is not None:
            count = write_prompts(chooser, queries, shots, by, messages, output, overwrite)
            note(f"{len(queries)} prompts, {count} of them new: {output}")
            return
    try:
        for choices in choose_in_units(chooser, queries, shots, by):
            if form in VIEWS:
                if told := VIEWS[form].show(choices, output):
                    note(told)
                continue
            for one in choices:
                made = messages.messages(one.request, one.style, one.max_image_pixels)
                typer.echo(json.dumps(line_of(one, by, made), ensure_ascii=False))
    except ImageError as error:
        raise DataError(str(error)) from None
