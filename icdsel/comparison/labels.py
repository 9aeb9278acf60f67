"""Short names of rows for tables, where the names of runs would take all the space."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from icdsel.comparison.scores import Scores
from icdsel.comparison.sources import Source
from icdsel.records import Shots
from icdsel.selection import selector_named

_SEED = re.compile(r"(?:_train-|, )seed[- ]([0-9]+)")  # in a run's name, and as it is shown
_MOST_LISTED = 3  # numbers of runs


def row_labels(rows: Iterable[Scores], sources: Sequence[Source]) -> dict[str, str]:
    """The short name of each row by its title.

    A policy has the number or short name of its run, with the checkpoint only where there are several of the run; a
    mean has the number of its seeds. What a row chose from is left out, since tables have a column for it. Rows that
    could not be told apart keep their titles.

    Args:
        rows: The rows, means included.
        sources: The files of the rows.
    """
    rows, checkpoints = list(rows), {source.path: source.checkpoint for source in sources}
    labels = {row.title: row.title for row in rows}
    for with_checkpoint in (True, False):  # the shortest that is unique stays
        short = {row.title: _label(row, checkpoints, with_checkpoint) for row in rows}
        titles: dict[tuple[str, str | None, Shots], set[str]] = {}
        for row in rows:
            titles.setdefault((short[row.title], row.pool, row.shots), set()).add(row.title)
        clashing = set[str]().union(*(same for same in titles.values() if len(same) > 1))
        labels |= {title: label for title, label in short.items() if title not in clashing}
    return labels


def _label(row: Scores, checkpoints: dict[Path, Path | None], with_checkpoint: bool) -> str:
    parts = [_part(one, checkpoints, with_checkpoint) for one in row.seeds or (row,)]
    selector = selector_named(row.selector)
    if not row.seeds:
        name = parts[0]
    elif all(numbers := [re.search(r"\brun (\d+)", part) for part in parts]):
        listed = [number[1] for number in numbers if number]
        runs = ", ".join(listed) if len(listed) <= _MOST_LISTED else f"{listed[0]} to {listed[-1]}"
        name = f"{selector.name} runs {runs}, mean of {len(parts)}"
    else:
        name = f"{_SEED.sub('', selector.without_seed(parts[0]))}, mean of {len(parts)}"
    place = ", ".join(part for part in row.place.split(", ") if part != f"pool {row.pool}")
    return f"{name} @ {place}" if place else name


def _part(row: Scores, checkpoints: dict[Path, Path | None], with_checkpoint: bool) -> str:
    """The short name of a row that is no mean."""
    policy = checkpoints.get(row.path) if row.path else None
    name = selector_named(row.selector).short_name(row.name, policy)
    if name == row.name or policy is None:
        return name
    name = _SEED.sub(r", seed \1", name)
    return f"{name} {policy.stem.replace('_epoch', ' ')}" if with_checkpoint else name
