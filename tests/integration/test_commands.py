"""The commands through the real command line, in order, in an empty folder, on the bundled world."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import icdsel
from documented_files import undocumented

from icdsel import console
from icdsel.selection import SELECTORS
from icdsel.stages import generate as generation

RUN = "v3_RandSampler_tiny-vlm_grpo-epochs-3_freeze-backbone"
FROM_ALL = ("nearest-both-all", "mmices-all", "mmr-all", "k-dpp-all", "facility-location-all")
NEAREST = ("nearest-image", "nearest-both", *FROM_ALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world_into):
    """A working directory in which the README's three lines were run, on fewer queries than by default."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    world_into(folder / "data")
    Path("icdsel.toml").write_text("[proposals]\nqueries = 60\n")
    try:
        icdsel("train", "--grpo-epochs", 3, "--freeze-backbone")
        icdsel("infer", "--n", 40)
        icdsel("convert", "rce_epoch5.pt")
        yield folder
    finally:
        os.chdir(before)


def test_the_three_commands_write_the_documented_files(folder):
    run = folder / "results/world/model_cpk" / RUN
    wanted = {f"rce_epoch{i}.pt" for i in range(1, 6)} | {f"grpo_epoch{i}.pt" for i in range(1, 4)}
    converted = {"rce_epoch5_v2format.ckpt", "grpo_epoch3_v2format.ckpt"}  # the latter by `infer`
    left = {path.name for path in run.iterdir() if not path.name.endswith(".lock")}
    assert wanted | converted | {"metrics.jsonl", "run.json", "log.txt"} == left
    assert (folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl").is_file()
    predictions = {path.name for path in (folder / "results/world/infer/RandSampler_tiny-vlm").glob("*.jsonl")}
    assert predictions == {
        f"policy-{RUN}-grpo_epoch3_validation-40.jsonl",
        *(f"{name}_validation-40.jsonl" for name in ("zero-shot", "majority", "random-42", *NEAREST)),
    }


def test_the_first_comparison_is_with_every_baseline_that_a_policy_must_beat(folder):
    output = " ".join(icdsel("compare", "--n", 40, "--json", "first.json").split())
    pools = {row["selector"]: row["pool"] for row in json.loads(Path("first.json").read_text())}
    assert pools == {
        **dict.fromkeys(("policy", "random", "majority", "nearest-image", "nearest-both"), "64"),
        **dict.fromkeys(FROM_ALL, "all"),
        "zero-shot": None,
    }
    assert "should be in the table" not in output
    assert re.search(rf"strongest method that learns nothing is ({'|'.join(FROM_ALL)}) \(pool all,", output)
    assert "The best learned policy, policy" in output


def test_the_policy_alone_is_answered_on_request(folder, tmp_path):
    checkpoint = folder / "results/world/model_cpk" / RUN / "rce_epoch1.pt"
    words = ("--selector", "policy", "--n", 5, "--shots", 1, "--results-dir", tmp_path)
    icdsel("infer", "--checkpoint", checkpoint, *words)
    names = {path.name.removesuffix("_validation-5.jsonl") for path in tmp_path.glob("world/infer/*/*.jsonl")}
    assert names == {f"policy-{RUN}-rce_epoch1", "zero-shot", "majority"}


def test_rl_data_say_where_pointers_come_from_and_how_they_were_scored(folder):
    lines = (folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl").read_text().splitlines()
    groups = [json.loads(line) for line in lines]
    assert len(groups) == len({group["question_id"] for group in groups}) == 60
    methods = set()
    for group in groups:
        pool = group["candidate_pool_ids"]
        assert len(set(pool)) == 64
        assert group["question_id"] not in pool
        pointers = [tuple(candidate["pointer"]) for candidate in group["pointer_candidates"]]
        assert len(set(pointers)) == len(pointers) <= 15
        for candidate in group["pointer_candidates"]:
            methods.add(candidate["gen_method"])
            assert set(candidate["pointer"]) <= set(pool)
            assert candidate["vqa_correct"] == (candidate["vqa_acc_score"] > 0)
            assert candidate["vqa_gt_prob"] is candidate["vqa_gt_prob_norm"] is None  # nothing reads them
    assert methods == {"cosine-beam", "cosine-sample", "retrieval", "random"}


def test_check_finds_no_error_in_results_and_reports_damage(folder, tmp_path):
    run = folder / "results/world/model_cpk" / RUN
    data = folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
    icdsel("check", run, data, run / "rce_epoch5.pt", "data/world", "--images", "--json", tmp_path / "report.json")
    checked = json.loads((tmp_path / "report.json").read_text())["checked"]
    assert [one["is_a"] for one in checked] == ["run", "RL data", "checkpoint", "dataset"]
    assert checked[0]["findings"] == checked[3]["findings"] == []
    assert {finding["severity"] for one in checked for finding in one["findings"]} == {"worth knowing"}
    assert "no problems" in icdsel("check")
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(data.read_bytes()[:-100])
    output = icdsel("check", torn, code=1)
    assert "errors found: " in output and "Traceback" not in output
    assert "does not exist" in icdsel("check", tmp_path / "nothing", code=2)


def test_metrics_of_every_epoch_stand_in_a_file(folder):
    lines = (folder / "results/world/model_cpk" / RUN / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [(e["phase"], e["epoch"]) for e in epochs] == [("rce", i) for i in range(1, 6)] + [
        ("grpo", i) for i in range(1, 4)
    ]
    for epoch in epochs:
        assert 0 <= epoch["oracle_share"] <= 1
        assert epoch["expected_reward"] <= epoch["oracle_reward"] + 1e-6
    assert {"kl", "std_advantage", "no_signal_share", "grpo_loss"} <= epochs[-1].keys()


def test_rl_data_and_runs_that_exist_are_used_again(folder):
    data = folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
    checkpoint = folder / "results/world/model_cpk" / RUN / "grpo_epoch3.pt"
    before = data.read_bytes(), data.stat().st_mtime_ns, checkpoint.stat().st_mtime_ns
    assert "trained already" in icdsel("train", "--grpo-epochs", 3, "--freeze-backbone")
    assert "answered already" in icdsel("infer", "--n", 40)
    assert (data.read_bytes(), data.stat().st_mtime_ns, checkpoint.stat().st_mtime_ns) == before


def test_training_again_gives_the_same_bytes(folder):
    words = ("train", "--rce-epochs", 1, "--run")
    icdsel(*words, "once")
    icdsel(*words, "twice")
    once, twice = (folder / "results/world/model_cpk" / name / "rce_epoch1.pt" for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()
    assert icdsel(*words, "thrice", "--train-seed", 7)
    assert (folder / "results/world/model_cpk/thrice/rce_epoch1.pt").read_bytes() != once.read_bytes()


def test_every_selector_chooses_from_the_same_pool_and_compare_shows_it(folder):
    icdsel("gen-rl-data", "--split", "validation", "--queries", 40)
    chosen = "random,nearest-image,nearest-question,nearest-both,nearest-both-all,oracle"
    icdsel("infer", "--n", 40, "--selector", chosen, "--shots", "1,2")
    for seed in (43, 44):
        icdsel("infer", "--n", 40, "--selector", "random", "--random-seed", seed, "--shots", "1,2")
    data = folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm_validation.jsonl"
    pools = {g["question_id"]: set(g["candidate_pool_ids"]) for g in map(json.loads, data.read_text().splitlines())}
    predictions = folder / "results/world/infer/RandSampler_tiny-vlm"
    from_all = {name for name, selector in SELECTORS.items() if selector.whole_split}
    outside: set[str] = set()
    for path in predictions.glob("*.jsonl"):
        name = path.name.partition("_validation")[0]
        for record in map(json.loads, path.read_text().splitlines()):
            assert len(set(record["icds"])) == len(record["icds"]) == record["shots"]
            if not set(record["icds"]) <= pools[record["question_id"]]:
                outside.add(name)
    assert outside <= from_all and outside.issuperset(FROM_ALL)
    output = icdsel("compare", "--json", "table.json", "--csv", "table.csv", "--markdown", "table.md", "--shots", "2")
    assert "random, mean of 3" in output
    assert "should be in the table" not in output  # zero-shot and majority were answered beside the others
    rows = json.loads(Path("table.json").read_text())
    assert len(Path("table.csv").read_text().splitlines()) == 1 + len(rows)
    assert sum(line.startswith("| ") for line in Path("table.md").read_text().splitlines()) == 1 + len(rows)
    assert {"zero-shot", "majority"} <= {row["selector"] for row in rows}
    assert {row["n"] for row in rows} == {40}
    by_name = {row["name"]: row for row in rows}
    # The oracle is the best of the scored pointers, so no other choice among them can beat it.
    assert by_name["oracle"]["accuracy"] >= max(by_name[name]["accuracy"] for name in ("nearest-image", "random-42"))


def test_the_page_finds_the_run_behind_a_policy_and_the_pictures(folder):
    side = folder / f"results/world/infer/RandSampler_tiny-vlm/policy-{RUN}-grpo_epoch3_validation-40.meta.json"
    assert json.loads(side.read_text())["checkpoint"] == f"results/world/model_cpk/{RUN}/grpo_epoch3.pt"
    output = icdsel("compare", "--n", 40, "--html", "report.html", "--plots", "plots")
    assert "Page: report.html" in output
    page = Path("report.html").read_text()
    assert 'class="missing"' not in page.split("<noscript>")[0]  # training curves and RL data are there
    assert "Share of the best reward" in page
    assert page.count("<article") == 40
    assert Path("plots/training-kl.svg").is_file()


def test_a_worse_policy_fails_only_with_fail_if_worse(folder, tmp_path):
    # The policy's own predictions, with nothing right any more.
    ours = tmp_path / "infer"
    shutil.copytree(folder / "results/world/infer/RandSampler_tiny-vlm", ours)
    for path in ours.glob("policy-*.jsonl"):
        records = [json.loads(line) | {"accuracy": 0.0} for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    words = ("compare", ours, "--reference", "majority", "--shots", "2")
    assert "is worse than" not in icdsel(*words)
    output = " ".join(icdsel(*words, "--fail-if-worse", code=1).split())
    assert "policy run 1 at 2 shots is worse than majority: the difference is -" in output
    assert "below 0" in output
    icdsel("compare", "--reference", "zero-shot", "--shots", "2", "--fail-if-worse")


def test_every_comparison_has_zero_shot_and_majority(folder, tmp_path):
    words = ("--selector", "random", "--random-seed", 45, "--shots", 1, "--results-dir", tmp_path)
    icdsel("infer", "--n", 5, *words)
    predictions = tmp_path / "world/infer/RandSampler_tiny-vlm"
    names = {path.name.removesuffix("_validation-5.jsonl") for path in predictions.glob("*.jsonl")}
    assert names == {"random-45", "zero-shot", "majority"}
    ours = folder / "results/world/infer/RandSampler_tiny-vlm"
    output = " ".join(icdsel("compare", predictions, ours, "--json", "five.json").split())
    assert "different queries: 2 sets of 5 to 40, of which all rows share 5" in output
    rows = json.loads(Path("five.json").read_text())
    assert {row["n"] for row in rows} == {5}
    # Zero-shot answers the five as it did among the forty, so it is there once.
    assert [row["name"] for row in rows].count("zero-shot") == 1


def test_rl_data_of_different_settings_are_rejected_with_the_name_of_the_setting(folder):
    data = folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
    before = data.read_bytes()
    output = icdsel("train", "--beam", 3, code=2)
    assert "proposals.beam: 5 then, 3 now" in output
    assert "--overwrite" in output
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["train", "--dataset", "okvq"],
            "world-choice, world-classes, okvqa, vqav2)",
        ),
        (["train", "--dataset", "okvqa"], "OpenEnded_mscoco_train2014_questions.json"),
        (["train", "--sampler", "best"], "choose one of rand, text-sim, img-sim, mix"),
        (["train", "--model", "no-such-model"], "--model tiny-vlm"),
        (["train", "--rl-data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["train", "--rl-data", "empty.jsonl"], "is empty"),
        (["train", "--rl-data", "torn.jsonl"], "line 1"),
        (["train", "--init", "missing.pt", "--run", "x"], "missing.pt"),
        (["gen-rl-data", "--init", "empty.jsonl"], "empty.jsonl"),
        (["gen-rl-data", "--pointer-shots", "3", "--pool-size", "2", "-o", "x.jsonl"], "--pool-size"),
        (["gen-rl-data", "--pool-size", "5000", "-o", "x.jsonl"], "--pool-size"),
        (["infer", "--n", "0"], "-1 for all"),
        (["infer", "--shots", "65"], "--pool-size"),
        (["infer", "--run", "nobody"], RUN),
        (["infer", "--checkpoint", "missing.pt"], "missing.pt"),
        (["infer", "--selector", "clever"], "nearest-both"),
        (["infer", "--sampler", "mix"], "icdsel train"),
        (["convert", "rce_epoch99.pt"], "rce_epoch99.pt"),
        (["compare", "--reference", "nobody"], "zero-shot"),
        (["compare", "--n", "77"], "77"),
        (["train", "--no-such-flag"], "--no-such-flag"),
        (["train", "--run", "../elsewhere"], "is not the name of a folder"),
        (["train", "--run", ".."], "is not the name of a folder"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(folder, words, expected):
    Path("empty.jsonl").write_text("")
    Path("torn.jsonl").write_text('{"question_id": 1, "ima')
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    output = " ".join(icdsel(*words, code=2).split())
    assert expected in output
    assert "Traceback" not in output
    after = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before  # nothing overwritten


def test_a_checkpoint_of_another_width_is_rejected(folder):
    from icdsel.artefacts.checkpoint_writing import save_policy
    from icdsel.policy.config import PointerConfig
    from icdsel.policy.network import PointerNetwork

    network = PointerNetwork(PointerConfig(d_model=7, hidden_dim=8))
    save_policy("narrow.pt", network, epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    assert "width 7" in icdsel("infer", "--n", 40, "--checkpoint", "narrow.pt", code=2)
    assert "narrow.pt" in icdsel("train", "--init", "narrow.pt", "--run", "narrow", code=2)
    assert "width 7" in icdsel("gen-rl-data", "--init", "narrow.pt", "-o", "narrow.jsonl", code=2)


def test_more_queries_than_the_split_has_takes_all_with_a_note(folder, monkeypatch):
    output = icdsel("infer", "--n", 5000, "--selector", "zero-shot", "--split", "tuning")
    assert "has 1000: using all" in output
    for name, lines in (("zero-shot", 1000), ("majority", 4000)):
        path = folder / f"results/world/infer/RandSampler_tiny-vlm/{name}_tuning-1000.jsonl"
        assert len(path.read_text().splitlines()) == lines
        path.unlink()
        path.with_suffix(".meta.json").unlink()


def test_old_variables_are_warned_about_by_name(folder, monkeypatch):
    monkeypatch.setenv("GRPO_EPOCHS", "3")
    monkeypatch.setenv("ICDSEL_TRAIN_BATCHSIZE", "3")
    output = icdsel("convert", "rce_epoch5.pt", "--run", RUN)
    assert "--grpo-epochs" in output
    assert "ICDSEL_TRAIN_BATCH_SIZE" in output


def test_an_interrupted_generation_resumes_to_the_same_bytes(folder):
    command = [sys.executable, "-m", "icdsel", "gen-rl-data", "--queries", "96"]
    part = folder / "interrupted.jsonl.part"
    process = subprocess.Popen([*command, "-o", "interrupted.jsonl"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 130, output
    assert "run the same command again" in output
    lines = part.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < 96
    with part.open("ab") as file:
        file.write(b'{"question_id": 17, "torn')
    assert "resuming after" in icdsel("gen-rl-data", "--queries", 96, "-o", "interrupted.jsonl")
    icdsel("gen-rl-data", "--queries", 96, "-o", "whole.jsonl")
    assert (folder / "interrupted.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not part.exists()


def test_a_terminated_training_resumes_to_the_same_bytes(folder):
    flags = ("--online", "--grpo-epochs", "3", "--grpo-lr", "1e-3", "--online-samples", "3", "--rce-epochs", "2")
    runs = folder / "results/world/model_cpk"
    command = [sys.executable, "-m", "icdsel", "train", *flags, "--run", "cut"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (runs / "cut/online.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(AssertionError, match="being written by process"):
        icdsel("train", *flags, "--run", "cut")  # while the other one writes
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 143, output
    assert "run the same command again" in output
    assert (runs / "cut/resume.pt").exists()
    assert "resuming after" in icdsel("train", *flags, "--run", "cut")
    output = icdsel("train", *flags, "--run", "whole")
    assert "GRPO queries the VLM at most 432 times" in output
    names = {path.name for path in (runs / "whole").iterdir()}
    assert names == {path.name for path in (runs / "cut").iterdir()}
    assert "resume.pt" not in names and "online.jsonl" in names
    for name in names - {"log.txt", "run.json"}:
        assert (runs / "cut" / name).read_bytes() == (runs / "whole" / name).read_bytes(), name
    assert "trained already" in icdsel("train", *flags, "--run", "cut")
    shutil.rmtree(runs / "cut")  # other tests look at the run that was trained last
    shutil.rmtree(runs / "whole")


def test_help_has_examples(folder):
    for command in ("gen-rl-data", "train", "convert", "infer", "compare", "runs", "demo"):
        assert f"icdsel {command}" in icdsel(command, "--help")


def test_shards_put_together_are_the_same_bytes(folder, monkeypatch):
    whole = (folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl").read_bytes()
    icdsel("gen-rl-data", "--shard", "2/2", "--output", "parts.jsonl")
    assert Path("parts.shard-2-of-2.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[32:])
    asked = []
    score = generation.score_unit
    monkeypatch.setattr(generation, "score_unit", lambda *args: asked.append(len(args[1])) or score(*args))
    output = icdsel("gen-rl-data", "--output", "parts.jsonl")
    assert "28 queries were scored in shards" in output
    assert asked == [32]  # only what no shard had
    assert Path("parts.jsonl").read_bytes() == whole
    icdsel("gen-rl-data", "--shard", "1/2", "--output", "other.jsonl", "--seed", 1)
    assert "is skipped" in icdsel("gen-rl-data", "--output", "other.jsonl")
    assert Path("other.jsonl").read_bytes() == whole
    for wrong in ("3/2", "0/2", "x"):
        assert "--shard is K/N" in icdsel("gen-rl-data", "--shard", wrong, code=2)


def test_a_log_lies_beside_every_result(folder):
    run = (folder / "results/world/model_cpk" / RUN / "log.txt").read_text()
    assert "grpo epoch 3: loss" in run
    assert run.splitlines()[-2].endswith("recommended checkpoint grpo_epoch3.pt")
    assert "finished after" in run.splitlines()[-1]
    data = (folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.log").read_text()
    assert "scored pointers of 60 queries" in data and "grpo epoch" not in data
    for label in ("zero-shot", "majority", f"policy-{RUN}-grpo_epoch3"):
        row = (folder / f"results/world/infer/RandSampler_tiny-vlm/{label}_validation-40.log").read_text()
        assert f"{label}: VQA accuracy by shots" in row and "finished after" in row


def test_the_log_of_a_resumed_run_is_appended_and_renamed_to_backup_with_it(folder):
    log = (folder / "interrupted.log").read_text()  # by the test of the interrupted generation
    assert all(word in log for word in ("interrupted\n", "resuming after", "finished after"))
    assert log.count("$ ") == 2
    icdsel("gen-rl-data", "--queries", 32, "--output", "interrupted.jsonl", "--overwrite")
    assert (folder / "interrupted.log.old-1").read_text() == log
    assert (folder / "interrupted.log").read_text().count("$ ") == 1


def test_runs_lists_the_results_of_training_and_inference(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    broken = folder / "results/okvqa/model_cpk/broken"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    output = icdsel("runs", "--json", "runs.json")
    listed = {run["name"]: run for run in json.loads(Path("runs.json").read_text())}
    assert listed["broken"]["state"] == "damaged" and "run.json" in listed["broken"]["problem"]
    run = listed[RUN]
    assert run["settings"] == ["queries-60", "grpo-epochs-3", "freeze-backbone"]
    assert (run["state"], run["dataset"], run["phase"], run["epoch"]) == ("finished", "world", "grpo", 3)
    last = json.loads((folder / "results/world/model_cpk" / RUN / "metrics.jsonl").read_text().splitlines()[-1])
    assert (run["expected_reward"], run["oracle_share"]) == (last["expected_reward"], last["oracle_share"])
    [answered] = run["answered"]
    records = [json.loads(line) for line in Path(answered["predictions"]).read_text().splitlines()]
    ones = [record["accuracy"] for record in records if record["shots"] == 1]
    assert answered["accuracy"]["1"] == pytest.approx(100 * sum(ones) / 40)
    assert answered["set"] == "validation-40" and answered["n"] == 40
    assert f"1: {answered['accuracy']['1']:.1f}" in output and "broken" in output
    assert "broken" not in icdsel("runs", "--dataset", "world")
    shutil.rmtree(folder / "results/okvqa")
    assert "No runs of okvqa in results. Train one with `icdsel train --dataset okvqa`" in icdsel(
        "runs", "--dataset", "okvqa"
    )


def test_progress_shows_results_so_far(folder, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    output = icdsel("gen-rl-data", "--queries", 40, "--output", "output.jsonl")
    candidates = [
        candidate["vqa_correct"]
        for line in Path("output.jsonl").read_text().splitlines()[:32]
        for candidate in json.loads(line)["pointer_candidates"]
    ]
    assert f"Scoring queries: 32 of 40, {sum(candidates) / len(candidates):.1%} correct" in _without_rates(output)
    output = icdsel("infer", "--n", 60, "--selector", "random", "--shots", 1, "--batch-tokens", 400)
    assert re.search(r"random-42: \d+ of 60,.* accuracy \d+\.\d", output)
    output = icdsel("train", "--rce-epochs", 2, "--run", "output")
    assert re.search(r"Training: \d+ of 96, .*rce epoch 1: \d\.\d\d, \d+% of oracle", output)
    for path in (folder / "results/world/infer/RandSampler_tiny-vlm").glob("random-42_validation-60*"):
        path.unlink()  # `compare` of later tests


def _without_rates(output: str) -> str:
    return re.sub(r", [\d.,]+/s|, ETA [\d:]+", "", output)


def test_every_file_and_field_is_on_the_page_of_files(folder):
    online = ("--rce-epochs", 1, "--grpo-epochs", 1, "--online", "--online-samples", 1, "--tensorboard")
    icdsel("train", *online, "--vlm-budget", 20, "--run", "sampled")
    assert {path.name for path in (folder / "results/world/model_cpk/sampled").iterdir()} >= {"online.jsonl"}
    assert undocumented(folder) == []
