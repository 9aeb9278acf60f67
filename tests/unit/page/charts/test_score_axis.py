"""The limits of axes of scores."""

import math

import pytest
from toy_task import Letters

from icdsel.comparison.compare import ComparisonRow
from icdsel.page.charts.score_axis import score_limits
from icdsel.tasks.base import TASKS


@pytest.mark.parametrize(
    ("task", "highest", "limits"),
    [
        ("vqa", 60.0, (0, 100)),
        ("vqa", 34.0, (0, 100)),
        ("vqa", 33.0, (0, None)),
        ("caption", 250.0, (0, None)),
        ("caption", 400.0, (0, 1000)),
    ],
)
def test_an_upper_bound_far_above_all_rows_is_left_out(task: str, highest: float, limits: tuple[float, float]) -> None:
    metric = TASKS[task].default_metric
    rows = [
        ComparisonRow(name, "random", 1, 9, 20.0, 10.0, high, "a", None, None, None, metric, {}, task=task)
        for name, high in (("a", 20.0), ("b", highest))
    ]
    assert score_limits(rows) == limits


class Unbounded(Letters):
    bounds = (-math.inf, math.inf)


def test_bounds_that_are_not_there_limit_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "letters", Unbounded())
    rows = [ComparisonRow("a", "random", 1, 9, -5.0, -9.0, 60.0, "a", None, None, None, "leading", {}, task="letters")]
    assert score_limits(rows) == (None, None)
