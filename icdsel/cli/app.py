"""The command line: flags become settings, a stage does the work, the result is shown. Loads no torch by itself."""

import re
from pathlib import Path
from typing import Annotated

import typer

from icdsel import __version__
from icdsel.cli.options import given_flags, with_settings, written_file
from icdsel.console import note, out, warn
from icdsel.errors import SettingsError
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.presets import TINY_VLM, WORLD
from icdsel.settings.tables import TABLES

app = typer.Typer(
    name="icdsel",
    help="Learns which in-context demonstrations (ICDs) to show a vision-language model.\n\n"
    "Every command works on a fresh machine, on the bundled world with a tiny VLM: try `icdsel demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(f"icdsel {__version__}")
        raise typer.Exit


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Move what was made under other settings aside.")]


@app.command("gen-rl-data")
@with_settings("data", "vlm", "proposals")
def gen_rl_data(
    settings: Settings,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", parser=written_file)
    ] = None,
    shard: Annotated[str | None, typer.Option("--shard", help="Score the K-th of N parts alone, as K/N.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Proposes pointers (sequences of ICDs) for training queries and has the VLM score each of them.

    Writes one JSON line a query to `results/<dataset>/generated_data/rl_data_<Sampler>_<Model>.jsonl`.
    An interrupted run goes on where it stopped. Several machines share the work with `--shard 1/4` to `--shard 4/4`;
    the same command without `--shard` then puts the parts together.

    For example:

    ```
    icdsel gen-rl-data
    icdsel gen-rl-data --queries 2000 --sampler mix
    icdsel gen-rl-data --init rce_epoch5.pt --output round2.jsonl
    icdsel gen-rl-data --dataset okvqa --shard 2/4
    ```
    """
    from icdsel.stages.generate import Shard, generate

    part = None
    if shard is not None:
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise SettingsError(f"--shard is K/N with 1 ≤ K ≤ N, as in 2/4, not {shard!r}")
        part = Shard(int(numbers[1]), int(numbers[2]))
    summary = generate(settings, output, overwrite, shard=part)
    out.print(str(summary))
    _end(settings, failed=summary.failed)


@app.command()
@with_settings("data", "vlm", "proposals", "reward", "train", leave_out=["proposals.init", "proposals.query_split"])
def train(
    settings: Settings,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run. [by the settings]")] = None,
    rl_data: Annotated[
        list[Path] | None, typer.Option("--rl-data", help="RL data to train on; several are put together.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Trains a policy: reward-weighted cross-entropy (RCE), then GRPO where asked for.

    Makes the RL data when they are missing. Checkpoints and metrics go to `results/<dataset>/model_cpk/<run>/`.

    For example:

    ```
    icdsel train
    icdsel train --grpo-epochs 3 --freeze-backbone
    icdsel train --dataset okvqa --sampler rand --model qwen2.5-vl-3b --device cuda:0
    ```
    """
    from icdsel.stages.train import train as train_stage

    made = train_stage(settings, run=run, rl_data_files=rl_data or (), overwrite=overwrite)
    out.print(f"{made.folder}: recommended checkpoint {made.checkpoint.name}")
    _end(settings, failed=made.failed)


@app.command()
@with_settings("data", "vlm")
def convert(
    settings: Settings,
    file: Annotated[
        Path, typer.Argument(help="A checkpoint (a bare name is found in the last run too), or RL data (.jsonl).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", parser=written_file)
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Look for the checkpoint in this run.")] = None,
    legacy_names: Annotated[bool, typer.Option("--legacy-names", help="Parameter names of before 2025-11-27.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Converts to Lever-Plus's forms: a checkpoint to `<name>_v2format.ckpt`, RL data to `<name>.json`.

    For example:

    ```
    icdsel convert rce_epoch5.pt
    icdsel convert results/okvqa/generated_data/rl_data_RandSampler_Qwen2_5-VL-3B-Instruct.jsonl --dataset okvqa
    icdsel convert results/okvqa/model_cpk/my-run/grpo_epoch3.pt --output policy.ckpt
    ```
    """
    import warnings

    from icdsel.artefacts.checkpoint import convert as convert_checkpoint
    from icdsel.artefacts.lever_plus_rl_data import is_lever_plus
    from icdsel.artefacts.run_folder import find_run
    from icdsel.errors import RlDataError
    from icdsel.stages.convert_rl_data import convert as convert_rl_data

    if file.suffix == ".jsonl":
        out.print(f"{file} → {convert_rl_data(settings, file, output, overwrite)}")
        _end(settings)
        return
    if is_lever_plus(file):
        raise RlDataError(f"{file} is in Lever-Plus's form already: train on it with `icdsel train --rl-data {file}`")
    path = file
    if not path.exists() and path.parent == Path():
        path = find_run(settings, run).folder / file
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = convert_checkpoint(path, output, legacy_names, overwrite)
    for warning in caught:
        warn(str(warning.message))
    out.print(f"{path} → {written}")
    _end(settings)


@app.command()
@with_settings("data", "vlm", "infer")
def infer(
    settings: Settings,
    run: Annotated[str | None, typer.Option("--run", help="The run whose policy chooses. [the last trained]")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The policy's checkpoint. [the run's recommended one]")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Chooses ICDs for held-out queries and has the VLM answer them, at 1 to 4 shots.

    Zero-shot and copying the neighbours' majority answer are always answered too.

    For example:

    ```
    icdsel infer --n 800
    icdsel infer --n -1 --shots 2 --selector policy,random,nearest-both
    ```
    """
    from icdsel.cli.tables import inference_table
    from icdsel.stages.infer import infer as infer_stage

    rows = infer_stage(settings, run, checkpoint, overwrite)
    out.print(inference_table(rows, settings.data.task))
    note(f"Predictions: {rows[0].path.parent}. `icdsel compare` shows the intervals.")
    _end(settings, failed=sum(row.failed for row in rows))


@app.command()
@with_settings(
    *("data", "vlm", "proposals", "reward", "train", "infer"),
    leave_out=["proposals.init", "proposals.query_split", "infer.n", "infer.shots"],
)
def compare(
    context: typer.Context,
    settings: Settings,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            help="Predictions files, or folders of them. [all of this dataset, sampler and model]",
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="Train these variants where they are missing, answer, and compare them alone: rce, rce-normalized, "
            "grpo, grpo-frozen, grpo-online, settings of the training such as rce_lr=1e-3, and these joined by +, with "
            "commas.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="With --train: runs of each variant.", min=1)] = 1,
    rl_data: Annotated[
        list[Path] | None,
        typer.Option("--rl-data", help="With --train: RL data to train on; several are put together."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --train: say what would be done, and how long it should take.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --train: move what was made under other settings aside.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="The row that differences are taken to. [random, else zero-shot]"),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", help="Compare the rows over this many queries; with --train, answer so many, -1 for all. [all; 100]"
        ),
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--set", help="Compare the rows over this set, such as validation-800.")
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option("--shots", help="Show these numbers of shots; with --train, answer at them. [all; 1,2,3,4]"),
    ] = None,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different",
            help="Compare other metrics, prompts and models too, and of different queries those that all rows share.",
        ),
    ] = False,
    fail_if_worse: Annotated[
        bool,
        typer.Option(
            "--fail-if-worse", help="Exit with 1 where a policy is worse than the reference, interval below 0."
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the table to this file too.", parser=written_file)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page to look at: curves, choices, queries.", parser=written_file),
    ] = None,
    plots: Annotated[Path | None, typer.Option("--plots", help="Write the charts to this folder, PNG and SVG.")] = None,
    gallery: Annotated[int, typer.Option("--gallery", help="Queries in the page's gallery at most.", min=0)] = 200,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="The same as CSV.", parser=written_file)] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="The same as Markdown.", parser=written_file)
    ] = None,
) -> None:
    """Lays runs and baselines side by side: accuracies, paired differences, and how sure they are.

    Every figure has its 95 % interval; differences have p-values corrected for the size of the table, and the
    smallest difference that so many queries can show.

    With `--train` it first trains and answers what is missing, each variant and seed in a run of its own, and compares
    these alone; the settings of proposals, reward, training and inference are those that all variants share.

    For example:

    ```
    icdsel compare
    icdsel compare --html report.html --plots plots
    icdsel compare --shots 2 --reference nearest-both --json table.json --markdown table.md
    icdsel compare results/world/infer/* --allow-different
    icdsel compare --fail-if-worse --reference nearest-both
    icdsel compare --train rce,grpo-frozen,rce-normalized+grpo-frozen --seeds 3 --n 800 --shots 1,2 --dry-run
    icdsel compare --train rce,rce_lr=1e-3,rce_lr=1e-3+batch_size=8 --reference rce --html report.html
    ```
    """
    from icdsel.comparison.compare import compare as compare_stage
    from icdsel.comparison.compare import learned_and_worse, write_rows
    from icdsel.comparison.tables import screen_tables, worse_text, write_csv, write_markdown

    _fits_train(context, train)
    try:
        counts = [int(count) for count in shots.split(",")] if shots else []
    except ValueError:
        raise SettingsError(f"--shots takes numbers with commas, as in --shots 1,2, not {shots!r}") from None
    if not paths:
        note(f"Dataset {settings.data.dataset}, model {settings.vlm.model}.")
    names: dict[Path, str] = {}
    failed = 0
    if train is not None:
        from icdsel.experiments.variants import plan_experiments

        asked = ({"n": n} if n is not None else {}) | ({"shots": counts} if counts else {})
        settings = with_values(settings, {"infer": asked})
        experiments = plan_experiments(settings, train, seeds)
        if dry_run:
            from icdsel.cli.tables import plan_table
            from icdsel.experiments.plan import dry_run as dry_run_stage

            out.print(plan_table(dry_run_stage(settings, experiments, overwrite, rl_data or ())))
            note(f"Nothing was written but caches: embeddings in {settings.dataset_dir / 'cache'}, the bundled world")
            return
        from icdsel.experiments.run import run_experiments

        names, failed = run_experiments(settings, experiments, overwrite=overwrite, rl_data_files=rl_data or ())
        n, counts = None, list(settings.infer.shots)
    rows = compare_stage(
        settings,
        paths or (),
        n=n,
        subset=subset,
        reference=reference,
        shots=counts,
        allow_different=allow_different,
        names=names,
    )
    out.print(screen_tables(rows), soft_wrap=False)
    for path, write in ((json_file, write_rows), (csv_file, write_csv), (markdown_file, write_markdown)):
        if path:
            write(rows, path)
            note(f"Written to {path}")
    if html or plots:
        from icdsel.page.build import collect, write_page, write_plots

        content = collect(settings, rows)
        if plots:
            note(f"{len(write_plots(content, plots))} charts, PNG and SVG: {plots}")
        if html:
            note(f"Page: {html} ({write_page(content, html, gallery) / 1e6:.1f} MB)")
    worse = learned_and_worse(rows) if fail_if_worse else []
    for row in worse:
        warn(worse_text(row))
    _end(settings, failed=failed)
    if worse:
        raise typer.Exit(1)


