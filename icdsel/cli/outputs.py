"""What commands do with a comparison: print it, write it to files, and end with its exit code."""

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from icdsel.cli.exits import finish
from icdsel.cli.options import written_file
from icdsel.console import note, out, warn
from icdsel.records import Example, Shots
from icdsel.settings import Settings
from icdsel.store.run_log import command_words
from icdsel.trackers import Subject, require, track

if TYPE_CHECKING:
    from icdsel.comparison.compare import ComparisonRow

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the results to this file, as JSON.", parser=written_file)
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="Row that others are compared to. [default: random, else zero-shot]"),
]


_WRITES = ("--json", "--csv", "--markdown", "--plots", "--html")


@dataclass(frozen=True)
class Outputs:
    """The options for the outputs of a comparison."""

    fail_if_worse: Annotated[
        bool,
        typer.Option(
            "--fail-if-worse",
            help="Exit with code 1 if a policy is worse than the reference, with its whole interval below 0.",
        ),
    ] = False
    json_file: JsonFile = None
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a web page with curves, selections and queries.", parser=written_file),
    ] = None
    plots: Annotated[Path | None, typer.Option("--plots", help="Write charts to this folder, as PNG and SVG.")] = None
    gallery: Annotated[int, typer.Option("--gallery", help="Maximum number of queries on the page.", min=0)] = 200
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the table as CSV.", parser=written_file)
    ] = None
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the table as Markdown.", parser=written_file)
    ] = None


def show_comparison(
    settings: Settings,
    outputs: Outputs,
    *,
    paths: Sequence[Path] = (),
    n: int | None = None,
    subset: str | None = None,
    reference: str | None = None,
    shots: Sequence[Shots] = (),
    allow_different: bool = False,
    names: Mapping[Path, str] | None = None,
    failed: int = 0,
) -> None:
    """Compares results and writes all outputs. `failed` are VLM calls that failed; else as `comparison.compare`."""
    from icdsel.comparison.compare import compare, learned_and_worse, write_rows
    from icdsel.comparison.headline import headlines
    from icdsel.comparison.tables import screen_tables, worse_text, write_csv, write_markdown

    require(settings.train.tracker)
    rows = compare(
        settings,
        paths,
        n=n,
        subset=subset,
        reference=reference,
        shots=shots,
        allow_different=allow_different,
        names=names or {},
    )
    lead = [str(headline) for headline in headlines(rows)]
    out.print(screen_tables(rows, lead), soft_wrap=False)
    for path, write in (
        (outputs.json_file, partial(write_rows, rows)),
        (outputs.csv_file, partial(write_csv, rows)),
        (outputs.markdown_file, partial(write_markdown, rows, lead=lead)),
    ):
        if path:
            write(path)
            note(f"Written to {path}")
    if settings.train.tracker:
        _track(settings, rows)
    if outputs.html or outputs.plots:
        from icdsel.page.build import write_page, write_plots
        from icdsel.page.content import collect
        from icdsel.page.origin import Origin

        content = collect(settings, rows, Origin(_page_command(command_words()), _messages))
        if outputs.plots:
            note(f"{len(write_plots(content, outputs.plots))} charts, PNG and SVG: {outputs.plots}")
        if outputs.html:
            note(f"Page: {outputs.html} ({write_page(content, outputs.html, outputs.gallery) / 1e6:.1f} MB)")
    worse = learned_and_worse(rows) if outputs.fail_if_worse else []
    for row in worse:
        warn(worse_text(row))
    finish(settings, failed=failed)
    if worse:
        raise typer.Exit(1)


def _track(settings: Settings, rows: Sequence["ComparisonRow"]) -> None:
    """Logs the table to the trackers, as a run of its own."""
    from icdsel.comparison.tracked_rows import tracked_rows

    name = f"comparison-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    results = settings.dataset_dir
    folder, recorded = results / "comparisons" / name, settings.model_dump(mode="json")
    subject = Subject("comparison", name, results.name, folder, results, recorded, secrets.token_hex(8))
    with track(settings.train.tracker, subject) as tracking:
        tracking.log_rows(tracked_rows(rows))
    note(f"Logged to {', '.join(settings.train.tracker)} as {name}")


def _page_command(words: Sequence[str]) -> str:
    """The command without the files that it writes, so that pages of the same results are the same."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word in _WRITES:
            next(rest, None)
        elif word.split("=")[0] not in _WRITES:
            kept.append(word)
    return shlex.join([*kept, "--html", "FILE.html"])


def _messages(settings: Settings, icds: Sequence[Example], query: Example) -> Sequence[Mapping[str, Any]]:
    """The chat messages that show these demonstrations and this query to the VLM."""
    from icdsel.vlm.prompts import PromptStyle, chat_messages
    from icdsel.vlm.task_prompts import TaskPrompts

    request = TaskPrompts.of(settings.data).request(icds, query)
    return chat_messages(request.icds, request.query, PromptStyle.of(settings.vlm))
