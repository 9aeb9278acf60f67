"""`icdsel serve`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icdsel.cli.options import with_settings, written_file
from icdsel.cli.process import answer_soon
from icdsel.console import note, out
from icdsel.errors import SettingsError
from icdsel.records import parsed_shots
from icdsel.serve.limits import Limits, Opened, named_hosts
from icdsel.settings import Settings, with_values
from icdsel.settings.tables import TABLES

if TYPE_CHECKING:
    from icdsel.serve.opening import Wanted

_KEPT = "requests in progress had time to end"
_SETTINGS = {
    "data": ("dataset", "data_dir", "image_dir", "results_dir", "encoder"),
    "vlm": ("url", "engine", "device", "workers", "dtype", "batch_tokens", "image_cache_mb"),
}
"""The settings that have a flag. Everything that decides a choice or words a prompt is that of the training."""


@dataclass(frozen=True)
class _Limits:
    """The options for the limits of a request: those of `Limits`."""

    body_mb: Annotated[float, typer.Option("--max-body-mb", help="Largest body.", min=0.01)] = Limits.body_mb
    image_mb: Annotated[float, typer.Option("--max-image-mb", help="Largest image.", min=0.01)] = Limits.image_mb
    image_pixels: Annotated[
        int, typer.Option("--max-request-pixels", help="Pixels (width × height) of a request's image.", min=1)
    ] = Limits.image_pixels
    messages: Annotated[int, typer.Option("--max-messages", help="Messages of a request.", min=1)] = Limits.messages
    parts: Annotated[int, typer.Option("--max-parts", help="Texts and images of a request.", min=2)] = Limits.parts
    text: Annotated[int, typer.Option("--max-text", help="Characters of a text.", min=1)] = Limits.text
    most_shots: Annotated[int, typer.Option("--max-shots", help="Demonstrations of a request.", min=0)] = (
        Limits.most_shots
    )
    seconds: Annotated[float, typer.Option("--timeout", help="Seconds for a request, with its answer.", min=0.1)] = (
        Limits.seconds
    )
    body_seconds: Annotated[
        float, typer.Option("--body-timeout", help="Seconds for the arrival of a body.", min=0.1)
    ] = Limits.body_seconds
    at_once: Annotated[int, typer.Option("--max-at-once", help="Requests in progress.", min=1)] = Limits.at_once
    batch: Annotated[int, typer.Option("--max-batch", help="Questions encoded together.", min=1)] = Limits.batch
    batch_pixels: Annotated[
        int, typer.Option("--max-batch-pixels", help="Pixels of the images encoded together.", min=1)
    ] = Limits.batch_pixels


@with_settings(
    "data",
    "vlm",
    leave_out=[
        f"{table}.{name}"
        for table, kept in _SETTINGS.items()
        for name in TABLES[table].model_fields
        if name not in kept
    ],
    kept=_KEPT,
    asks_model=False,
)
def serve(
    settings: Settings,
    limits: _Limits,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Bundle (a folder, or `hub:owner/name`), or run on this machine. [default: the last run]"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Another policy for the same candidates, such as a newer one.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Model that answers in this process. [default: the one that the policy was trained with]"
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 for any that is free.", min=0, max=65535)] = 8100,
    selector: Annotated[str, typer.Option("--selector", help="Who chooses, where a request does not say.")] = "policy",
    shots: Annotated[
        str | None,
        typer.Option(
            "--shots",
            help="Demonstrations, where a request does not say: a number or auto. [default: auto if the policy may "
            "stop, else what it was trained for]",
        ),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option("--feedback", help="Journal scores of answers in this file (.jsonl).", parser=written_file),
    ] = None,
    feedback_data: Annotated[
        Path | None,
        typer.Option(
            "--feedback-data", help="Write the scores of --feedback as training data to this folder, and end."
        ),
    ] = None,
    allow_image_hosts: Annotated[
        str | None, typer.Option("--allow-image-hosts", help="Open image URLs of these hosts, separated by commas.")
    ] = None,
    allow_image_dir: Annotated[
        Path | None, typer.Option("--allow-image-dir", help="Open file:// URLs of images below this folder.")
    ] = None,
    grace: Annotated[
        int, typer.Option("--grace", help="Seconds for requests in progress after Ctrl-C or SIGTERM.", min=1)
    ] = 10,
) -> None:
    """Serves OpenAI's protocol: chat requests go to a model with the chosen demonstrations in front.

    A request with one image and a question gets them; everything else goes through unchanged. The proxy listens on this
    machine alone unless --host says otherwise; then clients need a key, the variable ICDSEL_SERVE_API_KEY.

    For example:

    ```
    icdsel serve --run my-bundle --vlm-url http://localhost:8000/v1
    icdsel serve --run my-bundle --model tiny-vlm --port 8200
    icdsel serve --run hub:owner/name --vlm-url http://gpu1:8000/v1 --host 0.0.0.0
    icdsel serve --run my-bundle --feedback feedback.jsonl --feedback-data learn
    ```
    """
    from icdsel.serve.libraries import require_libraries

    require_libraries()
    from icdsel.serve.app import make_app
    from icdsel.serve.opening import Wanted, open_service
    from icdsel.serve.security import AccessKey
    from icdsel.serve.server import address_of, listen, run_app

    try:
        wanted_shots = None if shots is None else parsed_shots(shots)
    except ValueError as error:
        raise SettingsError(f"--shots: {error}") from None
    if model is not None:
        settings = with_values(settings, {"vlm": {"model": model}})
    wanted = Wanted(
        settings=settings,
        run=run,
        checkpoint=checkpoint,
        selector=selector,
        shots=wanted_shots,
        feedback=feedback,
        opened=Opened(named_hosts(allow_image_hosts or ""), allow_image_dir),
        limits=Limits(**asdict(limits)),
    )
    if feedback_data is not None:
        _write_feedback(wanted, feedback, feedback_data)
        return
    key = AccessKey.exported(host)
    opened = listen(host, port)
    app = make_app(open_service(wanted), key, host)
    answer_soon()
    most = 2 * wanted.limits.at_once  # some wait for others, or for their client's next request
    run_app(app, opened, grace, lambda: note(f"Serving at {address_of(opened)}/v1. Ctrl-C ends it."), most)


def _write_feedback(wanted: "Wanted", journal: Path | None, folder: Path) -> None:
    """Writes the scores as training data, and says how to train on them."""
    from icdsel.serve.feedback_dataset import DATASET, RL_DATA, write_training_data
    from icdsel.serve.opening import selector_of

    if journal is None:
        raise SettingsError("--feedback-data needs the scores: name their file with --feedback")
    count = write_training_data(journal, list(selector_of(wanted).bundle.train), folder)
    out.print(f"{folder}: {count} served queries")
    note(f"Train on them: icdsel train --dataset {folder / DATASET} --rl-data {folder / RL_DATA} --pool-size all")
