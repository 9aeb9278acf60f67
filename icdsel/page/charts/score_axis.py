"""How far an axis of scores reaches."""

import math
from collections.abc import Sequence

from icdsel.comparison.compare import ComparisonRow
from icdsel.tasks.base import TASKS

_NEAR = 1 / 3  # as a share of the range of scores


def score_limits(rows: Sequence[ComparisonRow]) -> tuple[float | None, float | None]:
    """The limits of an axis of the rows' scores, as they are displayed; None where what is drawn decides.

    They are the bounds of the task. An upper bound that nothing comes near is left out, since all rows would look the
    same: a good CIDEr-D is a tenth of what a caption can reach.
    """
    task = TASKS.named(rows[0].task)
    lowest, highest = (task.factor * bound if math.isfinite(bound) else None for bound in task.bounds)
    drawn = max(row.drawn_interval[1] for row in rows)
    if lowest is not None and highest is not None and drawn - lowest < _NEAR * (highest - lowest):
        highest = None
    return lowest, highest
