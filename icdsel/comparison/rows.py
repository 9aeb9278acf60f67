"""Files of predictions as rows of a comparison: read, checked for comparability, and restricted to shared queries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from icdsel.comparison.places import distinctly_named, keys_of
from icdsel.comparison.scores import Scores, mean_over_seeds
from icdsel.comparison.sources import HOW_CHOSEN, Answered, NothingScoredError, Source, files_in, read_answers
from icdsel.console import note
from icdsel.errors import RunError
from icdsel.records import QuestionId, Shots, shots_order

_SHOWN = 4  # names of rows in a message
_ON_A_SERVER = " on a server"


@dataclass(frozen=True)
class Comparable:
    """Rows over the same queries.

    Attributes:
        scores: The rows, each over the queries that every row has an answer to.
        asked: How many queries every row has, with those whose call failed.
        differing: Differences between the rows that were allowed, a line for each.
        sources: The files of the rows.
    """

    scores: list[Scores]
    asked: int
    differing: list[str]
    sources: list[Source]


def read_comparable(
    paths: Sequence[Path],
    *,
    n: int | None = None,
    subset: str | None = None,
    shots: Sequence[Shots] = (),
    allow_different: bool = False,
    names: Mapping[Path, str] | None = None,
) -> Comparable:
    """The rows of files of predictions, all over the same queries and with distinct titles.

    These are the queries that all rows share. A row that was answered over several sets is read over the one with which
    most queries are shared.

    Args:
        paths: Files of predictions, or folders of them.
        n: Only rows over this many queries.
        subset: Only rows over the set of this name.
        shots: Only rows at these numbers of shots, and zero-shot; all by default.
        allow_different: Also accept rows with different metrics, prompts or models.
        names: The names of the rows of each of `paths`; rows of the same name become their mean, query by query.

    Raises:
        RunError: There are none, a file is damaged, they are of different tasks, share no query, or differ otherwise
            and that is not allowed.
    """
    answered = _scored(files_in(paths), names)
    where = ", ".join(dict.fromkeys(str(path if path.is_dir() else path.parent) for path in paths))
    if not answered:
        raise RunError(f"{where}: no predictions in it. Create them with `icdsel infer`.")
    rows = [row for row in answered if n in (None, len(row.asked)) and subset in (None, row.source.subset)]
    if len(tasks := sorted({row.source.task for row in rows})) > 1:
        raise RunError(f"rows of different tasks have no score in common: {', '.join(tasks)}. Compare each by itself.")
    if not rows:
        chosen = [f"over {n} queries"] * (n is not None) + [f"of the set {subset!r}"] * (subset is not None)
        sets = sorted({f"{row.source.subset} ({len(row.asked)} queries)" for row in answered})
        raise RunError(f"{where} holds no predictions {' '.join(chosen)}: there are {', '.join(sets)}")
    if shots:
        existing = sorted({row.scores.shots for row in rows}, key=shots_order)
        if not set(existing) & set(shots):
            wanted = [str(count) for count in shots]
            raise RunError(
                f"no predictions at {', '.join(wanted)} shots: choose others with --shots (there are "
                f"{', '.join(map(str, existing))}), or create them with `icdsel infer --shots {','.join(wanted)}`"
            )
        rows = [row for row in rows if row.scores.shots in (0, *shots)]
    rows = rows if names else _sharing_most(rows)
    shared = _shared(rows)
    differing = _different_settings(rows)
    if not shared or (differing and not allow_different):
        raise RunError(_not_comparable([*_different_queries(rows, shared), *differing], shared))
    differing = [*_different_queries(rows, shared), *differing]
    rows = _restricted(rows, shared) if names else distinctly_named(_restricted(rows, shared))
    sources = list({row.source.path: row.source for row in rows}.values())
    scores = [row.scores for row in rows]
    return Comparable(
        _united(scores) if names else scores, len(shared), [line.split("\n")[0] for line in differing], sources
    )


def _scored(files: Sequence[Path], names: Mapping[Path, str] | None) -> list[Answered]:
    """The rows of files. Those of a test split without answers are left out, and told, if there are others."""
    answered, unscored = list[Answered](), list[NothingScoredError]()
    for path in files:
        try:
            answered += read_answers(path, names[path] if names else None)
        except NothingScoredError as error:
            unscored.append(error)
    if unscored and not answered:
        raise unscored[0]
    if unscored:
        note(
            f"left out: {len(unscored)} of {len(files)} files, which hold answers to queries without reference answers"
        )
    return answered


def _shared(rows: Iterable[Answered]) -> frozenset[QuestionId]:
    """The queries of every row."""
    return frozenset.intersection(*(row.asked for row in rows))


def _sharing_most(rows: Sequence[Answered]) -> list[Answered]:
    """Each row over one of the sets that it was answered over, so that all rows together share as many as possible."""
    same: dict[str, list[Answered]] = {}
    for row in rows:
        same.setdefault(repr((row.source.name, row.scores.shots, sorted(row.source.identity.items()))), []).append(row)
    sets = sorted({(-len(row.asked), row.source.subset, row.asked) for row in rows}, key=lambda one: one[:2])
    choices = [
        [max(group, key=lambda row: (len(row.asked & asked), -len(row.asked))) for group in same.values()]
        for _, _, asked in sets
    ]
    return max(choices, key=lambda chosen: len(_shared(chosen)))  # the first of equals: over the largest set


def _united(rows: Sequence[Scores]) -> list[Scores]:
    """One row for those of the same name and number of shots."""
    same: dict[tuple[str, Shots], list[Scores]] = {}
    for row in rows:
        same.setdefault((row.name, row.shots), []).append(row)
    return [mean_over_seeds(group[0].name, group) if len(group) > 1 else group[0] for group in same.values()]


# --- what may be compared ---------------------------------------------------------------------------------


def _different_queries(rows: Sequence[Answered], shared: frozenset[QuestionId]) -> list[str]:
    """A line about the sets of queries if they differ, with details below it; else nothing."""
    sets: dict[frozenset[QuestionId], list[str]] = {}
    for row in rows:
        sets.setdefault(row.asked, []).append(row.label)
    if len(sets) == 1:
        return []
    counts = sorted(map(len, sets))
    span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    below = "".join(f"\n    {len(questions)} queries: {_some(names)}" for questions, names in sets.items())
    return [f"different queries: {len(sets)} sets of {span}, of which all rows share {len(shared)}{below}"]


def _different_settings(rows: Sequence[Answered]) -> list[str]:
    """Differences between the settings of the rows that need to be allowed, a line for each."""
    lines = []
    sources = list({row.source.path: row.source for row in rows}.values())
    moved = len({source.on_servers for source in sources}) > 1
    for key in keys_of(sources):
        values: dict[str, list[Source]] = {}
        for source in sources:
            values.setdefault(repr(source.identity.get(key)), []).append(source)
        if key not in HOW_CHOSEN and len(values) > 1:
            if moved and key == "dtype":  # told with the model
                continue
            each = [
                f"{same[0].value(key)}{_where(same[0]) if moved and key == 'model' else ''} "
                f"({_some([one.name for one in same])})"
                for same in values.values()
            ]
            lines.append(f"different {_kind(key)}: {key} is {', '.join(each)}")
    return lines


def _where(source: Source) -> str:
    return _ON_A_SERVER if source.on_servers else " in this process"


def _kind(key: str) -> str:
    """What an entry of the identity decides, as text."""
    if key.startswith("vlm.") or key == "data.shown_answer":
        return "prompts or decoding"
    named = {"data.metric": "metrics", "model": "models", "dtype": "arithmetic of the model", "scorer": "scorers"}
    return named.get(key, "data")


def _some(names: Iterable[str]) -> str:
    """The first few of the names, and how many more there are."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:_SHOWN]) + (f" and {len(once) - _SHOWN} more" if len(once) > _SHOWN else "")


