"""The comparison as tables: two on the screen, one in CSV and Markdown."""

import csv
import html
import io
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.corpus import CorpusFigure
from icdsel.comparison.table_row import task_of
from icdsel.console import Fitted, shown
from icdsel.records import shots_text
from icdsel.store.files import write_text
from icdsel.store.spreadsheet import harmless
from icdsel.tasks.base import TASKS, mean
from icdsel.tasks.corpus import CorpusMetric

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_NAMES = 30  # characters of a name that stay in one line

Cell = Callable[[ComparisonRow], str]


def screen_tables(rows: Sequence[ComparisonRow], lead: Sequence[str] = ()) -> Group:
    """The score of each row, and its difference to the reference with the evidence; readable at 80 columns.

    Args:
        rows: The comparison.
        lead: The headline, which is shown last: nearest to where a terminal continues.
    """
    task = task_of(rows)
    scores = _table(
        _title(rows),
        rows,
        {
            "pool": _pool,
            task.short_name: lambda row: row.text(row.accuracy),
            "interval": lambda row: span(row, row.low, row.high),
            "over seeds": _over_seeds,
            "correct": _correct,
            **{name: _other_metric(name) for name in rows[0].other_metrics},
            "ICDs": mean_shots_text,
            "tokens": tokens_text,
        },
        # Where no selector decides how many ICDs it shows, the heading of a section says it.
        [*["ICDs"] * (not _decided(rows)), *reversed(list(rows[0].other_metrics)), "correct", "tokens", "over seeds"],
    )
    compared = [row for row in rows if row.difference is not None and row.part_of is None]
    differences = _table(
        f"Δ: paired differences to {_references(rows)}",
        compared,
        {
            "pool": _pool,
            "Δ": lambda row: signed(row, row.difference),
            "interval of Δ": lambda row: span(row, row.difference_low, row.difference_high, signs=True),
            "p (Holm)": lambda row: p_text(row.p_holm) + stars(row.p_holm),
            "detect": lambda row: row.text(row.detectable),
            "+ / − / =": lambda row: f"{row.wins} / {row.losses} / {row.ties}",
            "McNemar": lambda row: p_text(row.mcnemar_p),
        },
        ["McNemar", "detect", "+ / − / =", "p (Holm)"],
    )
    corpus: list[RenderableType] = []
    for name, cells in corpus_cells(rows).items():
        known = [row for row in rows if cells[name](row)]
        corpus += ["", _table(f"{name}, of all queries together", known, cells, ["p", "interval of Δ", "interval"])]
    notes = [Padding(Text(note, style="dim"), (0, 0, 0, 1)) for note in explanations(rows)]
    warnings = [Padding(Text(line, style="yellow"), (0, 0, 0, 1)) for line in cautions(rows)]
    leading = [Padding(Text(line, style="bold"), (1, 0, 0, 1)) for line in lead]
    between: list[RenderableType] = ["", differences] if compared else []
    return Group(scores, *between, *corpus, "", *notes, *warnings, *leading)


def explanations(rows: Sequence[ComparisonRow]) -> list[str]:
    """How to read the figures: which source of chance each covers, a sentence or two for each kind of figure."""
    task, seeded = task_of(rows), any(row.seeds > 1 for row in rows)
    queries = "queries" if not _images_shared(rows) else f"queries (drawn by image: {rows[0].n} on {rows[0].images})"
    lines = [f"Intervals: 95 %, for other {queries}"]
    lines[0] += " and, of a mean over seeds, other seeds; seeds that two rows share are paired." if seeded else "."
    if task.correctness is not None:
        lines[0] += f" correct: queries with {task.correctness.meaning}."
    if seeded:
        lines[0] += f" over seeds: the lowest and the highest seed's {task.short_name}."
    if any(row.learned and row.seeds == 1 and row.part_of is None for row in rows):
        lines.append("A policy of one training seed stands for itself: no figure covers what another seed would learn.")
    if any(row.mean_shots is not None for row in rows):
        lines.append(
            "ICDs: how many are shown, mean over the queries; tokens: mean length of a prompt, with its images."
        )
    questions = sum(row.p_value is not None for row in rows)
    if questions:
        lines.append(
            f"p: two-sided, by {_test_of(rows)}, corrected by Holm for the table's {questions} "
            f"difference{'s' * (questions > 1)} (* < 0.05, ** < 0.01, *** < 0.001)."
            + (" The seeds of a mean are not tested separately and have none." if any(r.part_of for r in rows) else "")
        )
        detect = "detect: the smallest true difference that this many queries show with 80 % power, before correction. "
        lines.append(
            (detect if any(row.detectable is not None for row in rows) else "")
            + "+ / − / =: queries on which the row is better, worse, the same."
        )
    if names := list(corpus_cells(rows)):
        own = f"{' and '.join(names)}: of all queries together; interval and p by drawing queries again, not corrected."
        lines.append(own)
    if any(row.mcnemar_p is not None for row in rows):
        exact = "sign flips by image" if _images_shared(rows) else "exact test"
        lines.append(f"McNemar: {exact} of correctness, not corrected{'; of a mean over seeds as p' * seeded}.")
    return lines


