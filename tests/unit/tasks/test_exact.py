"""Exact match: what is ignored, and what is not."""

from pathlib import Path

import pytest

from icdsel.records import Example
from icdsel.tasks import TASKS
from icdsel.tasks.exact import cased_form, plain_form

TASK = TASKS["exact"]


def scores(prediction: str, *answers: str, written: tuple[str, ...] = ()) -> dict[str, float]:
    query = Example(1, 1, Path("1.png"), "what?", answers[0], answers, written)
    return {name: metric.score(prediction, query) for name, metric in TASK.metrics.items()}


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "cased", "verbatim"),
    [
        (" red ball\n", "red ball", 1, 1, 1),
        ("Red ball", "red ball", 1, 0, 0),
        ("the red,  ball.", "red ball", 1, 1, 0),
        ("The Red-Ball!", "red ball", 1, 0, 0),
        ("red balls", "red ball", 0, 0, 0),
        ("", "red ball", 0, 0, 0),
    ],
)
def test_each_metric_ignores_what_it_says(prediction: str, answer: str, exact: int, cased: int, verbatim: int) -> None:
    assert scores(prediction, answer) == {"exact": exact, "cased": cased, "verbatim": verbatim}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the U.S.", "US"),
        ("don\u2019t", "dont"),
        ("red/blue", "red blue"),
        ("1,000", "1000"),
        ("\u22125", "-5"),
        ("\uff21\uff22", "AB"),
        ("A.", "a"),
    ],
)
def test_spellings_of_one_answer_are_equal(one: str, other: str) -> None:
    assert plain_form(one) == plain_form(other)


@pytest.mark.parametrize(("one", "other"), [("3.5", "35"), ("-5", "5"), ("1,5", "15"), ("C++", "C"), ("A", "the")])
def test_signs_of_numbers_and_lone_articles_count(one: str, other: str) -> None:
    assert plain_form(one) != plain_form(other)


def test_a_text_of_punctuation_alone_keeps_it() -> None:
    assert (cased_form("?"), cased_form(" ")) == ("?", "")


def test_any_answer_matches_as_stored_or_as_written() -> None:
    assert scores("riding", "ride", "walk", written=("riding", "walking"))["exact"] == 1
    assert scores("walk", "ride", "walk", written=("riding", "walking"))["exact"] == 1


def test_references_are_the_distinct_answers_as_written_and_a_match_is_correct() -> None:
    query = Example(1, 1, Path("1.png"), "what?", "ride", ("ride", "ride", "walk"), ("riding", "riding", "walk"))
    assert TASK.references(query) == {"riding": 1.0, "walk": 1.0}
    assert (TASK.is_correct(1.0), TASK.is_correct(0.0)) == (True, False)
    near = TASK.relevance("riding it", query)
    assert near is not None and 0 < near.score < 1
    assert TASK.normalize("The Ride") == "ride"
