"""Short names of rows, because the long names of runs would take all the space of a page."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from icdsel.comparison.compare import MEAN, ComparisonRow
from icdsel.console import shown
from icdsel.selection import POLICY
from icdsel.settings.names import every_setting

_SETTING = "|".join(sorted({name.replace("_", "-") for _, name, _ in every_setting()}))
# Where the next setting begins in the name of a run; a value may contain underscores itself.
_NEXT = re.compile(rf"_(?=(?:no-)?(?:{_SETTING})(?:[-_]|$))")


def row_labels(rows: Sequence[ComparisonRow], pairs: Iterable[str]) -> dict[str, str]:
    """The shortest unique name for each row's name; for a mean with the number of its seeds.

    What a row chose from (`, pool 64`) is part of it only where it distinguishes rows.

    Args:
        rows: The comparison.
        pairs: `<Sampler>_<Model>` of the predictions.
    """
    known = sorted(set(pairs), key=lambda pair: (-len(pair), pair))
    seeds: dict[str, int] = {}
    pools = {row.name: row.pool for row in rows}
    for row in rows:
        seeds[row.name] = max(row.seeds, seeds.get(row.name, 1))
    labels = {name: shown(name) for name in seeds}
    for checkpoints in (True, False):
        short = {name: short_name(name, known, checkpoints) for name in seeds}
        shorter = {
            name: shown(without_pool(short[name], pools[name])) + seeds_of(count) for name, count in seeds.items()
        }
        counts = Counter((label, pools[name]) for name, label in shorter.items())
        labels |= {name: label for name, label in shorter.items() if counts[label, pools[name]] == 1}
    again = Counter(labels.values())
    return {name: label if again[label] == 1 else with_pool(label, pools[name]) for name, label in labels.items()}


def with_pool(label: str, pool: str | None) -> str:
    """A short name with what its row chose from."""
    return f"{without_pool(label, pool)}, pool {pool}" if pool else label


def without_pool(label: str, pool: str | None) -> str:
    """A name without what its row chose from, for places that show the pool beside it."""
    return label.removesuffix(f" @ pool {pool}").removesuffix(f", pool {pool}")


def seeds_of(count: int) -> str:
    """The suffix of the name of a mean, on the same line; empty for a single row."""
    return f" ({count}\N{NO-BREAK SPACE}seeds)" if count > 1 else ""


def short_name(name: str, pairs: Iterable[str], checkpoint: bool = True) -> str:
    """A row's name without what all runs of these samplers and models have in common.

    Args:
        name: `policy-v3_<Sampler>_<Model>_grpo-epochs-3_freeze-backbone-grpo_epoch3`, or of any other selector.
        pairs: `<Sampler>_<Model>`.
        checkpoint: Whether to name it, as in `policy: grpo-epochs-3, freeze-backbone, grpo_epoch3`; a run with
            default settings names it anyway.
    """
    name, at, place = name.partition(" @ ")
    bare, end = name.removesuffix(MEAN), f"{at}{place}"
    for pair in pairs:
        if run := re.fullmatch(rf"{POLICY.name}-v3_{re.escape(pair)}(?:_(.+))?-([a-z]+_epoch\d+)", bare):
            settings = [_NEXT.sub(", ", run[1])] if run[1] else []
            return f"{POLICY.name}: {', '.join(settings + [run[2]] * (checkpoint or not settings))}{end}"
    return re.sub(rf"^{POLICY.name}-", f"{POLICY.name}: ", bare) + end
