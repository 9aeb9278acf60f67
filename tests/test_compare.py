import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from icdsel.compare import ComparisonRow, compare, write_rows
from icdsel.errors import RunError
from icdsel.infer import predictions_dir
from icdsel.settings import Settings, load_settings

MADE_OF = {"data.seed": 42, "vlm.layout": "one-turn", "dataset": "abc", "split": "validation"}
Scores = Mapping[int, list[float]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"data": {"results_dir": str(tmp_path / "results")}})


def write(
    settings: Settings,
    name: str,
    scores: Scores,
    ids: list[int] | None = None,
    subset: str | None = None,
    failed: Collection[int] = (),
    **made_of: Any,
) -> Path:
    """Predictions as `infer` leaves them: for each number of shots one accuracy a query, or a failure."""
    folder = predictions_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(scores.values())))
    subset = subset or f"validation-{count}"
    lines = []
    for shots, accuracies in scores.items():
        for question_id, accuracy in zip(ids or range(100, 100 + count), accuracies, strict=True):
            made = {"error": "out of memory"} if question_id in failed else {"prediction": "yes", "accuracy": accuracy}
            lines.append({"question_id": question_id, "shots": shots, "icds": [], **made})
    path = folder / f"{name}_{subset}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    selector = name.split("-")[0] if name.startswith(("random", "policy")) else name
    identity = MADE_OF | {"selector": selector} | made_of
    side = {"identity": identity, "name": name, "set": subset, "failed": len(failed)}
    path.with_suffix(".meta.json").write_text(json.dumps(side))
    return path


def by_name(rows: list[ComparisonRow]) -> dict[tuple[str, int], ComparisonRow]:
    found = {(row.name, row.shots): row for row in rows}
    assert len(found) == len(rows)
    return found


# --- figures ----------------------------------------------------------------------------------------------


def test_rows_by_hand(settings: Settings) -> None:
    # The policy is better by 0.3 on each of the four queries, so every resample of the differences has the mean
    # 0.3: its interval has no width. The same holds for an accuracy that all queries have.
    write(settings, "random-42", {1: [0.0, 0.3, 0.6, 0.3], 2: [0.3] * 4})
    write(settings, "policy-run-rce_epoch5", {1: [0.3, 0.6, 0.9, 0.6], 2: [0.9] * 4}, checkpoint="f00")
    write(settings, "zero-shot", {0: [0.6] * 4})
    rows = compare(settings)
    # By shots, the best first.
    assert [(row.shots, row.name) for row in rows] == [
        (0, "zero-shot"),
        (1, "policy-run-rce_epoch5"),
        (1, "random-42"),
        (2, "policy-run-rce_epoch5"),
        (2, "random-42"),
    ]
    assert rows[3] == ComparisonRow(
        name="policy-run-rce_epoch5",
        selector="policy",
        shots=2,
        n=4,
        accuracy=90.0,
        low=90.0,
        high=90.0,
        reference="random-42",
        difference=60.0,
        difference_low=60.0,
        difference_high=60.0,
    )
    one = rows[1]
    assert (one.accuracy, one.n) == (60.0, 4)
    assert (one.difference, one.difference_low, one.difference_high) == (30.0, 30.0, 30.0)
    # Of four values 30, 60, 90, 60 a resample's mean may lie anywhere from 30 to 90; 95 % of them lie nearer.
    assert 30 <= one.low < 60 < one.high <= 90
    # The reference has no difference to itself, and none of no shots to compare with.
    for row in (rows[0], rows[2], rows[4]):
        assert (row.difference, row.difference_low, row.difference_high) == (None, None, None)
    assert {row.reference for row in rows} == {"random-42"}


def test_intervals_are_those_of_the_bootstrap_over_queries(settings: Settings) -> None:
    # A selector right on 50 of 100 queries: a resample's accuracy is Binomial(100, 1/2)/100. Against one that
    # is right on none the difference is the same.
    write(settings, "random-42", {2: [0.0] * 100})
    write(settings, "nearest-both", {2: [0.0, 1.0] * 50})
    row = by_name(compare(settings))["nearest-both", 2]
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.5)
    assert row.accuracy == row.difference == 50.0
    assert (row.low, row.high) == pytest.approx((low, high), abs=1)  # 10,000 resamples, steps of one point
    assert (row.difference_low, row.difference_high) == pytest.approx((low, high), abs=1)


