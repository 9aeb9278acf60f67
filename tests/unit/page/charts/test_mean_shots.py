"""The chart of scores by the mean number of ICDs, with rows of both kinds."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import QUERIES, make_settings, write_predictions

from icdsel.comparison.compare import Comparison, compare
from icdsel.page.build import write_page
from icdsel.page.charts.mean_shots import mean_shots_chart
from icdsel.page.content import collect

FIXED, DECIDED = "policy-a-rce_epoch1", {"auto": 2, "auto+1": 1}


@pytest.fixture
def rows(tmp_path: Path) -> Comparison:
    """Two fixed numbers of shots, two rows that decide (of 12 queries they show 2 to a half, and 1 to a half), zero."""
    settings = make_settings(tmp_path)
    count = len(QUERIES)
    predictions = {
        FIXED: [(1, 1, 0.6), (2, 2, 0.3), *((shots, most, 0.9) for shots, most in DECIDED.items())],
        "zero-shot": [(0, 0, 0.0)],
    }
    for name, own in predictions.items():
        lines = [
            {
                "question_id": i,
                "shots": shots,
                "prediction": "a",
                "accuracy": score,
                "prompt_tokens": 10 * count,
                "icds": [1, 2][:most] if isinstance(shots, int) or place % 2 else [],
            }
            for shots, most, score in own
            for place, i in enumerate(QUERIES)
        ]
        write_predictions(settings, name, lines)
    return compare(settings)


def test_a_selector_has_a_line_for_fixed_numbers_and_one_for_what_it_decides(rows: Comparison) -> None:
    names = dict.fromkeys(row.name for row in rows)
    chart = mean_shots_chart(rows, {name: name for name in names}, {name: i for i, name in enumerate(names)})
    assert chart is not None
    share = sum(place % 2 for place in range(len(QUERIES))) / len(QUERIES)
    drawn = [
        (group.get_label(), [*map(tuple, group.lines[0].get_xydata())]) for group in chart.figure.axes[0].containers
    ]
    assert dict(drawn) == {
        "zero-shot": [(0.0, 0.0)],
        FIXED: [(1.0, 60.0), (2.0, 30.0)],
        f"{FIXED}, auto": [(share, 90.0), (2 * share, 90.0)],
    }
    assert len(chart.columns) == len(chart.table[0])
    assert "(auto+1): 90.0" in chart.summary or "(auto): 90.0" in chart.summary


def test_without_a_row_that_decides_there_is_no_chart(rows: Comparison) -> None:
    fixed = [row for row in rows if isinstance(row.shots, int)]
    names = dict.fromkeys(row.name for row in fixed)
    assert mean_shots_chart(fixed, {name: name for name in names}, {name: i for i, name in enumerate(names)}) is None


def test_the_page_shows_rows_that_decide(rows: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    content = collect(make_settings(tmp_path), replace(rows))
    write_page(content, page)
    text = page.read_text()
    assert '<option value="auto+1">auto+1</option>' in text
    assert "by the mean number of demonstrations" in text