def _not_comparable(differing: Sequence[str], shared: frozenset[QuestionId]) -> str:
    """Why rows cannot be compared, with every remedy."""
    ways = ["name only files or folders that belong together: `icdsel compare PATH…`"]
    if any(_ON_A_SERVER in line for line in differing):
        ways.append("name no path: with --vlm-url, `icdsel compare` takes the rows of servers, without it the others")
    if not shared:
        ways.append("choose the rows over one set with --n or --set (in brackets)")
        ways.append("answer the same queries with every selector: `icdsel infer --n N`")
    if any(not line.startswith("different queries") for line in differing):
        ways.append("answer under the same settings: `icdsel infer` with the flags that differ")
        ways += ["compare all the same with --allow-different"] * bool(shared)
    return (
        "these rows cannot be compared as they are:\n  "
        + "\n  ".join(differing)
        + "\nWhat you can do:\n  - "
        + "\n  - ".join(ways)
    )


def _restricted(rows: Sequence[Answered], shared: frozenset[QuestionId]) -> list[Answered]:
    """The rows over the queries that every row has an answer to: a failed VLM call is not a wrong answer."""
    common = shared.intersection(*(row.scores.by_query for row in rows))
    if not common:
        raise RunError(
            "no query has an answer in every row, because calls failed: move the files away and repeat `icdsel infer`"
        )

    return [replace(row, scores=row.scores.among(common)) for row in rows]
