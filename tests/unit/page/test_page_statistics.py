"""The statistics of the page, on data small enough to count by hand."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import POLICY, QUERIES, RUN, by_checkpoint, choose, make_settings, rl_groups, write_predictions, write_run

from icdsel.artefacts.predictions import predictions_dir
from icdsel.artefacts.rl_data import parse_group
from icdsel.comparison.compare import ComparisonRow, compare
from icdsel.comparison.sources import Source, read_source
from icdsel.page.charts.landscape import landscape
from icdsel.page.choices import Chosen, effective_number, gini, one_each, overlap, read_choices, usage
from icdsel.page.gallery import spread
from icdsel.page.names import row_labels, short_name
from icdsel.page.runs import read_landscapes, read_runs
from icdsel.records import Example, Pointer, Prediction, QueryGroup
from icdsel.settings.tables import RewardSettings
from icdsel.tasks.base import TASKS

VQA = TASKS["vqa"]
counts = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def chosen(icds: Mapping[int, Pointer], name: str = "policy") -> Chosen:
    shots = len(next(iter(icds.values())))
    source = Source(Path("x.jsonl"), name, name, "validation", {}, {})
    return Chosen(name, name, shots, source, {q: Prediction(q, shots, p, "x", 1.0) for q, p in icds.items()})


def example(question_id: int, answer: str) -> Example:
    return Example(question_id, question_id, Path(f"{question_id}.png"), "?", answer, (answer,) * 10)


# --- choices ----------------------------------------------------------------------------------------------


def test_gini_by_hand():
    assert gini([3, 3, 3]) == 0
    assert gini([]) == 0
    # |1 − 3| occurs twice among the 4 ordered pairs: mean absolute difference 1, over twice the mean 2.
    assert gini([1, 3]) == pytest.approx(1 / 4)


@given(counts)
def test_gini_is_the_mean_absolute_difference_over_twice_the_mean(values):
    n = len(values)
    spread_of = sum(abs(a - b) for a in values for b in values) / n**2
    assert gini(values) == pytest.approx(spread_of / (2 * sum(values) / n))


@given(counts)
def test_the_effective_number_lies_between_one_and_all(values):
    assert 1 - 1e-9 <= effective_number(values) <= len(values) + 1e-9
    assert effective_number([values[0]] * len(values)) == pytest.approx(len(values))


def test_effective_number_by_hand():
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 bits.
    assert effective_number([2, 1, 1]) == pytest.approx(2**1.5)
    assert effective_number([]) == 0


def test_overlap_is_the_mean_jaccard_index_whatever_the_order():
    one = chosen({1: (10, 11), 2: (10, 11), 3: (10, 11)})
    other = chosen({1: (11, 10), 2: (11, 12), 4: (10, 11)}, "random")
    assert overlap(one, other) == pytest.approx((1 + 1 / 3) / 2)
    assert overlap(one, one) == 1
    assert overlap(one, chosen({7: (1,)})) is None
    assert overlap(chosen({1: ()}), chosen({1: ()})) is None


def test_usage_by_hand():
    train = {10: example(10, "cat"), 11: example(11, "Cat."), 12: example(12, "dog")}
    queries = {1: example(1, "a dog"), 2: example(2, "dog"), 3: example(3, "cow")}
    used = usage(chosen({1: (10, 11), 2: (11, 12), 3: (10, 12)}), queries, train, VQA)
    assert dict(used.counts) == {10: 2, 11: 2, 12: 2}
    assert (used.total, used.gini, used.effective) == (6, 0, pytest.approx(3))
    # "cat" and "Cat." are one answer to the metric: 1 of 2 different, then 2 of 2 twice.
    assert used.distinct_answers == pytest.approx((0.5 + 1 + 1) / 3)
    # "a dog" is "dog" to the metric, but query 1 is shown cats only; query 2 sees a dog, query 3 no cow.
    assert used.match == pytest.approx(1 / 3)
    alone = usage(chosen({1: (10,), 2: (99,)}), {}, {}, VQA)
    assert (alone.distinct_answers, alone.match, alone.total) == (None, None, 2)


def test_a_demonstration_shows_a_right_answer_also_as_people_wrote_it():
    # OK-VQA stores "ride", and demonstrations show "riding".
    query = replace(example(1, "ride"), raw_answers=("riding",))
    assert usage(chosen({1: (10,)}), {1: query}, {10: example(10, "riding")}, VQA).match == 1.0
    assert usage(chosen({1: (10,)}), {1: query}, {10: example(10, "bike")}, VQA).match == 0.0


def read(rows: Sequence[ComparisonRow], pair: str = "RandSampler_tiny-vlm") -> list[Chosen]:
    sources = {file: read_source(Path(file)) for row in rows for file in row.files}
    return read_choices(rows, row_labels(rows, [pair]), sources)


def test_choices_are_read_learned_first_then_by_accuracy(tmp_path):
    settings = make_settings(tmp_path)
    for name, accuracy in (("random-42", 0.2), (POLICY, 0.1), ("nearest-both", 0.9)):
        rows = [row | {"accuracy": accuracy} for row in choose(name, 4, (1, 2))]
        write_predictions(settings, name, rows, **({"checkpoint": "x.pt"} if name == POLICY else {}))
    zero = [row | {"accuracy": 0.0} for row in choose("zero-shot", 4, ())]
    zero[0] = {"question_id": 9000, "shots": 0, "icds": [], "error": "out of memory"}
    write_predictions(settings, "zero-shot", zero)
    rows = read(compare(settings))
    assert [row.label for row in rows] == [
        *["policy: grpo-epochs-1"] * 2,
        *["nearest-both"] * 2,
        *["random-42"] * 2,
        "zero-shot",
    ]
    assert [row.shots for row in rows] == [1, 2, 1, 2, 1, 2, 0]
    assert rows[0].source.checkpoint == Path("x.pt")
    assert rows[-1].by_query[9000] == Prediction(9000, 0, (), error="out of memory")
    assert {row.shots for row in read(compare(settings, shots=[2]))} == {0, 2}


def test_choices_are_those_of_the_comparison(tmp_path):
    """With other folders and models, rows of the same name, different queries: as in the table, under its names."""
    one, other = make_settings(tmp_path / "1"), make_settings(tmp_path / "2")
    write_predictions(one, "random-42", choose("random-42", 5, (1, 2)), inputs={"model": "a"})
    write_predictions(one, "nearest-both", choose("nearest-both", 5, (1,)), inputs={"model": "a"})
    write_predictions(other, "random-42", choose("elsewhere", 4, (1,)), inputs={"model": "b"})
    files = [next(predictions_dir(one).glob("random*.jsonl")), predictions_dir(other)]
    rows = compare(one, files, allow_different=True)
    chosen = read(rows)
    assert {(row.name, row.shots) for row in chosen} == {(row.name, row.shots) for row in rows}
    assert {row.name for row in chosen} == {"random-42 @ a", "random-42 @ b"}
    for row in chosen:
        assert sorted(row.by_query) == list(QUERIES[:4])
    elsewhere = {line["question_id"]: tuple(line["icds"]) for line in choose("elsewhere", 4, (1,))}
    there = next(row for row in chosen if row.name == "random-42 @ b")
    assert {i: choice.icds for i, choice in there.by_query.items()} == elsewhere
    # Fewer queries at another number of shots than is shown are nobody's concern.
    write_predictions(one, "random-42", choose("x", 5, (1,)) + choose("x", 2, (2,)), inputs={"model": "a"})
    assert {len(row.by_query) for row in read(compare(one, shots=[1]))} == {5}


def test_seeds_belong_to_their_mean(tmp_path):
    settings = make_settings(tmp_path)
    for name in ("random-44", "random-42", "nearest-both"):
        write_predictions(settings, name, choose(name, 4, (1,)))
    rows = compare(settings)
    chosen = read(rows)
    mean = "random (mean over seeds)"
    assert {row.name: row.lead for row in chosen} == {
        "random-42": mean,
        "random-44": mean,
        "nearest-both": "nearest-both",
    }
    assert {row.name for row in one_each(chosen)} == {"random-42", "nearest-both"}
    # A mean whose seeds are no rows has its files as seeds.
    alone = read([replace(row, name="rce") for row in rows if row.name == mean])
    assert [(row.name, row.label, row.lead) for row in alone] == [
        ("rce, seed 1", "rce (seed 1 of 2)", "rce"),
        ("rce, seed 2", "rce (seed 2 of 2)", "rce"),
    ]
    assert [row.source.name for row in alone] == ["random-42", "random-44"]


def test_short_names():
    pairs = ["MixSampler_tiny-vlm", "RandSampler_tiny-vlm"]
    run = "policy-v3_RandSampler_tiny-vlm"
    assert short_name(f"{run}-rce_epoch5", pairs) == "policy: rce_epoch5"
    assert short_name(f"{run}-rce_epoch5", pairs, False) == "policy: rce_epoch5"
    long = f"{run}_mode-hard_only_no-gate_freeze-backbone-grpo_epoch3"
    assert short_name(long, pairs) == "policy: mode-hard_only, no-gate, freeze-backbone, grpo_epoch3"
    assert short_name(f"{long} (mean over seeds) @ sampler mix", pairs, False) == (
        "policy: mode-hard_only, no-gate, freeze-backbone @ sampler mix"
    )
    assert short_name("policy-mine_too-rce_epoch5", pairs) == "policy: mine_too-rce_epoch5"
    assert short_name("random (mean over seeds)", pairs) == "random"


def test_labels_are_as_short_as_names_allow(tmp_path):
    settings = make_settings(tmp_path)
    run = "policy-v3_RandSampler_tiny-vlm_freeze-backbone"
    for name in (f"{run}-grpo_epoch1", f"{run}-grpo_epoch2", f"{run}_gate-rce_epoch1", "random-1", "random-2"):
        write_predictions(settings, name, choose(name, 3, (1,)))
    labels = row_labels(compare(settings), ["RandSampler_tiny-vlm"])
    assert set(labels.values()) == {
        "policy: freeze-backbone, grpo_epoch1",
        "policy: freeze-backbone, grpo_epoch2",
        "policy: freeze-backbone, gate",
        "random-1",
        "random-2",
        "random (2\N{NO-BREAK SPACE}seeds)",
    }


# --- landscape --------------------------------------------------------------------------------------------


def groups() -> list[QueryGroup]:
    return [parse_group(value)[0] for value in rl_groups()]


def test_landscape_by_hand():
    made = landscape("data", groups(), RewardSettings(), {"the VLM call failed": 3})
    assert (made.queries, made.pointers) == (4, 11)
    assert (made.none_correct, made.some_correct, made.all_correct) == (1, 1, 2)
    assert made.signal == 2  # the third has correct pointers only, but one is worth less
    # Rewards are correctness + accuracy: (0, 0, 0), (2, 0, 0), (1.6, 2, 2), (2, 2).
    assert made.best_reward == pytest.approx((0 + 2 + 2 + 2) / 4)
    assert made.mean_reward == pytest.approx((0 + 2 / 3 + 5.6 / 3 + 2) / 4)
    by_name = {method.name: method for method in made.methods}
    assert [method.name for method in made.methods] == ["cosine-beam", "retrieval", "random"]
    beam = by_name["cosine-beam"]
    assert (beam.pointers, beam.queries) == (5, 4)
    assert beam.reward == pytest.approx((0 + 2 + 1.6 + 2 + 2) / 5)
    assert beam.score == pytest.approx(3.6 / 5)
    assert beam.correct == pytest.approx(4 / 5)
    # Of the two queries with a signal it finds the best of both, of one alone.
    assert (beam.best, beam.alone) == (1, 0.5)
    assert (by_name["retrieval"].best, by_name["retrieval"].alone) == (0.5, 0)
    # Random proposes for the first two queries only, of which the second has a signal.
    assert (by_name["random"].best, by_name["random"].alone) == (0, 0)
    assert made.rejected == {"the VLM call failed": 3}


def test_without_a_signal_nobody_finds_the_best():
    made = landscape("data", groups()[:1], RewardSettings(), {})
    assert (made.signal, {method.best for method in made.methods}) == (0, {None})


def test_the_mode_decides_what_a_signal_is():
    assert landscape("data", groups(), RewardSettings(mode="hard_only"), {}).signal == 1


# --- runs -------------------------------------------------------------------------------------------------


def policy_rows(settings, **side):
    write_predictions(settings, POLICY, choose(POLICY, 2, (1,)), **side)
    return read(compare(settings))


def test_a_run_is_found_by_its_checkpoint_or_by_its_name(tmp_path):
    settings = make_settings(tmp_path)
    folder = write_run(settings, "elsewhere")
    rows = policy_rows(settings, **by_checkpoint(folder))
    runs, missing = read_runs(rows, settings)
    assert ([run.folder for run in runs], missing) == ([folder], [])
    named = write_run(settings, RUN)
    rows = policy_rows(settings)
    assert [run.folder for run in read_runs(rows, settings)[0]] == [named]
    landscapes, _, missing = read_landscapes(runs, settings, None)
    assert ([made.source for made in landscapes], missing) == (["rl_data_made.jsonl"], [])


def test_files_that_metadata_name_are_read_only_if_their_fingerprint_matches(tmp_path):
    settings = make_settings(tmp_path / "handed")
    mine = write_run(make_settings(tmp_path / "mine"), "private")
    rows = policy_rows(settings, checkpoint=str(mine / "grpo_epoch1.pt"), inputs={"checkpoint": "0" * 16})
    assert read_runs(rows, settings) == ([], ["The run of policy: grpo-epochs-1 was not found."])
    run = write_run(settings)
    side = json.loads((run / "run.json").read_text())
    side["rl_data"] = [str(next(tmp_path.glob("mine/**/rl_data_made.jsonl")))]
    side["identity"]["rl_data"] = ["0" * 16]
    (run / "run.json").write_text(json.dumps(side))
    runs, _ = read_runs(rows, settings)
    assert [found.folder for found in runs] == [run]
    landscapes, _, missing = read_landscapes(runs, settings, None)
    assert landscapes == [] and "has changed since the training" in missing[0]


def test_missing_files_are_reported_in_a_sentence(tmp_path):
    settings = make_settings(tmp_path)
    rows = policy_rows(settings)
    assert read_runs(rows, settings) == ([], ["The run of policy: grpo-epochs-1 was not found."])
    assert "Create it with `icdsel gen-rl-data`" in read_landscapes([], settings, None)[2][0]
    folder = write_run(settings)
    (folder / "metrics.jsonl").unlink()
    runs, missing = read_runs(rows, settings)
    assert runs[0].epochs == ()
    assert "no metrics.jsonl" in " ".join(missing)
    (folder / "metrics.jsonl").write_text('{"phase": "rce"}\n')
    runs, missing = read_runs(rows, settings)
    assert runs == []
    assert "metrics.jsonl, line 1" in missing[0]
    (folder / "run.json").write_text("{")
    assert "cannot be read" in read_runs(rows, settings)[1][0]


# --- gallery ----------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 10_000), max_size=60), st.integers(0, 80))
def test_the_shown_queries_are_spread_over_all(ids, count):
    shown = spread(list(ids), count)
    assert len(shown) == min(count, len(ids)) == len(set(shown))
    assert shown == sorted(shown)
    places = [sorted(ids).index(i) for i in shown]
    if shown:
        step = len(ids) / len(shown)
        assert all(math.floor(k * step) == place for k, place in enumerate(places))