def test_differences_are_paired_by_query_whatever_the_order_in_the_files(settings: Settings) -> None:
    # Query by query the second is better by exactly 0.1; paired by place in the file it would be anything.
    write(settings, "random-42", {1: [0.3, 0.0, 0.9]}, ids=[2, 1, 3])
    write(settings, "nearest-both", {1: [1.0, 0.4, 0.1]}, ids=[3, 2, 1])
    row = by_name(compare(settings))["nearest-both", 1]
    assert (row.difference, row.difference_low, row.difference_high) == (10.0, 10.0, 10.0)


def test_the_same_files_give_the_same_rows(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.0, 0.3, 0.6, 1.0]})
    write(settings, "nearest-both", {1: [0.3, 0.3, 1.0, 0.0]})
    assert compare(settings) == compare(settings)


# --- the reference ----------------------------------------------------------------------------------------


def test_a_reference_is_chosen_by_name(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 3, 2: [0.6] * 3})
    write(settings, "nearest-both", {1: [0.6] * 3, 2: [0.6] * 3})
    write(settings, "zero-shot", {0: [0.9] * 3})
    rows = by_name(compare(settings, reference="nearest-both"))
    assert rows["random-42", 1].difference == -30.0
    assert rows["random-42", 2].difference == 0.0
    assert rows["nearest-both", 1].difference is None
    # Zero-shot is compared with at every number of shots.
    rows = by_name(compare(settings, reference="zero-shot"))
    assert rows["random-42", 1].difference == -60.0
    assert rows["nearest-both", 2].difference == -30.0
    assert rows["zero-shot", 0].difference is None
    assert {row.reference for row in rows.values()} == {"zero-shot"}
    assert compare(settings, reference="random") == compare(settings)


def test_without_random_the_reference_is_zero_shot(settings: Settings) -> None:
    write(settings, "nearest-both", {1: [0.6] * 3})
    write(settings, "zero-shot", {0: [0.9] * 3})
    rows = by_name(compare(settings))
    assert rows["nearest-both", 1].reference == "zero-shot"
    assert rows["nearest-both", 1].difference == -30.0


def test_an_unknown_reference_lists_the_rows(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.6] * 3})
    write(settings, "zero-shot", {0: [0.9] * 3})
    with pytest.raises(RunError, match=r"no row 'oracle'.*random-42, zero-shot"):
        compare(settings, reference="oracle")


# --- several seeds ----------------------------------------------------------------------------------------


def test_seeds_get_a_row_of_their_mean_query_by_query(settings: Settings) -> None:
    write(settings, "random-1", {1: [0.0, 0.3, 0.3]})
    write(settings, "random-2", {1: [0.3, 0.6, 0.0]})
    write(settings, "random-3", {1: [0.6, 0.0, 0.6]})
    write(settings, "policy-v3_Run-grpo_epoch3", {1: [0.3, 0.3, 0.6]}, checkpoint="a")
    write(settings, "policy-v3_Run_train-seed-1-grpo_epoch3", {1: [0.9, 0.9, 0.6]}, checkpoint="b")
    rows = by_name(compare(settings))
    # The means by query are 0.3, 0.3, 0.3 and 0.6, 0.6, 0.6: neither interval has any width left.
    random_mean = rows["random (mean over seeds)", 1]
    assert (random_mean.selector, random_mean.n) == ("random", 3)
    assert (random_mean.accuracy, random_mean.low, random_mean.high) == (30.0, 30.0, 30.0)
    policy_mean = rows["policy-v3_Run-grpo_epoch3 (mean over seeds)", 1]
    assert (policy_mean.accuracy, policy_mean.low, policy_mean.high) == (60.0, 60.0, 60.0)
    # Where there is a mean over random seeds, differences are to it.
    assert policy_mean.reference == "random (mean over seeds)"
    assert (policy_mean.difference, policy_mean.difference_low, policy_mean.difference_high) == (30.0, 30.0, 30.0)
    assert random_mean.difference is None
    assert rows["random-1", 1].difference == pytest.approx(-10.0)
    assert len(rows) == 7