def _fits_train(context: typer.Context, train: str | None) -> None:
    """Refuses what would have no effect with `--train`, or without it."""
    given = given_flags(context)
    if train is not None:
        if choosing := [words for words, name in given.items() if name in ("paths", "subset", "allow_different")]:
            words = "PATH" if choosing[0] == "paths" else choosing[0]
            raise SettingsError(f"{words} chooses among predictions that lie there: leave it out with --train")
        showing = ("json_file", "csv_file", "markdown_file", "html", "plots", "gallery", "fail_if_worse")
        if "--dry-run" in given and (needless := [words for words, name in given.items() if name in showing]):
            raise SettingsError(f"a dry run makes no table: leave {', '.join(needless)} out with --dry-run")
        return
    needing = ("seeds", "rl_data", "dry_run", "overwrite")
    for words, name in given.items():
        if name in needing or name.startswith(("proposals__", "reward__", "train__", "infer__")):
            raise SettingsError(f"{words} has no effect without --train, which trains and answers what is compared")


@app.command()
@with_settings("data", leave_out=[f"data.{name}" for name in TABLES["data"].model_fields if name != "results_dir"])
def runs(
    settings: Settings,
    dataset: Annotated[str | None, typer.Option("--dataset", help="List the runs of this dataset. [all]")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the list to this file too.", parser=written_file)
    ] = None,
) -> None:
    """Lists the runs: what they were made with, how good they are, their age and size; the newest last.

    The expected reward, and its share of the oracle's, is that of the recommended checkpoint on held-out training
    queries; the accuracies, by number of shots, are those that `icdsel infer` measured of it.

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
        out.print(runs_table(found, datetime.now().astimezone()))
    else:
        of, flags = (f" of {dataset}", f" --dataset {dataset}") if dataset else ("", "")
        out.print(f"No runs{of} in {folder}. Train one with `icdsel train{flags}`.")
    if json_file:
        write_runs(found, json_file)
        note(f"Written to {json_file}")


@app.command()
@with_settings("data", "vlm", "proposals", "reward", leave_out=["proposals.query_split"])
def check(
    settings: Settings,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            help="Datasets, RL data, runs' folders, checkpoints. [the dataset that is set]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Open every image of a dataset, too.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the list to this file too.", parser=written_file)
    ] = None,
) -> None:
    """Lists what is wrong with a dataset, RL data, a run or a checkpoint; exit code 1 if something must be fixed.

    What a path is, is recognised. No VLM is asked and nothing in a file is run. RL data are held against the dataset
    and settings of now.

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
        warn(f"errors: {count}")
        raise typer.Exit(1)


