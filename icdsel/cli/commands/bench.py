"""`icdsel bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from icdsel.cli.interruption import NOTHING_KEPT
from icdsel.cli.options import with_settings
from icdsel.cli.outputs import JsonFile
from icdsel.console import note, out, warn
from icdsel.errors import SettingsError
from icdsel.settings import Settings
from icdsel.settings.hints import without_effect
from icdsel.settings.presets import TINY_VLM
from icdsel.vlm.engines import ENGINES


@with_settings("data", "vlm", leave_out=["vlm.engine"], varied=["vlm"], kept=NOTHING_KEPT)
def bench(
    settings: Settings,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME,…",
            help=f"Measure only these engines, beside the plain way and the fastest in this process. Names: "
            f"{', '.join(ENGINES)}.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", help="How often each engine is measured; medians are shown.", min=1)
    ] = 3,
    local_model: Annotated[
        str | None,
        typer.Option(
            "--local-model",
            help="The model of --vlm-url on this machine, if it has another name here; `none` measures the servers "
            "alone.",
        ),
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option("--random-weights", help="Use this architecture with random weights, such as qwen2.5-vl-3b."),
    ] = None,
    queries: Annotated[int, typer.Option("--queries", help="Queries for the scorer.", min=1)] = 64,
    pointers: Annotated[int, typer.Option("--pointers", help="Pointers per query.", min=1)] = 12,
    shots: Annotated[int, typer.Option("--shots", help="ICDs in a pointer.", min=0)] = 2,
    images: Annotated[int, typer.Option("--images", help="Distinct images in the pools.", min=2)] = 2000,
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="Size of an image. [default: 56x56 for tiny-vlm, else 640x480]")
    ] = None,
    plain: Annotated[
        int,
        typer.Option(
            "--plain", help="Pointers scored by the baseline implementation (in each round), which is slow.", min=1
        ),
    ] = 48,
    neighbours: Annotated[
        int, typer.Option("--neighbours", help="Examples in the search for nearest neighbours.", min=64)
    ] = 50_000,
    proposal_pool: Annotated[int, typer.Option("--proposal-pool", help="Candidates for proposals.")] = 9009,
    train_queries: Annotated[int, typer.Option("--train-queries", help="Queries per training epoch.", min=2)] = 640,
    whole_set: Annotated[
        int | None,
        typer.Option("--whole-set", help="Measure only choosing from this many candidates, on the CPU.", min=64),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measures the speed of scoring, proposals, training and neighbour search against a baseline implementation.

    The baseline works as Lever-Plus does: a generation and a forward pass for every reference, one prompt at a time,
    with images encoded every time; proposals and training in Python loops. Both run side by side, so the ratios hold
    on a noisy machine.

    `--engine`, `--vlm-url`, `--workers`, `--ray` and several devices measure engines instead, side by side on the same
    prompts: the plain way, which is this baseline; the fastest engine in this process, with all threads; and those that
    are named. They take turns, and each gets every prompt once, so caches are cold. Pictures are new in every run if
    servers are asked.

    `--whole-set` compares choosing from candidates that were encoded once with encoding them for every 32 queries.

    For example:

    ```
    icdsel bench
    icdsel bench --random-weights qwen2.5-vl-3b --device cuda:0 --json figures.json
    icdsel bench --engine transformers --workers 2
    icdsel bench --vlm-url http://localhost:8000/v1 --workers 2
    icdsel bench --whole-set 443757
    ```
    """
    from icdsel.bench.architectures import ARCHITECTURES
    from icdsel.bench.engines import bench_engines
    from icdsel.bench.run import bench as bench_stage
    from icdsel.bench.ways import named_engines, names_engines
    from icdsel.bench.whole_set import bench_whole_set
    from icdsel.bench.workload import Sizes
    from icdsel.cli.tables import bench_table, engines_table, whole_set_table

    if whole_set:
        figures = bench_whole_set(settings, whole_set)
        _show(figures, whole_set_table(figures), json_file)
        return
    if random_weights not in (None, *ARCHITECTURES):
        raise SettingsError(f"--random-weights takes {', '.join(ARCHITECTURES)}, not {random_weights!r}")
    if random_weights and (settings.vlm.url or local_model):
        raise SettingsError("--random-weights is a model that no server has: leave out --vlm-url and --local-model")
    if local_model and not settings.vlm.url:
        raise SettingsError(
            "--local-model is the model of servers: name them with --vlm-url, or the model with --model"
        )
    tiny = random_weights is None and TINY_VLM in (settings.vlm.model, local_model)
    try:
        width, height = map(int, (image_size or ("56x56" if tiny else "640x480")).split("x"))
    except ValueError:
        raise SettingsError(f"--image-size is WIDTHxHEIGHT, as in 640x480, not {image_size!r}") from None
    sizes = Sizes(
        queries, pointers, shots, 64, images, (width, height), plain, proposal_pool, neighbours, train_queries
    )
    engines = named_engines(settings, engine)
    if names_engines(settings, engines):
        figures = bench_engines(settings, engines, sizes, rounds, local_model, random_weights)
        _show(figures, engines_table(figures), json_file)
        return
    for warning in without_effect(settings, ["vlm"]):
        warn(warning)
    figures = bench_stage(settings, sizes, random_weights)
    _show(figures, bench_table(figures, settings.proposals.queries), json_file)


def _show(figures: dict[str, Any], table: RenderableType, json_file: Path | None) -> None:
    from icdsel.store.files import write_json

    out.print(table, soft_wrap=False)
    if json_file:
        write_json(json_file, figures, indent=1)
        note(f"Written to {json_file}")
