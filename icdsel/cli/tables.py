"""Tables for the screen. Does not import the stages whose results it shows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from icdsel.check.findings import Checked
from icdsel.comparison.runs import RunSummary, age
from icdsel.comparison.tables import p_text
from icdsel.console import Fitted, plain
from icdsel.records import shots_order
from icdsel.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from icdsel.comparison.certificate import Certificate
    from icdsel.experiments.plan import Estimate
    from icdsel.stages.infer import Row


_WIDEST = 21  # characters of a line of a run's name or changed settings


def inference_table(rows: "Sequence[Row]", task: Task) -> Table:
    """Scores by number of shots; `icdsel compare` adds the intervals."""
    shots = sorted({count for row in rows for count in row.score}, key=shots_order)
    unit = f" in {task.unit}" if task.unit else ""
    table = Table(title=f"{task.score_name}{unit} by number of shots", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("selector", overflow="fold")
    for count in shots:
        table.add_column(str(count), justify="right")
    for row in rows:
        cells = [task.text(row.score[count]) if count in row.score else "" for count in shots]
        table.add_row(row.shown + (f" ({row.failed} failed)" if row.failed else ""), *cells)
    return table


def certificate_table(certificate: "Certificate", task: Task) -> Group:
    """The tests of a certificate, without offsets at which the policy does the same, and what they certify."""
    unit = f" {task.unit}" if task.unit else ""
    table = Table(
        title=f"At most {certificate.delta:g}{unit} worse than zero-shot?", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("shots")
    for name in ("ICDs", "none shown", f"Δ{f' in{unit}' * bool(unit)}", "p"):
        table.add_column(name, justify="right")
    before = None
    for step in certificate.steps:
        figures = (step.mean_shots, step.shown_none, step.difference)
        if figures != before or step.shots == certificate.shots:
            cells = (f"{step.mean_shots:.2f}", f"{step.shown_none:.0f} %", f"{step.difference:+.{task.digits}f}")
            style = "bold" if step.shots == certificate.shots else None if step.certified else "dim"
            table.add_row(step.shots, *(cell.replace("-", "−") for cell in cells), p_text(step.p_value), style=style)
        before = figures
    chosen = next((step for step in certificate.steps if step.shots == certificate.shots), None)
    queries = f"queries like these {certificate.n:,} ({certificate.set}"
    queries += f", on {certificate.images:,} images)" if certificate.images < certificate.n else ")"
    if chosen is None:
        says = (
            f"Nothing but zero-shot itself is certified on {queries}: certify on more queries (--n, --split), or a "
            "larger tolerance."
        )
    else:
        says = (
            f"With {certificate.confidence:.0%} confidence, --shots {chosen.shots} is not worse than zero-shot by more "
            f"than {certificate.delta:g}{unit} on {queries}. It shows {chosen.mean_shots:.2f} ICDs on average, and "
            f"none with {chosen.shown_none:.0f} % of them."
        )
    return Group(table, Padding(Text(says, style="bold"), (0, 0, 0, 1)))


def plan_table(estimates: "Sequence[Estimate]") -> Fitted:
    """The steps of an experiment: what is left to do, and how long it should take."""
    todo = sum(bool(estimate.step.todo) for estimate in estimates[1:])
    summary = f"{todo} of {len(estimates) - 1} steps to do" if todo else "nothing to do"

    def table(left_out: Collection[str]) -> Table:
        made = Table(title="Plan", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        # A step is as wide as its longest word, the name of a variant, so that no word is cut.
        words = [word for estimate in estimates for word in estimate.step.what.split()]
        made.add_column("step", width=max(map(len, words)))
        made.add_column("to do")
        made.add_column("time", justify="right", no_wrap=True)
        measured = "measured" not in left_out
        if measured:
            made.add_column("measured", no_wrap=True)
        for estimate in estimates:
            step = estimate.step
            took = duration(estimate.seconds) if estimate.measured else ""
            made.add_row(step.what, step.todo or "nothing: it exists", took, *[estimate.measured] * measured)
        made.add_section()
        made.add_row("total", summary, duration(sum(estimate.seconds for estimate in estimates)), *[""] * measured)
        return made

    return Fitted(table, ["measured"])


def duration(seconds: float) -> str:
    """A duration in one or two units: `8 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def runs_table(runs: Sequence[RunSummary], now: datetime) -> Fitted:
    """One row per run; below 100 columns its least important columns are left out.

    Args:
        runs: The runs, the newest last.
        now: The time that ages are relative to.
    """
    scores = {TASKS.named(run.task).short_name for run in runs}
    score = "score" if len(scores) > 1 else scores.pop()
    cells: dict[str, Callable[[RunSummary], str | Text]] = {
        "run": _run_name,
        "dataset": lambda run: run.dataset,
        "changed settings": lambda run: Text(", ".join(run.settings)),
        "policy": lambda run: "" if run.phase is None else f"{run.phase} {run.epoch}",
        "reward": _reward,
        score: _accuracies,
        "age, size": lambda run: f"{age(run, now)}\n{decimal(run.bytes)}".strip(),
    }
    if len({run.dataset for run in runs}) == 1:
        del cells["dataset"]

    def table(left_out: Collection[str]) -> Table:
        shown = {name: cell for name, cell in cells.items() if name not in left_out}
        made = Table(box=SIMPLE_HEAD, pad_edge=False, leading=1)
        for name in shown:
            folds = name in ("run", "changed settings")
            made.add_column(name, no_wrap=not folds, max_width=_WIDEST if folds else None, overflow="fold")
        for run in runs:
            made.add_row(*(cell(run) for cell in shown.values()))
        return made

    return Fitted(table, ["age, size", "reward"], "in a wider terminal, or with --json")


def _run_name(run: RunSummary) -> Text:
    """A run's number, its name unless that only repeats the settings, and its state if that is not finished."""
    parts = [str(run.number)] * bool(run.number) + [run.name] * run.named
    name = Text(" ".join(parts))
    if run.state != "finished":
        why = f": {run.problem}".replace(f"{run.folder}/", "") if run.problem else ""
        name.append(f"{chr(10) * bool(parts)}{run.state}{why}", style="yellow")
    return name


def _reward(run: RunSummary) -> str:
    if run.expected_reward is None or run.oracle_share is None:
        return ""
    return f"{run.expected_reward:.3f}\n{run.oracle_share:.0%} of\noracle"


def _accuracies(run: RunSummary) -> str:
    """Accuracy of the recommended checkpoint on the largest set that it answered, by number of shots."""
    results = [answered for answered in run.answered if answered.checkpoint == run.checkpoint and answered.accuracy]
    if not results:
        return ""
    largest = max(results, key=lambda answered: answered.n)
    digits = TASKS.named(run.task).digits
    lines = [f"{shots}: {accuracy:.{digits}f}" for shots, accuracy in largest.accuracy.items()]
    return "\n".join([*lines, f"n = {largest.n}"])


def findings_list(checked: Checked) -> Group:
    """The problems of one path: how often each occurs, examples, and the remedy."""
    about = f": {checked.about}" if checked.about else ""
    scored = f", scored by the metric {checked.metric}" if checked.metric else ""
    heading = Text(f"{plain(checked.name)} ({checked.is_a}{about}{scored})", style="bold")
    if not checked.findings:
        return Group(heading, Text("  no problems\n", style="green"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False, leading=1)
    table.add_column("severity", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for finding in checked.findings:
        colour = "red" if finding.severity == "error" else "yellow"
        share = f"\n{finding.count / finding.of:.1%}" if finding.of else ""
        what = Text(finding.problem)
        for example in finding.examples:
            what.append(f"\n  {example}", style="dim")
        what.append(f"\n→ {finding.remedy}")
        table.add_row(Text(finding.severity, style=colour), f"{finding.count:,}{share}", what)
    return Group(heading, table)


_MEASURED = {
    "scorer": "pointers scored",
    "proposals": "queries with proposals",
    "train_batch_1": "training queries, batch size 1",
    "train_batch_32": "training queries, batch size 32",
    "neighbours": "neighbour searches",
}


def bench_table(figures: Mapping[str, Any], queries: int) -> Table:
    """Rates per second of icdsel and of the baseline implementation; below them details of the scorer."""
    table = Table(title=f"{figures['model']} in {figures['dtype']} on {figures['device']}", title_justify="left")
    table.add_column("per second")
    for title in ("baseline", "icdsel", "ratio"):
        table.add_column(title, justify="right")
    for name, what in _MEASURED.items():
        row = figures[name]
        table.add_row(what, f"{row['plain_per_second']:,.4g}", f"{row['per_second']:,.4g}", f"{row['ratio']:,.1f}×")
    scorer, pointers = figures["scorer"], figures["sizes"]["pointers"]
    unlike = ""
    if "unlike_float32" in scorer:
        unlike = (
            f" {scorer['unlike_float32']:.1%} of its answers differ from those in float32 "
            f"({scorer['plain_unlike_float32']:.1%} for the baseline); the mean difference of log-probs is "
            f"{scorer['log_prob_difference_to_float32']:.1e} "
            f"({scorer['plain_log_prob_difference_to_float32']:.1e} for the baseline)."
        )
    minutes = queries * pointers / scorer["per_second"] / 60
    table.caption = (
        f"The scorer reads {scorer['tokens_per_second']:,.0f} prompt tokens per second, at {scorer['mfu']:.0%} of the "
        f"speed of a large matrix product, with a peak memory of {scorer['peak_memory_mib']:,.0f} MiB. "
        f"{scorer['images_encoded']} images were encoded, {scorer['images_encoded_again']} of them more than once. "
        f"{scorer['answers_like_plain']:.1%} of the answers equal those of the baseline; log-probs differ by at most "
        f"{scorer['largest_log_prob_difference']:.1e}.{unlike} {queries} queries with {pointers} pointers "
        f"would take {minutes:,.1f} minutes (baseline: {minutes * scorer['ratio']:,.1f})."
    )
    table.caption_justify = "left"
    return table


def whole_set_table(figures: Mapping[str, Any]) -> Table:
    """Queries per second that a policy chooses for from the whole training set, against the baseline."""
    table = Table(title=f"Queries per second, {figures['candidates']:,} candidates", title_justify="left")
    table.add_column("network")
    for title in ("baseline", "icdsel", "ratio", "to default", "equal", "memory"):
        table.add_column(title, justify="right")
    rows = {name: row for name, row in figures.items() if isinstance(row, dict) and "per_second" in row}
    for name, row in rows.items():
        rates = (f"{row['plain_per_second']:,.4g}", f"{row['per_second']:,.4g}")
        ratios = (f"{row[ratio]:,.1f}×" for ratio in ("ratio", "ratio_to_default"))
        memory = f"{row['peak_mib'] / 2**10:,.1f} GiB"
        table.add_row(name, *rates, *ratios, f"{row['choices_like_plain']:.1%}", memory)
    kept = ", ".join(f"{row['encode_seconds']:,.1f} s, {row['encoded_mib']:,.0f} MiB" for row in rows.values())
    table.caption = f"The candidates are encoded once ({kept}). to default: to the baseline of the default network."
    table.caption_justify = "left"
    return table


def engines_table(figures: Mapping[str, Any]) -> Table:
    """Prompts per second of engines and of the plain way; below, how they were measured and compared."""
    table = Table(
        title=f"Prompts per second, {figures['model']}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("engine", overflow="fold")
    for title in ("answers", "ratio", "scored", "ratio", "equal", "log-probs"):
        table.add_column(title, justify="right", no_wrap=True)
    for way in figures["ways"]:
        table.add_row(
            _engine_name(way) + (f" ({way['failed']:,} of {way['asked']:,} failed)" if way["failed"] else ""),
            _figure(way["per_second"], ",.4g"),
            _figure(way["ratio"], ",.1f", "×"),
            _figure(way["scored_per_second"], ",.4g"),
            _figure(way["scored_ratio"], ",.1f", "×"),
            _figure(way["answers_like_plain"], ".1%"),
            _figure(way["largest_log_prob_difference"], ".0e"),
        )
    sizes = figures["sizes"]
    prompts = sizes["queries"] * sizes["pointers"]
    plain = "" if figures["not_here"] else f" (plain way: {min(sizes['plain'], prompts):,} of them)"
    table.caption = (
        f"scored: with the log-probs of three reference answers. Medians over the rounds ({figures['rounds']}), in "
        f"which the engines take turns; each has {prompts:,} new prompts{plain} of {sizes['shots']} ICDs, "
        f"{figures['queries_in_unit']} queries to a unit. "
    )
    if figures["not_here"]:
        table.caption += f"Nothing is compared, since the model is not on this machine: {figures['not_here']}"
    else:
        table.caption += (
            "ratio: to the plain way in the same round. equal: the share of answers that equal the plain way's; "
            "log-probs: the largest difference to its, in nats. Only its name says that a server has the same model."
        )
    for way in figures["ways"]:
        if way["failed"]:
            table.caption += f" A failure of {_engine_name(way)}: {way['failure']}."
    table.caption_justify = "left"
    return table


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _engine_name(way: Mapping[str, Any]) -> str:
    """What runs the model, on which device, and with how many threads."""
    threads, workers = way["threads"], way["workers"]
    name = way["name"] if workers is None else f"{way['name']}, {workers} workers"
    if not way["device"].startswith("cpu"):
        return f"{name} on {way['device']}"
    return f"{name}, {threads} thread{'s' * (threads != 1)}{' each' * (workers is not None)}"
