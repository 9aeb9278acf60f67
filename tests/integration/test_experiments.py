"""`icdsel experiment` in a new folder, on the bundled world: what it does, what it keeps, and what it plans."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel

from icdsel.comparison import compare
from icdsel.experiments import rates
from icdsel.experiments.plan import dry_run, missing
from icdsel.experiments.variants import plan_experiments
from icdsel.settings.loading import load_settings
from icdsel.stages import train as training
from icdsel.stages.session import Session
from icdsel.stages.train import train_policy
from icdsel.vlm.engines import ENGINES
from icdsel.vlm.supervision import SupervisedEngine

VARIANTS = "rce,grpo-frozen"
COMMAND = ("experiment", VARIANTS, "--seeds", "2", "--n", "30", "--shots", "1,2")
RUNS = Path("results/world/model_cpk")
ANSWERS = Path("results/world/infer/RandSampler_tiny-vlm")
NEAREST = ["nearest-image", "nearest-both", "nearest-both-all"]
NEAREST += ["mmices-all", "mmr-all", "k-dpp-all", "facility-location-all"]
BASELINES = ["zero-shot", "majority", *NEAREST, "random, seed 42", "random, seed 43", "random, seed 44"]
EXPERIMENTS = ["rce, seed 42", "grpo-frozen, seed 42", "rce, seed 43", "grpo-frozen, seed 43"]
STEPS = [
    "RL data",
    *(f"{name}: answers" for name in BASELINES),
    *(f"{name}: {what}" for name in EXPERIMENTS for what in ("training", "answers")),
]


def settings():
    return load_settings({"infer": {"n": 30, "shots": "1,2"}})


def still_to_do(opened: Session) -> dict[str, str]:
    """What is missing, and what is to be done for it."""
    steps = missing(plan_experiments(opened.settings, VARIANTS, 2), opened.settings, opened)
    return {step.what: step.todo for step in steps if step.todo}


def made() -> dict[Path, int]:
    """Everything under `results/` but caches, with the time of its last change."""
    paths = [path for path in Path("results").rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in paths if "cache" not in path.parts and path.suffix != ".lock"}


def accuracy(path: Path, shots: int) -> float:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    values = [record["accuracy"] for record in records if record["shots"] == shots]
    assert len(values) == 30
    return 100 * sum(values) / 30


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, world_into):
    """The output of a dry run, of a run interrupted in its second training, of the run after it, and of a third."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("experiments"))
    world_into(Path("data"))
    # Settings that all variants share can be in the file; the rest is on the command line.
    Path("icdsel.toml").write_text("[proposals]\nqueries = 40\n[train]\nrce_epochs = 1\n")
    said: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "PROBE_SECONDS", 0.05)
        said["tried"] = icdsel(*COMMAND, "--dry-run")
        said["made by trying"] = made()
        here = Session(settings())
        said["missing first"] = still_to_do(here)
        interrupt(patch)
        said["interrupted"] = icdsel(*COMMAND, code=130)
        said["made then"] = made()
        said["missing then"] = still_to_do(here)
    with pytest.MonkeyPatch.context() as patch:
        icdsel("infer", "--n", "30", "--shots", "1,2", "--selector", "nearest-question")  # nobody compared it
        opened: list[object] = []
        auto = ENGINES["auto"]
        counted = replace(auto, open=lambda *given: opened.append(given) or auto.open(*given))
        patch.setitem(ENGINES, "auto", counted)
        said["done"] = icdsel(*COMMAND, "--json", "table.json")
        said["models loaded"] = len(opened)
        said["made at last"] = made()
        patch.setattr(training, "train_policy", refuse)
        patch.setattr(SupervisedEngine, "answer", refuse)
        said["again"] = icdsel(*COMMAND)
        said["made again"] = made()
        said["tried again"] = icdsel(*COMMAND, "--dry-run")
        said["missing at last"] = still_to_do(here)
    yield said
    os.chdir(before)