def test_runs_of_other_settings_are_no_seeds_of_each_other(settings: Settings) -> None:
    write(settings, "random-1", {1: [0.0, 0.3]})
    write(settings, "policy-v3_Run-rce_epoch5", {1: [0.3, 0.3]}, checkpoint="a")
    write(settings, "policy-v3_Run_kl-beta-0.1_train-seed-1-rce_epoch5", {1: [0.9, 0.9]}, checkpoint="b")
    write(settings, "policy-v3_Run_train-seed-1-grpo_epoch3", {1: [0.9, 0.9]}, checkpoint="c")
    assert not [row.name for row in compare(settings) if "mean" in row.name]


# --- what may be compared ---------------------------------------------------------------------------------


def test_different_queries_are_refused_by_name(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4}, ids=[1, 2, 3, 4])
    with pytest.raises(RunError) as told:
        compare(settings)
    for part in (
        "different queries",
        "4 queries: nearest-both [validation-4]",
        "4 queries: random-42 [validation-4]",
        "--n",
        "--set",
    ):
        assert part in str(told.value)


def test_n_chooses_among_predictions_over_several_sets(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4})
    write(settings, "random-42", {1: [0.0] * 7})
    write(settings, "nearest-both", {1: [0.9] * 7})
    with pytest.raises(RunError, match="7 queries"):
        compare(settings)
    four, seven = by_name(compare(settings, n=4)), by_name(compare(settings, n=7))
    assert (four["nearest-both", 1].n, four["nearest-both", 1].difference) == (4, 30.0)
    assert (seven["nearest-both", 1].n, seven["nearest-both", 1].difference) == (7, 90.0)
    with pytest.raises(RunError, match="5 queries"):
        compare(settings, n=5)


def test_different_settings_are_refused_by_name(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4}, **{"vlm.layout": "turns"})
    with pytest.raises(RunError) as told:
        compare(settings)
    for part in ("nearest-both", "random-42", "vlm.layout", "'turns'", "'one-turn'"):
        assert part in str(told.value)


def test_checkpoint_and_selector_may_differ(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "policy-a-rce_epoch1", {1: [0.6] * 4}, checkpoint="a")
    write(settings, "policy-b-rce_epoch1", {1: [0.6] * 4}, checkpoint="b")
    assert len(compare(settings)) == 3


def test_shots_choose_rows_and_zero_shot_always_stands(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 2, 2: [0.3] * 2, 4: [0.3] * 2})
    write(settings, "zero-shot", {0: [0.6] * 2})
    assert [row.shots for row in compare(settings)] == [0, 1, 2, 4]
    assert [row.shots for row in compare(settings, shots=[2, 4])] == [0, 2, 4]
    predictions_dir(settings).joinpath("zero-shot_validation-2.jsonl").unlink()
    with pytest.raises(RunError, match=r"no predictions at 3, 5 shots.*--shots"):
        compare(settings, shots=[3, 5])


def test_a_set_chooses_among_predictions_over_several(settings: Settings) -> None:
    # As many queries, but not the same.
    for subset, better in (("validation-3", 0.6), ("validation-random-42-3", 0.9)):
        ids = [1, 2, 3] if subset == "validation-3" else [1, 5, 9]
        write(settings, "random-42", {1: [0.3] * 3}, ids, subset)
        write(settings, "nearest-both", {1: [better] * 3}, ids, subset)
    with pytest.raises(RunError, match=r"random-42 \[validation-random-42-3\]"):
        compare(settings, n=3)
    assert by_name(compare(settings, subset="validation-3"))["nearest-both", 1].difference == 30.0
    assert by_name(compare(settings, subset="validation-random-42-3"))["nearest-both", 1].difference == 60.0
    with pytest.raises(RunError, match=r"of the set 'tuning-3'"):
        compare(settings, subset="tuning-3")