def _decided(rows: Sequence[ComparisonRow]) -> bool:
    """Whether a selector decides how many ICDs it shows."""
    return any(isinstance(row.shots, str) for row in rows)


def _images_shared(rows: Sequence[ComparisonRow]) -> bool:
    images = rows[0].images
    return images is not None and images < rows[0].n


def _test_of(rows: Sequence[ComparisonRow]) -> str:
    """The tests behind the p-values of a table."""
    exact = "sign flips" if TASKS.named(rows[0].task).aggregate is mean else "swapping scores"
    exact += " by image" if _images_shared(rows) else ""
    tested = [row for row in rows if row.p_value is not None]
    kinds = [exact] * any(row.seed_share is None for row in tested)
    kinds += ["Student's t over queries and seeds"] * any(row.seed_share is not None for row in tested)
    return " or, with a mean over seeds, ".join(kinds)


def cautions(rows: Sequence[ComparisonRow]) -> list[str]:
    """What a reader must know before trusting the table: differences between the rows, and queries left out."""
    lines = [f"Compared although they differ: {line}" for line in rows[0].differing]
    if left_out := rows[0].asked - rows[0].n if rows[0].asked else 0:
        lines.append(f"{left_out} of {rows[0].asked} queries left out of all rows: in some row the VLM call failed")
    if rows[0].images is None:
        lines.append(
            "The files do not say which queries share an image, so all count as independent. If some share one, the "
            "intervals are too narrow: move the files away and repeat `icdsel infer`, which records it"
        )
    return lines


def worse_text(row: ComparisonRow) -> str:
    """How much worse than the reference a row is, in a sentence."""
    unit = TASKS.named(row.task).unit
    return (
        f"{row.shown} at {shots_text(row.shots)} is worse than {row.reference}: the difference is "
        f"{row.text(row.difference)}{f' {unit}' * bool(unit)}, its whole interval ({row.text(row.difference_low)} … "
        f"{row.text(row.difference_high)}) below 0"
    )


def write_csv(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Writes the table as CSV, a column for each field; those of other metrics are `accuracy_<metric>`."""
    flat: list[dict[str, Any]] = []
    for row in rows:
        values = row.to_json()
        other, corpus = values.pop("other_metrics"), values.pop("corpus", ())
        lists = {name: "; ".join(values.pop(name)) for name in ("differing", "files")}
        values |= {f"accuracy_{name}": other[name] for name in other} | lists
        for figure in corpus:
            name = figure.pop("metric")
            values |= {f"{name}_{field}": value for field, value in figure.items()}
        flat.append({name: _in_csv(value) if isinstance(value, str) else value for name, value in values.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for values in flat for name in values)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, text.getvalue())


def _line(text: str) -> str:
    """A printable text in one line; names may come from untrusted files."""
    return shown(text).replace("\n", " ").replace("\t", " ")


def _in_csv(text: str) -> str:
    return harmless(_line(text))


def _in_markdown(text: str) -> str:
    """A text escaped for a Markdown table: no HTML, link, image or end of a cell."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", html.escape(_line(text), quote=False))


def write_markdown(rows: Sequence[ComparisonRow], path: Path, lead: Sequence[str] = ()) -> None:
    """Writes the table as Markdown: below the headline (`lead`), and followed by the meaning of its figures."""
    task = task_of(rows)
    columns: dict[str, Cell] = {
        "shots": lambda row: str(row.shots),
        "selector": lambda row: _in_markdown(row.shown),
        "pool": _pool,
        "ICDs": mean_shots_text,
        "tokens": tokens_text,
        task.short_name: lambda row: row.text(row.accuracy),
        "interval": lambda row: span(row, row.low, row.high),
        "over seeds": _over_seeds,
        "correct": _correct,
        **{name: _other_metric(name) for name in rows[0].other_metrics},
        "Δ": lambda row: signed(row, row.difference),
        "interval of Δ": lambda row: span(row, row.difference_low, row.difference_high, signs=True),
        "p": lambda row: p_text(row.p_value),
        "p (Holm)": lambda row: p_text(row.p_holm) + stars(row.p_holm).replace("*", "\\*"),
        "detect": lambda row: row.text(row.detectable),
        "seeds' share": lambda row: "" if row.seed_share is None else f"{row.seed_share:.0%}",
        "+ / − / =": lambda row: "" if row.wins is None else f"{row.wins} / {row.losses} / {row.ties}",
        "McNemar": lambda row: p_text(row.mcnemar_p),
    }
    for name, cells in corpus_cells(rows).items():
        columns |= {column if column == name else f"{name}, {column}": cell for column, cell in cells.items()}
    if all(row.seeds == 1 for row in rows):
        del columns["over seeds"], columns["seeds' share"]
    if task.correctness is None:
        del columns["correct"], columns["McNemar"]
    lines = [
        *(f"{_in_markdown(line)}\n" for line in lead),
        f"**{_title(rows)}; Δ is paired by query, to {_in_markdown(_references(rows))}**",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "|".join("---" if name == "selector" else "---:" for name in columns) + "|",
        *(f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows),
        "",
        *(f"- **{_in_markdown(line)}**" for line in cautions(rows)),
        *(f"- {note.replace('*', chr(92) + '*')}" for note in explanations(rows)),
    ]
    write_text(path, "\n".join(lines) + "\n")


