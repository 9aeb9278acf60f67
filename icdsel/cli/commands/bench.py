"""`icdsel bench`."""

from typing import Annotated

import typer

from icdsel.cli.options import with_settings
from icdsel.cli.outputs import JsonFile
from icdsel.console import note, out
from icdsel.errors import SettingsError
from icdsel.settings import Settings
from icdsel.settings.presets import TINY_VLM


@with_settings("data", "vlm")
def bench(
    settings: Settings,
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
        int, typer.Option("--plain", help="Pointers scored by the baseline implementation, which is slow.", min=1)
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

    `--whole-set` compares choosing from candidates that were encoded once with encoding them for every 32 queries.

    For example:

    ```
    icdsel bench
    icdsel bench --random-weights qwen2.5-vl-3b --device cuda:0 --json figures.json
    icdsel bench --whole-set 443757
    ```
    """
    from icdsel.bench.architectures import ARCHITECTURES
    from icdsel.bench.run import Sizes
    from icdsel.bench.run import bench as bench_stage
    from icdsel.bench.whole_set import bench_whole_set
    from icdsel.cli.tables import bench_table, whole_set_table
    from icdsel.store.files import write_json

    if whole_set:
        figures = bench_whole_set(settings, whole_set)
        out.print(whole_set_table(figures))
        if json_file:
            write_json(json_file, figures, indent=1)
            note(f"Written to {json_file}")
        return
    if random_weights not in (None, *ARCHITECTURES):
        raise SettingsError(f"--random-weights takes {', '.join(ARCHITECTURES)}, not {random_weights!r}")
    tiny = random_weights is None and settings.vlm.model == TINY_VLM
    try:
        width, height = map(int, (image_size or ("56x56" if tiny else "640x480")).split("x"))
    except ValueError:
        raise SettingsError(f"--image-size is WIDTHxHEIGHT, as in 640x480, not {image_size!r}") from None
    sizes = Sizes(
        queries, pointers, shots, 64, images, (width, height), plain, proposal_pool, neighbours, train_queries
    )
    figures = bench_stage(settings, sizes, random_weights)
    out.print(bench_table(figures, settings.proposals.queries))
    if json_file:
        write_json(json_file, figures, indent=1)
        note(f"Written to {json_file}")