def interrupt(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the second training, after an epoch."""
    trained: list[object] = []

    def train(*given: Any, on_epoch: Any, **more: Any) -> None:
        def stop(epoch: object) -> None:
            on_epoch(epoch)
            if len(trained) == 2:
                raise KeyboardInterrupt

        trained.append(given)
        train_policy(*given, on_epoch=stop, **more)

    patch.setattr(training, "train_policy", train)


def refuse(*given: object, **more: object) -> None:
    raise AssertionError("nothing is to be done")


def test_a_dry_run_in_an_empty_folder_lists_everything_and_writes_caches_alone(recorded):
    assert recorded["made by trying"] == {}
    todo = recorded["missing first"]
    assert list(todo) == STEPS
    assert todo["RL data"] == "score 40 queries, up to 600 pointers"
    assert todo["rce, seed 43: training"] == "train 1 rce epochs of 32 queries"
    assert todo["grpo-frozen, seed 42: training"] == "train 1 rce epochs of 32 queries, 3 grpo epochs of 32 queries"
    assert todo["zero-shot: answers"] == "answer 30 prompts at 0 shots"
    assert todo["majority: answers"] == "copy 60 answers"
    assert todo["rce, seed 42: answers"] == "answer 60 prompts at 1, 2 shots"
    assert recorded["tried"].count("probe") > 10
    assert "Nothing was written but caches" in recorded["tried"]


def test_an_interrupted_experiment_keeps_finished_steps_and_the_dry_run_knows_them(recorded):
    assert "experiment 2 of 4: grpo-frozen, seed 42" in recorded["interrupted"]
    assert "run the same command again" in recorded["interrupted"]
    assert list(recorded["missing then"]) == STEPS[STEPS.index("grpo-frozen, seed 42: training") :]


def test_it_resumes_after_the_last_finished_step(recorded):
    unfinished = "v3_RandSampler_tiny-vlm_rce-epochs-1_grpo-epochs-3_freeze-backbone"
    finished = {path: time for path, time in recorded["made then"].items() if unfinished not in path.parts}
    assert len(finished) > 10
    assert {path: recorded["made at last"].get(path) for path in finished} == finished
    assert "resuming after rce epoch 1 of an interrupted training" in recorded["done"]
    assert "experiment 4 of 4: grpo-frozen, seed 43" in recorded["done"]
    assert recorded["models loaded"] == 1


def test_the_second_time_nothing_is_done(recorded):
    assert recorded["missing at last"] == {}
    assert recorded["made again"] == recorded["made at last"]
    assert "21 of 21 steps are done already" in recorded["again"]
    assert recorded["again"].count("trained already") == 4
    assert "nothing to do" in recorded["tried again"]


def test_the_table_holds_the_experiments_and_their_baselines_alone_each_the_mean_over_its_seeds(recorded):
    rows = {(row["name"], row["shots"]): row for row in json.loads(Path("table.json").read_text())}
    names = ("rce", "grpo-frozen", "random", "majority", *NEAREST)
    assert set(rows) == {(name, shots) for name in names for shots in (1, 2)} | {("zero-shot", 0)}
    assert {row["reference"] for row in rows.values()} == {"random"}
    assert {row["n"] for row in rows.values()} == {30}
    run = "policy-v3_RandSampler_tiny-vlm_rce-epochs-1"
    files = {
        "rce": [f"{run}{seed}-rce_epoch1" for seed in ("", "_train-seed-43")],
        "grpo-frozen": [f"{run}_grpo-epochs-3_freeze-backbone{s}-grpo_epoch3" for s in ("", "_train-seed-43")],
        "random": [f"random-{seed}" for seed in (42, 43, 44)],
        **{name: [name] for name in ("majority", *NEAREST)},
    }
    for name, own in files.items():
        for shots in (1, 2):
            each = [accuracy(ANSWERS / f"{file}_validation-30.jsonl", shots) for file in own]
            assert rows[name, shots]["accuracy"] == pytest.approx(sum(each) / len(each), abs=1e-3)


def test_the_table_goes_wherever_that_of_any_comparison_does(recorded):
    page, charts = Path("report.html"), Path("plots")
    words = ["--csv", "t.csv", "--markdown", "t.md", "--html", page, "--plots", charts, "--gallery", "3"]
    icdsel(*COMMAND, *map(str, words))
    assert "\nrce,policy,1,30," in Path("t.csv").read_text()
    assert "| rce, mean of 2 |" in Path("t.md").read_text()
    assert list(charts.glob("*.png"))
    shown = page.read_text()
    assert "grpo-frozen" in shown
    assert "nearest-question" not in shown  # lies there too, but was not compared


@pytest.mark.parametrize("lowered", [0.0, 200.0])
def test_a_worse_variant_fails_only_with_fail_if_worse(recorded, monkeypatch, lowered):
    compared = compare.compare

    def compare_lowered(*given: Any, **more: Any) -> compare.Comparison:
        rows = compared(*given, **more)
        assert {row.seeds for row in rows if row.selector == "policy"} == {2}
        # As if every policy were better than it is by 100 points, or worse.
        lines = [
            row if row.difference_high is None else replace(row, difference_high=row.difference_high + 100 - lowered)
            for row in rows
        ]
        return replace(rows, rows=lines)

    monkeypatch.setattr(compare, "compare", compare_lowered)
    said = icdsel(*COMMAND, "--fail-if-worse", code=1 if lowered else 0)
    assert said.count("is worse than random") == (4 if lowered else 0)


def test_compare_train_is_the_same_command_with_a_note(recorded):
    before = made()
    old = icdsel("compare", "--train", VARIANTS, *COMMAND[2:])
    new = icdsel(*COMMAND)
    note = f"compare --train is now a separate command: icdsel experiment {VARIANTS}"
    assert note in old and note not in new
    assert old.replace(f"{note}\n", "") == new
    assert made() == before


def test_rl_data_can_be_named(recorded):
    made_before = made()
    own = Path("results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl")
    Path("same.jsonl").write_bytes(own.read_bytes())
    assert "nothing to do" in icdsel(*COMMAND, "--rl-data", "same.jsonl", "--dry-run")
    Path("fewer.jsonl").write_text("".join(own.read_text().splitlines(keepends=True)[:20]))
    said = icdsel(*COMMAND, "--rl-data", "fewer.jsonl", code=2)
    assert "rl_data (the RL data):" in said
    assert made() == made_before
    asked = settings()
    experiments = plan_experiments(asked, "rce", 1)
    todo = [e.step.todo for e in dry_run(asked, experiments, overwrite=True, rl_data_files=[Path("fewer.jsonl")])]
    assert todo[1] == ""  # nothing is scored
    assert "train 1 rce epochs of 16 queries" in todo


def test_the_duration_is_estimated_from_recorded_rates(recorded, monkeypatch):
    monkeypatch.setattr(rates.Rates, "_probe", refuse)
    asked = settings()
    estimates = dry_run(asked, plan_experiments(asked, "rce,rce-normalized+grpo", 2))
    todo = {estimate.step.what: estimate for estimate in estimates[1:] if estimate.step.todo}
    assert set(todo) == {f"rce-normalized+grpo, seed {s}: {what}" for s in (42, 43) for what in ("training", "answers")}
    assert {estimate.measured for estimate in todo.values()} == {"recorded"}
    sides = [json.loads(path.read_text())["work"] for path in RUNS.glob("*/run.json") if ".old-" not in str(path)]
    rce, grpo = (
        sum(side[phase]["seconds"] for side in sides if phase in side)
        / sum(side[phase]["count"] for side in sides if phase in side)
        for phase in ("rce", "grpo")
    )
    assert {side["rce"]["count"] for side in sides} == {32}
    assert {side["grpo"]["count"] for side in sides if "grpo" in side} == {96}
    estimate = todo["rce-normalized+grpo, seed 42: training"]
    assert estimate.seconds == pytest.approx(32 * rce + 96 * grpo)


def test_what_exists_under_other_settings_stops_it_before_anything_is_done(recorded):
    before = made()
    said = icdsel(*COMMAND, "--metric", "openflamingo", code=2)
    assert "data.metric: 'normalised' then, 'openflamingo' now" in said
    said = icdsel(*COMMAND, "--metric", "openflamingo", "--dry-run", code=2)
    assert "data.metric: 'normalised' then, 'openflamingo' now" in said
    assert made() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train", "grpo-frozn"], "did you mean 'grpo-frozen'"),
        (["--train", "rce,reward.mode=soft"], "variant reward.mode=soft: --reward-mode (reward.mode): unknown"),
        (["--train", "rce", "--shots", "0"], "zero-shot"),
        (["--train", "rce", "--set", "validation-30"], "leave it out with --train"),
        (["--train", "rce", "--allow-different"], "leave it out with --train"),
        (["results/world/infer", "--train", "rce"], "PATH chooses among existing predictions"),
        (["--train", "rce", "--dry-run", "--json", "x.json"], "leave --json out"),
        (["--train", "rce", "--dry-run", "--html", "x.html", "--fail-if-worse"], "leave --fail-if-worse, --html out"),
        (["--train", "rce", "--rl-data", "none.jsonl"], "none.jsonl does not exist"),
        (["--train", "rce", "--rl-data", "none.jsonl", "--dry-run"], "none.jsonl does not exist"),
        (["--rl-data", "none.jsonl"], "--rl-data has no effect without --train"),
        (["--seeds", "2"], "--seeds has no effect without --train"),
        (["--rce-lr", "1e-3"], "--rce-lr has no effect without --train"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_loaded(recorded, monkeypatch, words, said):
    monkeypatch.setitem(ENGINES, "auto", replace(ENGINES["auto"], open=refuse))
    assert said in " ".join(icdsel("compare", *words, code=2).split())


def test_a_given_value_survives_a_variant_with_another_recipe(recorded):
    heads = ("--num-heads", "4")  # which the recipe icdsel has anyway
    icdsel("experiment", "recipe=lever-plus", "--n", "30", "--shots", "1", *heads)
    run = json.loads((RUNS / "v3_RandSampler_tiny-vlm_lever-plus_rce-epochs-1_num-heads-4/run.json").read_text())
    assert (run["settings"]["train"]["num_heads"], run["settings"]["train"]["tower"]) == (4, 0)


def test_overwrite_renames_a_run_of_different_settings_to_backup(recorded):
    icdsel("train", "--run", "mine")
    assert "--overwrite" in icdsel("train", "--run", "mine", "--rce-lr", "1e-3", code=2)
    assert "renamed the previous result to" in icdsel("train", "--run", "mine", "--rce-lr", "1e-3", "--overwrite")
    assert (RUNS / "mine.old-1/rce_epoch1.pt").read_bytes() != (RUNS / "mine/rce_epoch1.pt").read_bytes()