def test_a_failed_call_is_no_wrong_answer(settings: Settings) -> None:
    # The query is left out of all rows, so that they stay paired: of 0, 0.3, 0.6, 0.9 the second and the last
    # remain to the first row and of four times 0.6 two to the second.
    write(settings, "random-42", {1: [0.0, 0.3, 0.6, 0.9]}, failed=[100])
    write(settings, "nearest-both", {1: [0.6] * 4}, failed=[102])
    rows = by_name(compare(settings))
    assert (rows["random-42", 1].accuracy, rows["random-42", 1].n) == (60.0, 2)
    assert (rows["nearest-both", 1].accuracy, rows["nearest-both", 1].n) == (60.0, 2)
    assert rows["nearest-both", 1].difference == 0.0
    # n counts what was asked.
    assert by_name(compare(settings, n=4)) == rows
    write(settings, "zero-shot", {0: [0.6] * 4}, failed=[101, 103])
    with pytest.raises(RunError, match=r"no query was answered by every row.*--overwrite"):
        compare(settings)


def test_nothing_to_compare_says_how_to_make_it(settings: Settings) -> None:
    with pytest.raises(RunError, match=r"holds no predictions.*icdsel infer"):
        compare(settings)


def test_damaged_files_are_named(settings: Settings) -> None:
    path = write(settings, "random-42", {1: [0.3] * 3})
    path.write_text(path.read_text() + '{"question_id": 7}\n')
    with pytest.raises(RunError, match=r"random-42_validation-3\.jsonl, line 4"):
        compare(settings)
    path = write(settings, "random-42", {1: [0.3] * 3})
    path.with_suffix(".meta.json").unlink()
    with pytest.raises(RunError, match=r"random-42_validation-3\.meta\.json is missing"):
        compare(settings)


# --- the file ---------------------------------------------------------------------------------------------


def test_the_json_file_is_a_list_of_rows(settings: Settings, tmp_path: Path) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4})
    path = tmp_path / "made" / "table.json"
    write_rows(compare(settings), path)
    written = json.loads(path.read_text())
    assert written == [
        {
            "name": "nearest-both",
            "selector": "nearest-both",
            "shots": 1,
            "n": 4,
            "accuracy": 60.0,
            "low": 60.0,
            "high": 60.0,
            "reference": "random-42",
            "difference": 30.0,
            "difference_low": 30.0,
            "difference_high": 30.0,
            "metric": "official",
            "other_metrics": {},
        },
        {
            "name": "random-42",
            "selector": "random",
            "shots": 1,
            "n": 4,
            "accuracy": 30.0,
            "low": 30.0,
            "high": 30.0,
            "reference": "random-42",
            "difference": None,
            "difference_low": None,
            "difference_high": None,
            "metric": "official",
            "other_metrics": {},
        },
    ]


# --- named rows -------------------------------------------------------------------------------------------


def test_rows_that_are_named_stand_alone_and_seeds_of_one_name_are_their_mean(settings: Settings) -> None:
    one = write(settings, "policy-a-rce_epoch5", {1: [0.2, 0.4], 2: [1.0, 1.0]}, checkpoint="f00")
    two = write(settings, "policy-b-rce_epoch5", {1: [0.6, 0.4], 2: [0.0, 1.0]}, checkpoint="f01")
    seeds = [write(settings, f"random-{seed}", {1: [0.1, 0.3]}) for seed in (42, 43)]
    write(settings, "nearest-image", {1: [0.9, 0.9]})
    write(settings, "nearest-both", {1: [0.9] * 3})  # of other queries, but nobody asked for it
    names = {one: "lr=1", two: "lr=1"} | dict.fromkeys(seeds, "random")
    rows = by_name(compare(settings, names=names))
    assert {key: row.accuracy for key, row in rows.items()} == {
        ("lr=1", 1): 40.0,
        ("lr=1", 2): 75.0,
        ("random", 1): 20.0,
    }
    assert rows["lr=1", 1].difference == 20.0
    assert rows["lr=1", 1].reference == "random"