@app.command()
@with_settings("data", "vlm")
def bench(
    settings: Settings,
    random_weights: Annotated[
        str | None, typer.Option("--random-weights", help="This architecture with random weights: qwen2.5-vl-3b.")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", help="Queries that the scorer answers.", min=1)] = 64,
    pointers: Annotated[int, typer.Option("--pointers", help="Pointers of each query.", min=1)] = 12,
    shots: Annotated[int, typer.Option("--shots", help="ICDs in a pointer.", min=0)] = 2,
    images: Annotated[int, typer.Option("--images", help="Distinct images of the pools.", min=2)] = 2000,
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="Their size. [56x56 for tiny-vlm, else 640x480]")
    ] = None,
    plain: Annotated[int, typer.Option("--plain", help="Pointers that the plain way scores.", min=1)] = 48,
    neighbours: Annotated[
        int, typer.Option("--neighbours", help="Examples that neighbours are searched among.", min=64)
    ] = 50_000,
    proposal_pool: Annotated[
        int, typer.Option("--proposal-pool", help="Candidates that proposals choose from.")
    ] = 9009,
    train_queries: Annotated[int, typer.Option("--train-queries", help="Queries of an epoch.", min=2)] = 640,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file too.", parser=written_file)
    ] = None,
) -> None:
    """Measures the scorer, proposals, training and the search for neighbours, each beside the plain way of it.

    The plain way is Lever-Plus's: a generation and a forward pass for every reference, one prompt at a time, images
    encoded anew; proposals and training in Python loops. All in one run, so the ratios hold on a noisy machine.

    For example:

    ```
    icdsel bench
    icdsel bench --random-weights qwen2.5-vl-3b --device cuda:0 --json figures.json
    ```
    """
    from icdsel.bench.architectures import ARCHITECTURES
    from icdsel.bench.run import Sizes
    from icdsel.bench.run import bench as bench_stage
    from icdsel.cli.tables import bench_table
    from icdsel.store.files import write_json

    if random_weights not in (None, *ARCHITECTURES):
        raise SettingsError(f"--random-weights knows {', '.join(ARCHITECTURES)}, not {random_weights!r}")
    tiny = random_weights is None and settings.vlm.model == TINY_VLM
    try:
        width, height = map(int, (image_size or ("56x56" if tiny else "640x480")).split("x"))
    except ValueError:
        raise SettingsError(f"--image-size is WIDTHxHEIGHT, as in 640x480, not {image_size!r}") from None
    sizes = Sizes(
        queries, pointers, shots, 64, images, (width, height), plain, proposal_pool, neighbours, train_queries
    )
    figures = bench_stage(settings, sizes, random_weights)
    out.print(bench_table(figures, settings.proposals.queries or 0))
    if json_file:
        write_json(json_file, figures, indent=1)
        note(f"Written to {json_file}")


@app.command()
@with_settings("data")
def demo(
    settings: Settings,
    seeds: Annotated[int, typer.Option("--seeds", help="Policies to train, each with a seed of its own.", min=1)] = 1,
) -> None:
    """Runs everything on the bundled world: RL data, training, conversion, inference, comparison.

    Prints every command that it runs. Takes a few minutes on two cores and needs neither network nor GPU.

    For example:

    ```
    icdsel demo
    icdsel demo --seeds 3
    ```
    """
    from icdsel.cli.demo import run_tour

    run_tour(app, settings, seeds)


def _end(settings: Settings, failed: int = 0) -> None:
    if hint := own_data_hint(settings):
        note(hint)
    if failed:
        warn(f"{failed} VLM calls failed; the reasons stand beside their answers, in the files of this command")
        raise typer.Exit(1)


def own_data_hint(settings: Settings) -> str | None:
    """How to run on one's own data, for those who ran on the bundled world."""
    if settings.data.dataset != WORLD:
        return None
    return (
        "This ran on the bundled world. On your data: --dataset okvqa --data-dir DIR --image-dir DIR "
        "--model qwen2.5-vl-3b (or put them into icdsel.toml)."
    )
