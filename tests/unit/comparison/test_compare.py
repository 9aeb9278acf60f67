import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from toy_task import Letters
from typer.testing import CliRunner

from icdsel.artefacts.predictions import predictions_dir
from icdsel.cli.app import app
from icdsel.comparison.compare import ComparisonRow, compare, learned_and_worse, write_rows
from icdsel.comparison.headline import headlines
from icdsel.comparison.tables import p_text, screen_tables, stars, write_csv, write_markdown
from icdsel.errors import RunError
from icdsel.settings.loading import Settings, load_settings, with_values
from icdsel.tasks.base import TASKS

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
    folder: Path | None = None,
    asked_with: Mapping[str, Mapping[str, Any]] | None = None,
    per_image: int | None = 1,
    **inputs: Any,
) -> Path:
    """Predictions as `infer` leaves them: for each number of shots one accuracy a query, or a failure.

    `per_image` neighbouring queries are on one image; None for files from before images were recorded.
    """
    folder = folder or predictions_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(scores.values())))
    subset = subset or f"validation-{count}"
    lines = []
    for shots, accuracies in scores.items():
        for question_id, accuracy in zip(ids or range(100, 100 + count), accuracies, strict=True):
            made = {"error": "out of memory"} if question_id in failed else {"prediction": "yes", "accuracy": accuracy}
            image = {} if per_image is None else {"image_id": question_id // per_image}
            lines.append({"question_id": question_id, **image, "shots": shots, "icds": [], **made})
    path = folder / f"{name}_{subset}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    selector = name.split("-")[0] if name.startswith(("random", "policy")) else name
    identity = MADE_OF | {"selector": selector} | inputs
    side = {"identity": identity, "name": name, "set": subset, "failed": len(failed), "settings": asked_with or {}}
    path.with_suffix(".meta.json").write_text(json.dumps(side))
    return path


def printed(rows: list[ComparisonRow], width: int = 120) -> str:
    """The tables as a terminal of this width shows them."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(screen_tables(rows))
    return console.export_text()


def by_name(rows: list[ComparisonRow]) -> dict[tuple[str, int], ComparisonRow]:
    found = {(row.name, row.shots): row for row in rows}
    assert len(found) == len(rows)
    return found


# --- figures ----------------------------------------------------------------------------------------------


def test_rows_by_hand(settings: Settings) -> None:
    # The policy is better by 0.3 on each of the four queries at 1 shot, by 0.6 at 2.
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
        low=rows[3].low,
        high=rows[3].high,
        reference="random-42",
        difference=60.0,
        # Around 4/5 of 60, as if half a query were won and half lost by √((4·0.6² + 1)/5) = 0.6986, with Student's
        # quantile for 3 degrees of freedom: 48 ± 3.1824·69.86/5.
        difference_low=pytest.approx(48 - 44.46, abs=0.01),
        difference_high=pytest.approx(48 + 44.46, abs=0.01),
        metric="normalised",
        correct=100.0,
        p_value=rows[3].p_value,
        p_holm=rows[3].p_holm,
        detectable=None,  # of four queries nothing is detected
        wins=4,
        losses=0,
        ties=0,
        mcnemar_p=1.0,  # both are right on all queries
        asked=4,
        files=(str(predictions_dir(settings) / "policy-run-rce_epoch5_validation-4.jsonl"),),
        label="policy-run-rce_epoch5",
        images=4,
        mean_shots=2.0,
        shown_none=0.0,
    )
    # Four equal scores leave an interval of their own: a fifth query may be wrong.
    assert 0 < rows[3].low < 60 and 90 < rows[3].high <= 100
    # Two of the 16 ways to flip four signs are as extreme, at 1 shot and at 2: Holm doubles the smaller.
    assert rows[1].p_value == rows[3].p_value == pytest.approx(2 / 16, abs=0.01)
    assert rows[1].p_holm == rows[3].p_holm == 2 * rows[1].p_value
    one = rows[1]
    assert (one.accuracy, one.n) == (60.0, 4)
    assert one.difference == 30.0 and one.difference_low < 0 < one.difference_high
    assert 0 < one.low < 60 < one.high < 100
    # The reference has no difference to itself, and none of no shots to compare with.
    for row in (rows[0], rows[2], rows[4]):
        assert (row.difference, row.difference_low, row.difference_high) == (None, None, None)
        assert (row.p_value, row.p_holm, row.detectable, row.wins, row.mcnemar_p) == (None,) * 5
    assert {row.reference for row in rows} == {"random-42"}


def test_intervals_of_right_and_wrong_answers_are_wilsons(settings: Settings) -> None:
    write(settings, "random-42", {2: [0.0] * 100})
    write(settings, "nearest-both", {2: [0.0, 1.0] * 50})
    rows = by_name(compare(settings))
    for name, right in (("nearest-both", 50), ("random-42", 0)):
        row = rows[name, 2]
        wilson = stats.binomtest(right, 100).proportion_ci(method="wilson")
        # With the unbiased variance, so by about a two-hundredth wider.
        assert (row.low, row.high) == pytest.approx((100 * wilson.low, 100 * wilson.high), abs=0.06)
    # Against a selector that is right on none, the difference has Student's interval, nearly.
    row = rows["nearest-both", 2]
    width = stats.t.ppf(0.975, 99) * np.sqrt(0.25 / 99) * 100
    assert (row.difference_low, row.difference_high) == pytest.approx((50 - width, 50 + width), abs=0.6)


def test_questions_on_one_image_count_together(settings: Settings) -> None:
    # Ten images with five questions each, all of them right or none: as much is known as from ten queries.
    rng = np.random.default_rng(1)
    by_image = {name: rng.random(10) < share for name, share in (("random-42", 0.4), ("nearest-both", 0.7))}
    for count, per_image in ((10, 1), (50, 5)):
        for name, right in by_image.items():
            scores = np.repeat(right, count // 10).astype(float).tolist()
            write(settings, name, {1: scores}, ids=list(range(100, 100 + count)), per_image=per_image)
    few, many = (by_name(compare(settings, n=count))["nearest-both", 1] for count in (10, 50))
    assert (few.images, many.images, many.n) == (10, 10, 50)
    assert (many.accuracy, many.difference) == (few.accuracy, few.difference)
    assert many.p_value == pytest.approx(few.p_value, abs=0.02)
    assert many.mcnemar_p == pytest.approx(few.mcnemar_p, abs=0.02)
    assert many.difference_high - many.difference_low == pytest.approx(
        few.difference_high - few.difference_low, rel=0.1
    )
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.2)
    assert "drawn by image: 50 on 10" in printed([many]).replace("\n ", " ")


def test_files_without_images_count_their_queries_as_independent_and_the_table_says_so(settings: Settings) -> None:
    scores = np.random.default_rng(0).choice([0.0, 1.0], 40).tolist()
    write(settings, "random-42", {1: scores}, per_image=None)
    write(settings, "nearest-both", {1: scores[::-1]}, per_image=None)
    unknown = compare(settings)
    assert {row.images for row in unknown} == {None}
    assert "do not say which queries share an image" in " ".join(printed(list(unknown)).split())
    # One file that says it is enough: the image is that of the query.
    write(settings, "nearest-both", {1: scores[::-1]}, per_image=1)
    known = compare(settings)
    assert {row.images for row in known} == {40}
    assert "share an image" not in printed(list(known))
    assert [(row.low, row.p_value) for row in known] == [(row.low, row.p_value) for row in unknown]


def test_differences_are_paired_by_query_whatever_the_order_in_the_files(settings: Settings) -> None:
    # Query by query the second is better by exactly 0.1; paired by place in the file it would be anything.
    write(settings, "random-42", {1: [0.3, 0.0, 0.9]}, ids=[2, 1, 3])
    write(settings, "nearest-both", {1: [1.0, 0.4, 0.1]}, ids=[3, 2, 1])
    row = by_name(compare(settings))["nearest-both", 1]
    assert (row.difference, row.wins, row.losses) == (10.0, 3, 0)


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


def test_a_reference_without_its_seed_is_the_mean_over_seeds(settings: Settings) -> None:
    for seed, accuracy in ((43, 0.3), (44, 0.9)):
        write(settings, f"policy-a_train-seed-{seed}-rce_epoch1", {1: [accuracy] * 4}, checkpoint=str(seed))
    write(settings, "random-42", {1: [0.3] * 4})
    row = by_name(compare(settings, reference="policy-a-rce_epoch1"))["random-42", 1]
    assert (row.reference, row.difference) == ("policy-a-rce_epoch1 (mean over seeds)", -30.0)


def test_rows_of_a_selector_that_is_not_installed_are_compared(settings: Settings) -> None:
    for seed in (1, 2):
        write(settings, f"theirs-{seed}", {1: [0.6] * 4}, selector="theirs")
    write(settings, "random-42", {1: [0.3] * 4})
    assert by_name(compare(settings))["theirs (mean over seeds)", 1].difference == 30.0


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
    # The means by query are 0.3, 0.3, 0.3 and 0.6, 0.6, 0.6; but other seeds would give other means.
    random_mean = rows["random (mean over seeds)", 1]
    assert (random_mean.selector, random_mean.n) == ("random", 3)
    assert random_mean.accuracy == 30.0 and random_mean.low < 20 and random_mean.high > 40
    policy_mean = rows["policy-v3_Run-grpo_epoch3 (mean over seeds)", 1]
    assert policy_mean.accuracy == 60.0 and policy_mean.low < 40 and policy_mean.high > 80
    # Where there is a mean over random seeds, differences are to it.
    assert policy_mean.reference == "random (mean over seeds)"
    assert policy_mean.difference == 30.0 and policy_mean.difference_low < 0 < policy_mean.difference_high
    assert policy_mean.seed_share is not None and 0 < policy_mean.seed_share <= 1
    assert random_mean.difference is None
    # The range over the seeds: 0.2, 0.3 and 0.4; 0.4 and 0.8.
    assert (random_mean.seeds, random_mean.seed_low, random_mean.seed_high) == (3, 20.0, 40.0)
    assert (policy_mean.seeds, policy_mean.seed_low, policy_mean.seed_high) == (2, 40.0, 80.0)
    # Every policy seed is right on all three queries, the random ones each on two: hard correctness is 2/3.
    assert (policy_mean.correct, random_mean.correct) == (100.0, pytest.approx(66.6667))
    # One question is asked: the means. Seeds are no questions of their own.
    assert policy_mean.p_holm == policy_mean.p_value and 0.05 < policy_mean.p_value < 1
    assert 0.05 < policy_mean.mcnemar_p < 1
    for name, mean_row in (("random-1", random_mean), ("policy-v3_Run-grpo_epoch3", policy_mean)):
        seed = rows[name, 1]
        assert (seed.part_of, seed.seeds, seed.seed_low) == (mean_row.name, 1, None)
        assert (seed.p_value, seed.p_holm, seed.mcnemar_p) == (None, None, None)
        assert seed.wins is not None
    assert rows["random-1", 1].difference == pytest.approx(-10.0)
    assert len(rows) == 7


def test_seeds_are_averaged_where_their_recommended_epochs_differ(settings: Settings) -> None:
    names = ("policy-a-grpo_epoch3", "policy-a_train-seed-43-grpo_epoch3", "policy-a_train-seed-44-grpo_epoch2")
    for name, accuracy in zip(names, (0.3, 0.6, 0.9), strict=True):
        write(settings, name, {1: [accuracy] * 4}, checkpoint=name)
    row = by_name(compare(settings))["policy-a-grpo (mean over seeds)", 1]
    assert (row.seeds, row.accuracy) == (3, 60.0)
    # With two epochs of a run in the table, those of one epoch are averaged.
    write(settings, "policy-a-grpo_epoch2", {1: [0.0] * 4}, checkpoint="x")
    rows = by_name(compare(settings))
    assert ("policy-a-grpo (mean over seeds)", 1) not in rows
    assert rows["policy-a-grpo_epoch3 (mean over seeds)", 1].accuracy == 45.0
    assert rows["policy-a-grpo_epoch2 (mean over seeds)", 1].accuracy == 45.0


def test_seeds_of_two_variants_are_paired_by_their_number_also_if_it_is_the_default(settings: Settings) -> None:
    # Each seed is as far above its namesake, and as far from the other seeds: pairs cancel what they share.
    asked_with = {"data": {"seed": 42}}
    rng = np.random.default_rng(0)
    effects = {"42": 0.0, "43": 0.3, "44": -0.2}
    luck = {seed: rng.choice([0.0, 0.05], 40) for seed in effects}
    for variant, by in (("a", 0.4), ("b", 0.45)):
        for seed, effect in effects.items():
            # Variant a leaves the default seed out of the name, b gives it.
            suffix = "" if (variant, seed) == ("a", "42") else f"_train-seed-{seed}"
            scores = (by + effect + luck[seed] + rng.choice([0.0, 0.01], 40)).round(6).tolist()
            name = f"policy-{variant}{suffix}-rce_epoch1"
            write(settings, name, {1: scores}, asked_with=asked_with, checkpoint=name)
    mean = "policy-a-rce_epoch1 (mean over seeds)"
    row = by_name(compare(settings, reference=mean))["policy-b-rce_epoch1 (mean over seeds)", 1]
    assert row.difference == pytest.approx(5, abs=0.5) and row.p_value is not None and row.p_value < 0.05
    assert row.detectable is None  # three seeds do not tell what they would detect
    # Other seeds in place of the same: the spread between seeds counts in full, and nothing is shown.
    for seed in effects:
        path = predictions_dir(settings) / f"policy-b_train-seed-{seed}-rce_epoch1_validation-40.jsonl"
        new = f"policy-b_train-seed-9{seed}-rce_epoch1"
        side = json.loads(path.with_suffix(".meta.json").read_text()) | {"name": new}
        path.with_suffix(".meta.json").write_text(json.dumps(side))
    other = by_name(compare(settings, reference=mean))["policy-b-rce_epoch1 (mean over seeds)", 1]
    assert other.difference == row.difference and other.p_value is not None and other.p_value > 0.5


def test_a_single_answered_seed_takes_the_place_of_the_mean(settings: Settings) -> None:
    write(settings, "random-1", {1: [0.0, 0.6], 2: [0.3, 0.3]})
    write(settings, "random-2", {1: [0.6, 0.0]})
    write(settings, "nearest-both", {1: [0.6, 0.6], 2: [0.9, 0.9]})
    rows = by_name(compare(settings))
    assert (rows["nearest-both", 1].reference, rows["nearest-both", 1].difference) == ("random (mean over seeds)", 30.0)
    assert (rows["nearest-both", 2].reference, rows["nearest-both", 2].difference) == ("random-1", 60.0)


def test_seeds_follow_their_mean(settings: Settings) -> None:
    write(settings, "random-1", {1: [0.9, 0.9]})
    write(settings, "random-2", {1: [0.0, 0.0]})
    write(settings, "random-3", {1: [0.3, 0.3]})
    write(settings, "nearest-both", {1: [0.6, 0.6]})
    names = [row.name for row in compare(settings)]
    assert names == ["nearest-both", "random (mean over seeds)", "random-1", "random-3", "random-2"]


def test_runs_with_other_settings_are_not_seeds_of_each_other(settings: Settings) -> None:
    write(settings, "random-1", {1: [0.0, 0.3]})
    write(settings, "policy-v3_Run-rce_epoch5", {1: [0.3, 0.3]}, checkpoint="a")
    write(settings, "policy-v3_Run_kl-beta-0.1_train-seed-1-rce_epoch5", {1: [0.9, 0.9]}, checkpoint="b")
    write(settings, "policy-v3_Run_train-seed-1-grpo_epoch3", {1: [0.9, 0.9]}, checkpoint="c")
    assert not [row.name for row in compare(settings) if "mean" in row.name]


# --- what may be compared ---------------------------------------------------------------------------------


def test_different_queries_are_rejected_by_name(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4}, ids=[1, 2, 3, 4])
    with pytest.raises(RunError) as error:
        compare(settings)
    for part in (
        "different queries",
        "4 queries: nearest-both [validation-4]",
        "4 queries: random-42 [validation-4]",
        "--n",
        "--set",
    ):
        assert part in str(error.value)


def test_n_chooses_among_predictions_over_several_sets(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4})
    write(settings, "random-42", {1: [0.0] * 7})
    write(settings, "nearest-both", {1: [0.9] * 7})
    both = compare(settings)  # the most queries that all rows share
    assert {(row.name, row.n, row.differing) for row in both} == {("random-42", 7, ()), ("nearest-both", 7, ())}
    four, seven = by_name(compare(settings, n=4)), by_name(compare(settings, n=7))
    assert (four["nearest-both", 1].n, four["nearest-both", 1].difference) == (4, 30.0)
    assert (seven["nearest-both", 1].n, seven["nearest-both", 1].difference) == (7, 90.0)
    with pytest.raises(RunError, match="5 queries"):
        compare(settings, n=5)


def test_different_settings_are_rejected_by_name(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "nearest-both", {1: [0.6] * 4}, **{"vlm.layout": "turns"})
    with pytest.raises(RunError) as error:
        compare(settings)
    for part in ("nearest-both", "random-42", "vlm.layout", "'turns'", "'one-turn'"):
        assert part in str(error.value)


def test_checkpoint_and_selector_may_differ(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4})
    write(settings, "policy-a-rce_epoch1", {1: [0.6] * 4}, checkpoint="a")
    write(settings, "policy-b-rce_epoch1", {1: [0.6] * 4}, checkpoint="b")
    assert len(compare(settings)) == 3


def test_shots_choose_rows_and_zero_shot_is_always_shown(settings: Settings) -> None:
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
    assert {(row.name, row.n) for row in compare(settings, n=3)} == {("random-42", 3), ("nearest-both", 3)}
    assert by_name(compare(settings, subset="validation-3"))["nearest-both", 1].difference == 30.0
    assert by_name(compare(settings, subset="validation-random-42-3"))["nearest-both", 1].difference == 60.0
    with pytest.raises(RunError, match=r"of the set 'tuning-3'"):
        compare(settings, subset="tuning-3")


def test_a_failed_call_is_not_a_wrong_answer(settings: Settings) -> None:
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
    with pytest.raises(RunError, match=r"no query has an answer in every row.*move the files away"):
        compare(settings)


def test_without_predictions_the_message_says_how_to_create_them(settings: Settings) -> None:
    with pytest.raises(RunError, match=r"dataset world, sampler rand, model tiny-vlm\..*icdsel infer"):
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
    rows = compare(settings)
    write_rows(rows, path)
    first, second = json.loads(path.read_text())
    assert first == {
        "name": "nearest-both",
        "selector": "nearest-both",
        "shots": 1,
        "n": 4,
        "accuracy": 60.0,
        "low": rows[0].low,
        "high": rows[0].high,
        "reference": "random-42",
        "difference": 30.0,
        "difference_low": rows[0].difference_low,
        "difference_high": rows[0].difference_high,
        "metric": "normalised",
        "other_metrics": {},
        "correct": 100.0,
        "seeds": 1,
        "seed_low": None,
        "seed_high": None,
        "part_of": None,
        "p_value": rows[0].p_value,
        "p_holm": rows[0].p_value,
        "detectable": None,
        "wins": 4,
        "losses": 0,
        "ties": 0,
        "mcnemar_p": 1.0,
        "asked": 4,
        "differing": [],
        "files": [str(predictions_dir(settings) / "nearest-both_validation-4.jsonl")],
        "pool": None,
        "label": "nearest-both",
        "images": 4,
        "seed_share": None,
        "mean_shots": 1.0,
        "shown_none": 0.0,
        "mean_prompt_tokens": None,
    }
    assert second.keys() == first.keys()
    assert (second["name"], second["difference"]) == ("random-42", None)


@pytest.fixture
def rows(settings: Settings) -> list[ComparisonRow]:
    """Random by two seeds, a policy that is better, zero-shot; models that differ, one failure."""
    rng = np.random.default_rng(0)
    for seed in (1, 2):
        write(settings, f"random-{seed}", {1: rng.choice([0.0, 0.3, 1.0], 60).tolist()}, model="m1")
    write(settings, "policy-run-rce_epoch5", {1: rng.choice([0.6, 1.0], 60).tolist()}, model="m1")
    write(settings, "zero-shot", {0: [0.3] * 60}, failed=[100], model="m2")
    return compare(settings, allow_different=True)


def test_the_csv_file_has_every_field(rows: list[ComparisonRow], tmp_path: Path) -> None:
    write_csv(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["name"] for row in read] == [row.name for row in rows]
    policy = next(row for row in read if row["selector"] == "policy")
    made = next(row for row in rows if row.selector == "policy")
    for name in ("accuracy", "difference_low", "p_value", "p_holm", "detectable", "mcnemar_p"):
        assert float(policy[name]) == getattr(made, name)
    assert (policy["wins"], policy["part_of"], policy["asked"]) == (str(made.wins), "", "60")
    assert "different models" in policy["differing"]


def test_the_markdown_file_is_one_table_with_explanations(rows: list[ComparisonRow], tmp_path: Path) -> None:
    write_markdown(rows, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("**VQA accuracy (normalised) in points, n = 59 queries; Δ is paired by query, to random")
    table = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1  # as many columns in every line
    for part in ("Compared although they differ", "1 of 60 queries left out", "Holm", "80 % power", "McNemar"):
        assert any(part in line for line in lines)


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t=", " +"])
def test_a_name_in_the_csv_file_is_not_a_formula(rows: list[ComparisonRow], tmp_path: Path, first: str) -> None:
    name = f"{first}1\x1b[31m\n\u202ex"
    write_csv([replace(row, name=name, difference=-5.0) for row in rows], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert {row["name"] for row in read} == {f"'{first}1�[31m �x".replace("\t", " ")}
    assert {row["difference"] for row in read} == {"-5.0"}  # a number


def test_texts_in_the_markdown_file_are_not_markup(rows: list[ComparisonRow], tmp_path: Path) -> None:
    name = "a\\|b<img src=x>&amp;\n| ![c](http://d) \x1b`*\u202e"
    safe = r"a\\\|b&lt;img src=x&gt;&amp;amp; \| !\[c\](http://d) �\`\*�"
    write_markdown(
        [replace(row, name=name, label="", reference=name, differing=(name,)) for row in rows], tmp_path / "table.md"
    )
    text = (tmp_path / "table.md").read_text()
    assert f"| {safe} |" in text and f"to {safe}**" in text and f"- **Compared although they differ: {safe}**" in text
    assert "<img" not in text and "\n| !" not in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_screen_shows_whole_figures_at_every_width(rows: list[ComparisonRow], width: int) -> None:
    text = printed(rows, width)
    assert max(map(len, text.splitlines())) <= width
    policy = next(row for row in rows if row.selector == "policy")
    figures = (
        f"{policy.low:.1f} … {policy.high:.1f}",
        f"{policy.difference:+.1f}",
        f"{p_text(policy.p_holm)}{stars(policy.p_holm)}",
        f"{policy.detectable:.1f}",
    )
    for shown in (*figures, f"{policy.wins} / {policy.losses} / {policy.ties}", "Compared although they differ"):
        assert shown in text


# --- paths ------------------------------------------------------------------------------------------------


def test_paths_are_files_or_folders_each_read_once(settings: Settings, tmp_path: Path) -> None:
    random = write(settings, "random-42", {1: [0.3] * 3}, folder=tmp_path / "a" / "x")
    write(settings, "nearest-both", {1: [0.6] * 3}, folder=tmp_path / "a" / "y")
    write(settings, "oracle", {1: [0.9] * 3}, folder=tmp_path / "b")
    assert {row.name for row in compare(settings, [random, tmp_path / "b"])} == {"random-42", "oracle"}
    # A folder of folders; the file in it that is named too is there once.
    assert {row.name for row in compare(settings, [tmp_path / "a", random])} == {"random-42", "nearest-both"}
    with pytest.raises(RunError) as error:
        compare(settings, [tmp_path / "c"])
    for part in ("c does not exist and holds no predictions", f"`icdsel compare {tmp_path / 'b'}`", "icdsel infer"):
        assert part in str(error.value)


def test_without_a_baseline_the_first_file_is_the_reference(settings: Settings, tmp_path: Path) -> None:
    b = write(settings, "policy-b-rce_epoch1", {1: [0.6] * 3}, checkpoint="b")
    a = write(settings, "policy-a-rce_epoch1", {1: [0.9] * 3}, checkpoint="a")
    assert {row.reference for row in compare(settings, [b, a])} == {"policy-b-rce_epoch1"}


def test_rows_of_the_same_name_are_distinguished_by_what_differs(settings: Settings, tmp_path: Path) -> None:
    # Samplers may differ: how ICDs are chosen is what is compared. Zero-shot knows none, and is there once.
    for sampler in ("rand", "mix"):
        folder = tmp_path / sampler
        inputs = {"data.sampler": sampler, "data.pool_size": 64}
        for seed, score in ((1, 0.3), (2, 0.6)):
            write(settings, f"random-{seed}", {1: [score] * 3}, folder=folder, **inputs)
        write(settings, "zero-shot", {0: [0.9] * 3}, folder=folder, **inputs)
    rows = by_name(compare(settings, [tmp_path / "rand", tmp_path / "mix"]))
    assert {name for name, _ in rows} == {
        "zero-shot",
        *(f"random-{seed} @ sampler {sampler}" for seed in (1, 2) for sampler in ("rand", "mix")),
        *(f"random (mean over seeds) @ sampler {sampler}" for sampler in ("rand", "mix")),
    }
    assert rows["random (mean over seeds) @ sampler mix", 1].accuracy == 45.0
    # A reference needs its place only where there are several of the name.
    with pytest.raises(RunError, match="several rows are called 'random-1'"):
        compare(settings, [tmp_path], reference="random-1")
    assert compare(settings, [tmp_path / "mix"], reference="random-1")[0].reference == "random-1"


def test_rows_of_the_same_name_and_settings_are_distinguished_by_their_folders(
    settings: Settings, tmp_path: Path
) -> None:
    for folder, score in (("first", 0.3), ("second", 0.6)):
        where = tmp_path / folder / "infer"
        write(settings, "policy-x-rce_epoch1", {1: [score] * 3}, folder=where, checkpoint=folder)
        write(settings, "random-42", {1: [0.3] * 3}, folder=where)  # the same twice
    names = {row.name for row in compare(settings, [tmp_path / "first/infer", tmp_path / "second/infer"])}
    assert names == {"policy-x-rce_epoch1 @ first", "policy-x-rce_epoch1 @ second", "random-42"}


def test_models_are_shown_by_name_and_distinguished_if_the_names_are_equal(settings: Settings, tmp_path: Path) -> None:
    of = {"aaaa": "Qwen/Qwen2.5-VL-3B", "bbbb": "models/Qwen2.5-VL-3B", "cccc": "tiny-vlm"}
    for fingerprint, name in of.items():
        asked_with = {"vlm": {"model": name}}
        write(
            settings, "random-42", {1: [0.3]}, folder=tmp_path / fingerprint, asked_with=asked_with, model=fingerprint
        )
    names = {row.name for row in compare(settings, [tmp_path], allow_different=True)}
    assert len(names) == 3
    assert all(name.startswith(("random-42 @ Qwen2.5-VL-3B ", "random-42 @ tiny-vlm")) for name in names)


# --- different things -------------------------------------------------------------------------------------


def test_different_queries_are_compared_on_the_shared_ones(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.0, 0.3, 0.6]}, ids=[1, 2, 3])
    write(settings, "nearest-both", {1: [0.9, 0.9, 0.0, 0.0]}, ids=[2, 3, 4, 5])
    rows = by_name(compare(settings))
    nearest = rows["nearest-both", 1]
    assert (nearest.n, nearest.accuracy, nearest.difference) == (2, 90.0, 45.0)
    assert nearest.differing == ("different queries: 2 sets of 3 to 4, of which all rows share 2",)
    write(settings, "oracle", {1: [0.9] * 2}, ids=[1, 5])
    for allowed in (True, False):  # a row without a query of the others cannot be compared
        with pytest.raises(RunError, match="of which all rows share 0") as error:
            compare(settings, allow_different=allowed)
        assert "--allow-different" not in str(error.value)
        for way in ("icdsel compare PATH", "icdsel infer", "--set"):
            assert way in str(error.value)


def test_sets_of_a_row_are_distinguished_and_duplicates_removed(settings: Settings) -> None:
    for count in (3, 4):
        write(settings, "random-42", {1: [0.3] * count})
        write(settings, "oracle", {1: [count / 10] * count}, rl_data=f"of {count} queries")
    rows = compare(settings)
    assert {row.name for row in rows} == {"random-42", "oracle @ validation-3", "oracle @ validation-4"}
    assert {row.n for row in rows} == {3}


def test_a_row_over_several_sets_is_read_over_the_one_that_shares_most(settings: Settings) -> None:
    # One row has a larger set, and another one that all rows have: that one is shared completely.
    write(settings, "random-42", {1: [0.3] * 5}, ids=[1, 2, 3, 4, 5], subset="validation-5")
    write(settings, "random-42", {1: [0.6] * 8}, ids=[1, 11, 12, 13, 14, 15, 16, 17], subset="validation-random-42-8")
    write(settings, "nearest-both", {1: [0.6] * 5}, ids=[1, 2, 3, 4, 5], subset="validation-5")
    rows = by_name(compare(settings))
    assert {(row.n, row.differing) for row in rows.values()} == {(5, ())}
    assert rows["random-42", 1].accuracy == 30.0


# --- which files are compared -----------------------------------------------------------------------------


def of(settings: Settings, **data: Any) -> Settings:
    """The same settings with others of the table `data` given."""
    return with_values(settings, {"data": data})


def recorded(settings: Settings) -> dict[str, Any]:
    """What a metadata file records of these settings."""
    return {"asked_with": settings.model_dump(mode="json"), "data.pool_size": settings.data.pool_size}


def test_pools_of_all_sizes_are_compared_with_one_another(settings: Settings) -> None:
    for size in (16, 64, "all"):
        pools = of(settings, pool_size=size)
        write(pools, "random-42", {1: [0.3] * 3}, **recorded(pools))
        write(pools, "zero-shot", {0: [0.0] * 3}, **recorded(pools))
    rows = by_name(compare(settings))
    assert {(name, row.pool) for (name, _), row in rows.items()} == {
        ("random-42 @ pool 16", "16"),
        ("random-42 @ pool 64", "64"),
        ("random-42 @ pool all", "all"),
        ("zero-shot", None),
    }
    # A size that is given is the only one.
    assert {row.pool for row in compare(of(settings, pool_size=16))} == {"16", None}
    assert {row.pool for row in compare(of(settings, pool_size=64))} == {"64", None}


def test_folders_of_other_prompts_samplers_and_models_are_not_mixed_in(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 3}, **recorded(settings))
    others = [
        of(settings, sampler="mix"),
        of(settings, seed=43),
        with_values(settings, {"vlm": {"layout": "turns"}}),
        with_values(settings, {"vlm": {"model": "tiny-vlm_2"}}),
    ]
    for other in others:
        write(other, "nearest-both", {1: [0.6] * 3}, **recorded(other))
    assert [row.name for row in compare(settings)] == ["random-42"]
    for other in others:
        assert [row.name for row in compare(other)] == ["nearest-both"]


def test_of_datasets_of_one_name_only_that_of_the_settings_is_compared(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, moved, third = (of(settings, dataset=str(tmp_path / name / "vqa.csv")) for name in "abcd")
    for dataset in (one, other, third):
        Path(dataset.data.dataset).parent.mkdir()
        Path(dataset.data.dataset).touch()
    write(one, "random-42", {1: [0.3] * 3}, **recorded(one))
    write(moved, "zero-shot", {0: [0.0] * 3}, **recorded(moved))  # the same examples, at another place then
    write(other, "nearest-both", {1: [0.6] * 3}, **recorded(other) | {"dataset": "def"})
    assert {row.name for row in compare(one)} == {"random-42", "zero-shot"}
    assert {row.name for row in compare(other)} == {"nearest-both"}
    assert "share a folder" not in capsys.readouterr().err
    with pytest.raises(RunError, match="different data"):
        compare(third)
    assert f"none on {third.data.dataset}. Datasets of one name share a folder" in capsys.readouterr().err


def test_the_split_of_the_settings_is_compared_unless_a_set_is_named(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 3}, split="tuning", subset="tuning-3")
    assert [row.n for row in compare(settings)] == [3]  # the only one that exists
    write(settings, "random-42", {1: [0.6] * 4}, split="validation")
    assert [row.accuracy for row in compare(settings)] == [60.0]
    assert [row.accuracy for row in compare(settings, subset="tuning-3")] == [30.0]


def test_without_fitting_predictions_the_folders_that_exist_are_named(settings: Settings) -> None:
    mix = of(settings, sampler="mix", pool_size=16)
    write(mix, "random-42", {1: [0.3] * 3}, **recorded(mix))
    folder = predictions_dir(mix)
    with pytest.raises(RunError, match="sampler rand, model tiny-vlm") as error:
        compare(settings)
    assert f"There are predictions in:\n  {folder}\n" in str(error.value)
    assert f"`icdsel compare {folder}`" in str(error.value)
    with pytest.raises(RunError, match=r"sampler mix, model tiny-vlm, with --pool-size as given\. There are"):
        compare(of(settings, sampler="mix", pool_size=8))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("data.metric", "metrics"),
        ("model", "models"),
        ("vlm.layout", "prompts"),
        ("data.shown_answer", "prompts"),
        ("dataset", "data"),
    ],
)
def test_different_settings_are_compared_on_request_and_the_rows_say_so(
    settings: Settings, key: str, kind: str
) -> None:
    write(settings, "random-42", {1: [0.3] * 4}, **{key: "official"})
    write(settings, "nearest-both", {1: [0.6] * 4}, **{key: "lemmatised"})
    with pytest.raises(
        RunError, match=rf"different {kind}.*{key} is 'lemmatised' \(nearest-both\), 'official'"
    ) as error:
        compare(settings)
    assert "--allow-different\n" in str(error.value) + "\n"  # nothing about queries, which are the same
    rows = compare(settings, allow_different=True)
    assert all(f"{key} is" in row.differing[0] for row in rows)
    if key == "data.metric":
        assert {row.metric for row in rows} == {"official", "lemmatised"}


def test_how_icds_are_chosen_may_always_differ(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 4}, **{"data.embed": "both", "encoder": "a"})
    write(settings, "policy-x-rce_epoch1", {1: [0.6] * 4}, **{"data.embed": "image", "encoder": "b"})
    assert compare(settings)[0].differing == ()


# --- baselines --------------------------------------------------------------------------------------------


def test_a_warning_shows_the_command_for_missing_baselines(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = load_settings({"infer": {"n": 3, "split": "tuning"}, "data": {"sampler": "mix"}}).model_dump(mode="json")
    write(settings, "random-42", {1: [0.3] * 3, 2: [0.3] * 3}, asked_with=asked)
    write(settings, "majority", {1: [0.3] * 3}, asked_with=asked)
    compare(settings)
    warning = " ".join(capsys.readouterr().err.split())
    assert "zero-shot and majority should be in the table" in warning
    assert "icdsel infer --sampler mix --n 3 --split tuning --selector zero-shot,majority --shots 2" in warning
    write(settings, "majority", {1: [0.3] * 3, 2: [0.6] * 3}, asked_with=asked)
    write(settings, "zero-shot", {0: [0.3] * 3}, asked_with=asked)
    for shots in ([], [1], [2]):
        names = {row.name for row in compare(settings, shots=shots)}
        assert names == {"random-42", "majority", "zero-shot"}
    assert capsys.readouterr().err == ""


# --- worse ------------------------------------------------------------------------------------------------


def test_only_learned_policies_with_an_interval_below_0_count_as_worse(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.6] * 40})
    write(settings, "oracle", {1: [0.0] * 40})  # worse, but not learned
    write(settings, "policy-a-rce_epoch1", {1: [0.3] * 40}, checkpoint="a")
    write(settings, "policy-b-rce_epoch1", {1: [0.0, 0.9, 0.9, 0.3] * 10}, checkpoint="b")  # its interval holds 0
    write(settings, "policy-c-rce_epoch1", {1: [0.9] * 40}, checkpoint="c")
    # One seed of two is worse, their mean is not.
    write(settings, "policy-d_train-seed-1-rce_epoch1", {1: [0.3] * 40}, checkpoint="d")
    write(settings, "policy-d_train-seed-2-rce_epoch1", {1: [0.9] * 40}, checkpoint="e")
    assert [row.name for row in learned_and_worse(compare(settings))] == ["policy-a-rce_epoch1"]


# --- named rows -------------------------------------------------------------------------------------------


def test_named_rows_replace_the_others_and_seeds_of_one_name_become_their_mean(settings: Settings) -> None:
    one = write(settings, "policy-a-rce_epoch5", {1: [0.2, 0.4], 2: [1.0, 1.0]}, checkpoint="f00")
    two = write(settings, "policy-b-rce_epoch5", {1: [0.6, 0.4], 2: [0.0, 1.0]}, checkpoint="f01")
    # Two seeds may score the same: they count twice.
    seeds = [write(settings, f"random-{seed}", {1: scores}) for seed, scores in ((42, [0.0, 0.3]), (43, [0.0, 0.3]))]
    seeds.append(write(settings, "random-44", {1: [0.3, 0.3]}))
    write(settings, "nearest-image", {1: [0.9, 0.9]})
    write(settings, "nearest-both", {1: [0.9] * 3})  # of other queries, but nobody asked for it
    names = {one: "lr=1", two: "lr=1"} | dict.fromkeys(seeds, "random")
    rows = by_name(compare(settings, names=names))
    assert {key: row.accuracy for key, row in rows.items()} == {
        ("lr=1", 1): 40.0,
        ("lr=1", 2): 75.0,
        ("random", 1): 20.0,
    }
    mean = rows["lr=1", 1]
    assert (mean.difference, mean.reference, mean.selector) == (20.0, "random", "policy")
    # It is one question, and a mean over seeds in all that follows.
    assert (mean.seeds, mean.seed_low, mean.seed_high, mean.part_of) == (2, 30.0, 50.0, None)
    assert (rows["random", 1].seeds, rows["random", 1].seed_low, rows["random", 1].seed_high) == (3, 15.0, 30.0)
    assert rows["random", 1].correct == pytest.approx(100 * 4 / 6)
    assert mean.p_holm == mean.p_value is not None
    assert by_name(compare(settings, names=names, reference="lr=1"))["random", 1].difference == -20.0


def test_the_name_of_a_single_file_is_its_row(settings: Settings) -> None:
    path = write(settings, "policy-a-rce_epoch5", {1: [0.2, 0.4]}, checkpoint="f00")
    [row] = compare(settings, names={path: "rce"}, reference="rce")
    assert (row.name, row.accuracy, row.seeds, row.seed_low) == ("rce", 30.0, 1, None)


# --- other tasks ------------------------------------------------------------------------------------------


class Ranks(Letters):
    """Letters in common, whose median counts."""

    name = "ranks"
    unit = "letters"

    @staticmethod
    def aggregate(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.median(scores, axis=-1)


@pytest.fixture
def ranks() -> Iterator[None]:
    TASKS.add(Ranks())
    yield
    del TASKS["ranks"]


def write_ranks(settings: Settings, name: str, scores: list[float]) -> None:
    write(settings, name, {1: scores}, **{"data.task": "ranks", "data.metric": "leading"})
    path = predictions_dir(settings) / f"{name}_validation-{len(scores)}.jsonl"
    lines = [json.dumps({"task": "ranks"} | json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def test_the_aggregate_of_the_task_decides_scores_intervals_and_tests(settings: Settings, ranks: None) -> None:
    write_ranks(settings, "random-42", [0.0, 0.0, 1.0, 3.0, 3.0] * 8)
    write_ranks(settings, "nearest-both", [2.0, 2.0, 2.0, 2.0, 3.0] * 8)
    rows = by_name(compare(settings))
    best, reference = rows["nearest-both", 1], rows["random-42", 1]
    assert (best.accuracy, best.low, best.high) == (2.0, 2.0, 2.0)
    assert (reference.accuracy, reference.low, reference.high) == (1.0, 0.0, 3.0)
    assert (best.difference, best.difference_low, best.difference_high) == (1.0, -1.0, 2.0)
    assert best.p_value is not None and 0 < best.p_value < 0.01  # swaps hardly ever give medians that far apart
    assert (best.detectable, best.correct, best.mcnemar_p, best.task) == (None, None, None, "ranks")
    assert (best.wins, best.losses, best.ties) == (24, 8, 8)


def test_a_table_shows_the_name_and_unit_of_the_task(settings: Settings, ranks: None, tmp_path: Path) -> None:
    write_ranks(settings, "random-42", [0.0, 1.0, 3.0])
    write_ranks(settings, "nearest-both", [2.0, 2.0, 3.0])
    rows = compare(settings)
    write_markdown(rows, tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "**Letters in common (leading) in letters, n = 3 queries" in text
    assert "| shots | selector | pool | ICDs | tokens | letters | interval | Δ |" in text and "detect:" not in text
    write_rows(rows, tmp_path / "t.json")
    assert {row["task"] for row in json.loads((tmp_path / "t.json").read_text())} == {"ranks"}


def test_rows_of_different_tasks_are_never_compared(settings: Settings, ranks: None) -> None:
    write(settings, "random-42", {1: [0.3] * 3})
    write_ranks(settings, "nearest-both", [1.0] * 3)
    with pytest.raises(RunError, match="rows of different tasks have no score in common: ranks, vqa"):
        compare(settings, allow_different=True)


def test_predictions_of_an_unknown_task_or_of_another_than_their_metadata_are_an_error(settings: Settings) -> None:
    write(settings, "random-42", {1: [0.3] * 3}, **{"data.task": "ranks"})
    with pytest.raises(RunError, match="unknown task 'ranks'"):
        compare(settings)
    TASKS.add(Ranks())
    try:
        with pytest.raises(RunError, match="predictions of the task vqa, its metadata are of ranks"):
            compare(settings)
    finally:
        del TASKS["ranks"]


# --- pools ------------------------------------------------------------------------------------------------


def test_every_table_says_what_each_row_chose_from(settings: Settings, tmp_path: Path) -> None:
    # Two folders, of pools of 64 and of the whole training set; nearest-both-all ignores the size of the pools.
    folders = {64: tmp_path / "64", "all": tmp_path / "all"}
    for size, folder in folders.items():
        for name in ("random-42", "nearest-both", "nearest-both-all", "oracle"):
            write(settings, name, {2: [0.3, 1.0, 0.0]}, folder=folder, **{"data.pool_size": size})
        write(settings, "zero-shot", {0: [0.0] * 3}, folder=folder, **{"data.pool_size": size})
    rows = compare(settings, list(folders.values()))
    assert sorted((row.name.split(" @ ")[0], str(row.pool)) for row in rows) == [
        ("nearest-both", "64"),
        ("nearest-both-all", "all"),  # once: it chooses the same in both folders, and as nearest-both does in one
        ("oracle", "64"),
        ("oracle", "all"),
        ("random-42", "64"),
        ("random-42", "all"),
        ("zero-shot", "None"),
    ]
    write_rows(rows, tmp_path / "rows.json")
    assert [row["pool"] for row in json.loads((tmp_path / "rows.json").read_text())] == [row.pool for row in rows]
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        assert [row["pool"] for row in csv.DictReader(file)] == [row.pool or "" for row in rows]
    write_markdown(rows, tmp_path / "rows.md")
    [header, _, *lines] = [line for line in (tmp_path / "rows.md").read_text().splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in header.split("|")].index("pool")
    assert [line.split("|")[column].strip() for line in lines] == [row.pool or "" for row in rows]
    assert printed(rows).count(" all ") >= 6  # in both tables


def test_the_pool_of_a_mean_is_that_of_its_seeds(settings: Settings) -> None:
    for seed in (42, 43):
        write(settings, f"random-{seed}", {2: [0.3, 1.0, seed % 2]}, **{"data.pool_size": 16})
    assert [row.pool for row in compare(settings)] == ["16"] * 3


def test_the_headline_takes_the_mean_of_the_seeds_not_the_luckiest(settings: Settings) -> None:
    write(settings, "policy-a-rce_epoch1", {2: [1.0] * 4})
    write(settings, "policy-a_train-seed-43-rce_epoch1", {2: [0.0] * 4})
    write(settings, "nearest-both", {2: [0.6] * 4})
    [headline] = headlines(compare(settings))
    assert headline.policy is not None
    assert (headline.policy.name, headline.policy.seeds) == ("policy-a-rce_epoch1 (mean over seeds)", 2)
    assert (headline.policy.accuracy, headline.policy.difference) == (50.0, pytest.approx(-10.0))


def test_the_headline_is_printed_and_leads_the_markdown(settings: Settings, tmp_path: Path) -> None:
    write(settings, "policy-a-rce_epoch1", {2: [1.0] * 4})
    write(settings, "nearest-both-all", {2: [0.6] * 4}, **{"data.pool_size": 64})
    table, markdown = tmp_path / "table.json", tmp_path / "table.md"
    flags = ("--results-dir", settings.data.results_dir, "--json", table, "--markdown", markdown)
    result = CliRunner().invoke(app, ["compare", *map(str, flags)])
    assert result.exit_code == 0
    says = "The strongest method that learns nothing is nearest-both-all (pool all, 2 shots): 60.0."
    assert says in " ".join(result.stdout.split())
    assert markdown.read_text().startswith(says)
    assert [row["name"] for row in json.loads(table.read_text())] == ["policy-a-rce_epoch1", "nearest-both-all"]
