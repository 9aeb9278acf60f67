from dataclasses import replace
from pathlib import Path

import pytest

from icdsel.records import Example
from icdsel.tasks.base import TASKS, bounds_of, majority_answer
from icdsel.tasks.vqa_accuracy import VARIANTS

QUERY = Example(1, 1, Path("1.png"), "What do they do?", "ride", ("ride",) * 5 + ("bike",) * 5)


def test_the_metrics_of_the_task_are_the_variants_the_one_for_any_data_first() -> None:
    task = TASKS["vqa"]
    assert task.default_metric == "normalised" and list(task.metrics) == list(VARIANTS)
    assert {name: metric.score("riding", QUERY) for name, metric in task.metrics.items()} == {
        "normalised": 0.0,
        "official": 0.0,
        "openflamingo": 0.0,
        "lemmatised": 1.0,
    }
    assert [metric.score("ride", QUERY) for metric in task.metrics.values()] == [1.0] * 4


def test_stemmed_answers_match_as_people_wrote_them() -> None:
    # As OK-VQA stores them.
    query = replace(QUERY, answers=("ride",) * 10, raw_answers=("riding",) * 10)
    scores = {name: metric.score("riding", query) for name, metric in TASKS["vqa"].metrics.items()}
    assert scores == {"normalised": 1.0, "official": 0.0, "openflamingo": 0.0, "lemmatised": 1.0}
    assert TASKS["vqa"].references(query) == {"riding": 1.0, "ride": 1.0}
    found = TASKS["vqa"].relevance("riding", query)
    assert found is not None and found.score == 1.0


def test_an_accuracy_above_0_is_correct_and_shown_in_points() -> None:
    task = TASKS["vqa"]
    assert task.correctness is not None
    assert [task.correctness.is_correct(score) for score in (0.0, 0.3, 1.0)] == [False, True, True]
    assert (task.text(0.5312), task.unit) == ("53.1", "points")


def test_an_unknown_task_has_no_bounds() -> None:
    assert bounds_of("vqa") == (0, 1)
    with pytest.raises(ValueError, match="unknown task 'vaq': did you mean 'vqa'"):
        bounds_of("vaq")


def test_majority_answer_takes_the_first_seen_of_equally_common_ones():
    assert majority_answer(["a", "b", "c", "b"]) == "b"
    assert majority_answer(["owl", "cat", "cat", "owl", "dog"]) == "owl"