def corpus_cells(rows: Sequence[ComparisonRow]) -> dict[str, dict[str, Cell]]:
    """The columns of each corpus score that some row has; that of the score itself has its name."""
    known = {figure.metric for row in rows for figure in row.corpus}
    metrics = TASKS.named(rows[0].task).corpus_metrics
    return {name: _cells_of(metric) for name, metric in metrics.items() if name in known}


def _cells_of(metric: CorpusMetric) -> dict[str, Cell]:
    def text(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.{metric.digits}f}".replace("-", "−")

    def cell(show: Callable[[CorpusFigure], str]) -> Cell:
        return lambda row: next((show(figure) for figure in row.corpus if figure.metric == metric.name), "")

    def interval(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None or high is None else f"{text(low, sign)} … {text(high, sign)}"

    return {
        metric.name: cell(lambda figure: text(figure.score)),
        "interval": cell(lambda figure: interval(figure.low, figure.high)),
        "Δ": cell(lambda figure: text(figure.difference, "+")),
        "interval of Δ": cell(lambda figure: interval(figure.difference_low, figure.difference_high, "+")),
        "p": cell(lambda figure: p_text(figure.p_value)),
    }


def _title(rows: Sequence[ComparisonRow]) -> str:
    task, metrics = task_of(rows), " and ".join(dict.fromkeys(row.metric for row in rows))
    return f"{task.score_name} ({metrics}){f' in {task.unit}' * bool(task.unit)}, n = {rows[0].n} queries"


def _references(rows: Sequence[ComparisonRow]) -> str:
    """Usually one; if only one seed of a mean was answered at some number of shots, that seed too."""
    compared = [row for row in rows if row.difference is not None] or rows[:1]
    shown = {row.name: row.shown for row in rows}
    return " or ".join(dict.fromkeys(shown.get(row.reference, row.reference) for row in compared))


def _table(title: str, rows: Sequence[ComparisonRow], columns: dict[str, Cell], optional: Sequence[str]) -> Fitted:
    """A section for each number of shots; empty columns are left out, seeds of a mean are dim.

    Args:
        title: Its title.
        rows: Its rows.
        columns: Its columns by name.
        optional: Those that a narrow terminal does without, the least important first.
    """
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {name: values for name, values in cells.items() if any(values)}

    def table(left_out: Collection[str]) -> Table:
        shown = {name: values for name, values in cells.items() if name not in left_out}
        made = Table(
            title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False
        )
        names = [f"  {row.shown}" if row.part_of else row.shown for row in rows]
        made.add_column("selector", overflow="fold", min_width=min(_NAMES, max(map(len, names))))
        for name in shown:
            made.add_column(name, justify="right", no_wrap=True)
        before = None
        for row, name, *values in zip(rows, names, *shown.values(), strict=True):
            if row.shots != before:
                made.add_row(Text(shots_text(row.shots), style="underline"))
                before = row.shots
            style = "dim" if row.part_of else "bold" if row.learned and (row.difference_low or 0) > 0 else None
            made.add_row(Text(name), *values, style=style)
        return made

    return Fitted(table, [name for name in optional if name in cells], "in a wider terminal, or with --csv")


def _pool(row: ComparisonRow) -> str:
    return row.pool or ""


def mean_shots_text(row: ComparisonRow) -> str:
    """The mean number of ICDs, with at most two decimals; empty if it is not known."""
    return "" if row.mean_shots is None else f"{row.mean_shots:.2f}".rstrip("0").rstrip(".")


def tokens_text(row: ComparisonRow) -> str:
    """The mean length of a prompt in tokens; empty if it is not known."""
    return "" if row.mean_prompt_tokens is None else f"{row.mean_prompt_tokens:.0f}"


def _other_metric(name: str) -> Cell:
    return lambda row: row.text(row.other_metrics[name])


def _correct(row: ComparisonRow) -> str:
    return "" if row.correct is None else f"{row.correct:.1f}"


def _over_seeds(row: ComparisonRow) -> str:
    return "" if row.seeds == 1 else f"{span(row, row.seed_low, row.seed_high)} ({row.seeds})"


def span(row: ComparisonRow, low: float | None, high: float | None, signs: bool = False) -> str:
    """An interval, `low … high`, with the signs of its bounds if `signs`; empty if there is none."""
    if low is None or high is None:
        return ""
    return f"{signed(row, low)} … {signed(row, high)}" if signs else f"{row.text(low)} … {row.text(high)}"


def signed(row: ComparisonRow, value: float | None) -> str:
    """A difference with its sign, and a proper minus."""
    return row.text(value, "+").replace("-", "−")


def p_text(value: float | None) -> str:
    """A p-value with three digits; empty for None."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def stars(p: float | None) -> str:
    """`***` below 0.001, `**` below 0.01, `*` below 0.05."""
    return next((marks for bound, marks in _STARS if p is not None and p < bound), "")
