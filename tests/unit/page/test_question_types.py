"""The headline's rows by type of question, against figures computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import QUERIES, make_settings, write_predictions

from icdsel.comparison.compare import Comparison, compare
from icdsel.comparison.headline import headlines
from icdsel.comparison.statistics import holm, permutation_pvalue
from icdsel.page.question_types import FEWEST, MOST_TYPES, by_type
from icdsel.records import Example

POLICY = [1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0]
NEAREST = [0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0.6]


def compared(folder: Path, policy: list[float] = POLICY, nearest: list[float] = NEAREST) -> Comparison:
    settings = make_settings(folder)
    for name, scores in (
        ("policy-a-rce_epoch1", policy),
        ("nearest-both", nearest),
        ("random-42", [0.0] * len(policy)),
    ):
        rows = [
            {"question_id": i, "shots": 1, "icds": [1], "prediction": "a", "accuracy": score}
            for i, score in zip(QUERIES, scores, strict=False)
        ]
        write_predictions(settings, name, rows)
    return compare(settings)


def queries(count: int, **types: list[str]) -> dict[int, Example]:
    made = [Example(i, i, Path(f"{i}.png"), "What is it?", "a", ("a",)) for i in QUERIES[:count]]
    return {
        e.question_id: replace(e, **{name: values[place] for name, values in types.items()})
        for place, e in enumerate(made)
    }


def test_every_line_is_that_of_its_queries_alone(tmp_path):
    comparison = compared(tmp_path)
    lead = headlines(comparison)[0]
    assert lead.baseline.name == "nearest-both"
    kinds = ["number"] * 7 + ["other"] * 5
    (table,) = by_type(comparison, lead, queries(12, answer_type=kinds))
    assert table.kind == "type of answer"
    assert [(line.name, line.baseline.n) for line in table.lines] == [("number", 7), ("other", 5)]
    pvalues = []
    for line, own in zip(table.lines, (slice(0, 7), slice(7, 12)), strict=True):
        ours, theirs = np.array(POLICY[own]), np.array(NEAREST[own])
        assert line.policy.accuracy == pytest.approx(100 * ours.mean(), abs=1e-3)
        assert line.baseline.accuracy == pytest.approx(100 * theirs.mean(), abs=1e-3)
        assert line.policy.difference == pytest.approx(100 * (ours - theirs).mean(), abs=1e-3)
        assert line.policy.difference_low <= line.policy.difference <= line.policy.difference_high
        assert (line.policy.wins, line.policy.losses) == ((ours > theirs).sum(), (ours < theirs).sum())
        pvalues.append(line.policy.p_value)
        assert line.policy.p_value == pytest.approx(permutation_pvalue(ours - theirs, seed=42), abs=0.02)
    assert [line.policy.p_holm for line in table.lines] == pytest.approx(holm(pvalues).tolist())


def test_the_lines_of_all_queries_give_the_headline(tmp_path):
    comparison = compared(tmp_path)
    lead = headlines(comparison)[0]
    baseline, policy = comparison.among(comparison.query_ids, lead.baseline, lead.policy)
    for name in ("n", "accuracy", "low", "high"):
        assert getattr(baseline, name) == getattr(lead.baseline, name)
        assert getattr(policy, name) == getattr(lead.policy, name)
    for name in ("difference", "difference_low", "difference_high", "p_value", "wins", "losses", "ties"):
        assert getattr(policy, name) == getattr(lead.policy, name)


def test_types_that_do_not_distinguish_the_queries_have_no_table(tmp_path):
    comparison = compared(tmp_path)
    lead = headlines(comparison)[0]
    same, two = ["other"] * 12, ["what colour"] * 6 + ["how many"] * 6
    kinds = [table.kind for table in by_type(comparison, lead, queries(12, answer_type=same, question_type=two))]
    assert kinds == ["type of question"]
    kinds = [table.kind for table in by_type(comparison, lead, queries(12, answer_type=two, question_type=two))]
    assert kinds == ["type of answer", "type of question"]
    assert by_type(comparison, lead, queries(12)) == []  # all begin alike
    assert by_type(comparison, lead, {}) == []  # without the dataset


def test_without_types_questions_are_split_by_their_first_words(tmp_path):
    comparison = compared(tmp_path)
    asked = queries(12, question=["What is that?"] * 6 + ["how many, then?"] * 6)
    (table,) = by_type(comparison, headlines(comparison)[0], asked)
    assert table.kind == "first words of the question"
    assert [line.name for line in table.lines] == ["how many", "what is"]  # equally many: by name


def test_rare_types_share_the_last_line(tmp_path):
    size = FEWEST * (MOST_TYPES + 2) + 3
    names = [f"type {place:02}" for place in range(MOST_TYPES + 2) for _ in range(FEWEST)] + ["rare", "seldom", ""]
    comparison = compared(tmp_path, ([1.0, 0.0] * size)[:size], ([0.0, 1.0, 1.0, 0.0] * size)[:size])
    (table,) = by_type(comparison, headlines(comparison)[0], queries(size, answer_type=names))
    assert [line.name for line in table.lines[:-1]] == [f"type {place:02}" for place in range(MOST_TYPES)]
    assert table.lines[-1].name == "all others (5 types)"  # two without space, two rare ones, and none
    assert sum(line.baseline.n for line in table.lines) == size
    one = ["number"] * 9 + ["yes/no"] * 3
    (table,) = by_type(compared(tmp_path), headlines(compared(tmp_path))[0], queries(12, answer_type=one))
    assert [(line.name, line.baseline.n) for line in table.lines] == [("number", 9), ("yes/no", 3)]


def test_without_a_policy_only_the_baseline_is_split(tmp_path):
    settings = make_settings(tmp_path)
    for name, score in (("nearest-both", 1.0), ("random-42", 0.0)):
        rows = [{"question_id": i, "shots": 1, "icds": [1], "prediction": "a", "accuracy": score} for i in QUERIES[:12]]
        write_predictions(settings, name, rows)
    comparison = compare(settings)
    kinds = ["number"] * 6 + ["other"] * 6
    (table,) = by_type(comparison, headlines(comparison)[0], queries(12, answer_type=kinds))
    assert [(line.baseline.accuracy, line.policy) for line in table.lines] == [(100, None)] * 2


def test_a_row_that_decides_how_many_it_shows_says_how_often_none(tmp_path):
    settings = make_settings(tmp_path)
    for name, shots, scores in (
        ("policy-a-rce_epoch1", "auto", [0.3] * 12),
        ("policy-b-rce_epoch1", 1, POLICY),
        ("nearest-both", 1, NEAREST),
    ):
        rows = [
            {"question_id": i, "shots": shots, "icds": [1] * (place % 3 > 0), "prediction": "a", "accuracy": score}
            for place, (i, score) in enumerate(zip(QUERIES, scores, strict=False))
        ]
        write_predictions(settings, name, rows)
    comparison = compare(settings)
    lead = headlines(comparison)[0]
    assert lead.policy.name == "policy-b-rce_epoch1"
    (table,) = by_type(comparison, lead, queries(12, answer_type=["number"] * 7 + ["other"] * 5))
    assert [line.decided.shown_none for line in table.lines] == pytest.approx([300 / 7, 20], abs=1e-3)
    assert [line.decided.accuracy for line in table.lines] == [30, 30]
    # If the headline's policy is such a row itself, it is not shown twice.
    own = replace(lead, policy=next(row for row in comparison if row.shots == "auto"))
    (table,) = by_type(comparison, own, queries(12, answer_type=["number"] * 7 + ["other"] * 5))
    assert [line.decided for line in table.lines] == [None, None]
    assert [line.policy.shown_none for line in table.lines] == pytest.approx([300 / 7, 20], abs=1e-3)
