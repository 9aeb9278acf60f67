"""Numbers in texts, and how their distance is scored."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icdsel.records import Example
from icdsel.tasks import TASKS
from icdsel.tasks.corpus import Judged
from icdsel.tasks.number import MAE, absolute_error
from icdsel.tasks.numerals import number_in

TASK = TASKS["number"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("about 3,500.5 people", 3500.5),
        ("-2", -2),
        ("\u22122", -2),
        ("minus two", -2),
        ("1e3", 1000),
        ("1.5E-2", 0.015),
        (".5", 0.5),
        ("10.", 10),
        ("3/4", 0.75),
        ("3/4/2020", 3),
        ("7/0", 7),
        ("3\u202f500", 3500),
        ("\u0663", 3),
        ("$1,200.", 1200),
        ("50%", 50),
        ("5km", 5),
        ("2.5 million", 2_500_000),
        ("2010-2015", 2010),
        ("3 or 4", 3),
        ("3, 4", 3),
        ("None.", 0),
        ("zero", 0),
        ("Twelve", 12),
        ("seventeen", 17),
        ("twenty-five men", 25),
        ("sixty one", 61),
        ("a hundred and one", 101),
        ("two thousand and twenty", 2020),
        ("five million two hundred thousand", 5_200_000),
        ("two three", 2),
        ("twenty twelve", 20),
        ("one hundred two hundred", 102),
        ("two thousand three million", 2003),
    ],
)
def test_numbers_that_are_read(text: str, value: float) -> None:
    assert number_in(text) == value


@pytest.mark.parametrize("text", ["", "no", "none of them", "someone", "B2", "v1.2", "inf", "nan", "1e999", "third"])
def test_texts_without_a_number(text: str) -> None:
    assert number_in(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_every_number_that_python_writes_is_read_back(value: float) -> None:
    assert number_in(repr(value)) == value
    assert number_in(f"it is {value:,.2f} metres") == float(f"{value:.2f}")


@given(st.text())
def test_any_text_may_be_read(text: str) -> None:
    number_in(text)


def scores(prediction: str, *answers: str) -> dict[str, float]:
    query = Example(1, 1, Path("1.png"), "how many?", answers[0], answers)
    return {name: metric.score(prediction, query) for name, metric in TASK.metrics.items()}


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "tolerance", "error"),
    [
        ("3,500", "3500.0", 1, 1, 1),
        ("105", "100", 0, 1, 1 / 1.05),
        ("1.05", "1", 0, 1, 1 / 1.05),
        ("106", "100", 0, 0, 1 / 1.06),
        ("200", "100", 0, 0, 0.5),
        ("0.01", "0", 0, 0, 1 / 1.01),
        ("zero", "0", 1, 1, 1),
        ("-100", "100", 0, 0, 1 / 3),
        ("many", "100", 0, 0, 0),
        ("The Netherlands", "netherlands", 1, 1, 1),
        ("3", "netherlands", 0, 0, 0),
    ],
)
def test_scores(prediction: str, answer: str, exact: float, tolerance: float, error: float) -> None:
    expected = {"exact": exact, "tolerance": tolerance, "error": error}
    assert scores(prediction, answer) == pytest.approx(expected, abs=1e-12)


def test_the_answer_that_fits_best_counts() -> None:
    assert scores("10", "20", "11", "many")["error"] == pytest.approx(1 / (1 + 1 / 11))


@given(*[st.floats(allow_nan=False, allow_infinity=False)] * 2)
def test_scores_stay_within_bounds(prediction: float, answer: float) -> None:
    assert all(0 <= score <= 1 for score in scores(repr(prediction), repr(answer)).values())


def test_only_a_full_score_is_a_right_number() -> None:
    assert (TASK.is_correct(1.0), TASK.is_correct(0.99), TASK.is_correct(0.0)) == (True, False, False)


def test_the_absolute_error_is_in_the_unit_of_the_data() -> None:
    assert absolute_error("about 3,500", "3510 people") == 10
    assert absolute_error("many", "3") is None and absolute_error("3", "many") is None


def test_spellings_of_one_number_are_equal() -> None:
    assert TASK.normalize("3,500") == TASK.normalize("3500.0") != TASK.normalize("350")
    assert TASK.normalize("The Netherlands") == "netherlands"
    query = Example(1, 1, Path("1.png"), "how many?", "3", ("3", "3", "three"))
    assert TASK.references(query) == {"3": 1.0, "three": 1.0}


def test_the_mean_absolute_error_leaves_out_predictions_without_a_number() -> None:
    query = Example(1, 1, Path("1.png"), "How many?", "10", ("10", "12"))
    said = ["about 11.5", "nine", "many", "20"]
    statistics = [MAE.statistic(Judged(text), query) for text in said]
    assert statistics == [(0.5, 1.0), (1.0, 1.0), (0.0, 0.0), (8.0, 1.0)]
    counts = np.array([[1, 1, 1, 1], [2, 1, 0, 0], [0, 0, 4, 0]], dtype=float)
    assert MAE.value(statistics, counts).tolist() == pytest.approx([9.5 / 3, 2 / 3, 9.5 / 3])
    assert MAE.statistic(Judged("3"), Example(1, 1, Path("1.png"), "How many?", "few", ("few",))) is None
