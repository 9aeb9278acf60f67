"""The commands through the real command line, in order, in an empty folder, on the bundled world."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from icdsel import generation
from icdsel.cli import app

RUN = "v3_RandSampler_tiny-vlm_grpo-epochs-3_freeze-backbone"


def icdsel(*words: object, code: int = 0) -> str:
    """Runs a command in this process; its whole output."""
    made = CliRunner().invoke(app, [str(word) for word in words])
    output = made.output + (made.stderr if made.stderr not in made.output else "")
    assert made.exit_code == code, output + str(made.exception)
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory in which the mission's three lines were run, on fewer queries than by default."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    Path("icdsel.toml").write_text("[proposals]\nqueries = 60\n")
    try:
        icdsel("train", "--grpo-epochs", 3, "--freeze-backbone")
        icdsel("infer", "--n", 40)
        icdsel("convert", "rce_epoch5.pt")
        yield folder
    finally:
        os.chdir(before)


def test_the_three_lines_leave_what_the_mission_names(folder):
    run = folder / "results/world/model_cpk" / RUN
    wanted = {f"rce_epoch{i}.pt" for i in range(1, 6)} | {f"grpo_epoch{i}.pt" for i in range(1, 4)}
    converted = {"rce_epoch5_v2format.ckpt", "grpo_epoch3_v2format.ckpt"}  # the latter by `infer`
    assert wanted | converted | {"metrics.jsonl", "run.json"} == {path.name for path in run.iterdir()}
    assert (folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl").is_file()
    predictions = {path.name for path in (folder / "results/world/infer/RandSampler_tiny-vlm").glob("*.jsonl")}
    assert predictions == {
        f"policy-{RUN}-grpo_epoch3_validation-40.jsonl",
        "zero-shot_validation-40.jsonl",
        "majority_validation-40.jsonl",
    }


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
            assert 0 <= candidate["vqa_gt_prob"] <= candidate["vqa_gt_prob_norm"] + 1e-6
    assert methods == {"cosine-beam", "cosine-sample", "retrieval", "random"}


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
    assert "answered before" in icdsel("infer", "--n", 40)
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
    for path in predictions.glob("*.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()):
            assert len(set(record["icds"])) == len(record["icds"]) == record["shots"]
            if not path.name.startswith("nearest-both-all"):
                assert set(record["icds"]) <= pools[record["question_id"]]
    output = icdsel("compare", "--json", "table.json", "--csv", "table.csv", "--markdown", "table.md", "--shots", "2")
    assert "random (mean over seeds)" in output
    assert "should stand in the table" not in output  # zero-shot and majority were answered beside the others
    rows = json.loads(Path("table.json").read_text())
    assert len(Path("table.csv").read_text().splitlines()) == 1 + len(rows)
    assert sum(line.startswith("| ") for line in Path("table.md").read_text().splitlines()) == 1 + len(rows)
    assert {"zero-shot", "majority"} <= {row["selector"] for row in rows}
    assert {row["n"] for row in rows} == {40}
    by_name = {row["name"]: row for row in rows}
    # The oracle is the best of the scored pointers, so no other choice among them can beat it.
    assert by_name["oracle"]["accuracy"] >= max(by_name[name]["accuracy"] for name in ("nearest-image", "random-42"))


def test_a_policy_that_is_worse_fails_a_check_only_where_that_is_asked_for(folder):
    # The oracle is far better than a policy that learnt from 60 queries.
    assert "is worse than" not in icdsel("compare", "--reference", "oracle", "--shots", "2")
    told = " ".join(icdsel("compare", "--reference", "oracle", "--shots", "2", "--fail-if-worse", code=1).split())
    assert "grpo_epoch3 at 2 shots is worse than oracle: the difference is -" in told
    assert "below 0" in told
    icdsel("compare", "--reference", "zero-shot", "--shots", "2", "--fail-if-worse")


def test_every_selector_stands_beside_zero_shot_and_majority(folder, tmp_path):
    icdsel("infer", "--n", 5, "--selector", "random", "--shots", 1, "--results-dir", tmp_path)
    predictions = tmp_path / "world/infer/RandSampler_tiny-vlm"
    names = {path.name.removesuffix("_validation-5.jsonl") for path in predictions.glob("*.jsonl")}
    assert names == {"random-42", "zero-shot", "majority"}
    ours = folder / "results/world/infer/RandSampler_tiny-vlm"
    told = " ".join(icdsel("compare", predictions, ours, code=2).split())
    assert "different queries: 2 sets of 5 to 40" in told and "--allow-different" in told
    told = " ".join(icdsel("compare", predictions, ours, "--allow-different", "--json", "five.json").split())
    assert "Compared although they differ: different queries" in told
    rows = json.loads(Path("five.json").read_text())
    assert {row["n"] for row in rows} == {5}
    # Zero-shot answers the five as it did among the forty, so it is there once.
    assert [row["name"] for row in rows].count("zero-shot") == 1


def test_rl_data_of_other_settings_are_refused_by_the_name_of_the_setting(folder):
    data = folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
    before = data.read_bytes()
    told = icdsel("train", "--beam", 3, code=2)
    assert "proposals.beam: 5 then, 3 now" in told
    assert "--overwrite" in told
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--dataset", "okvq"], "there are world, okvqa, vqav2"),
        (["train", "--dataset", "okvqa"], "OpenEnded_mscoco_train2014_questions.json"),
        (["train", "--sampler", "best"], "'rand', 'text-sim', 'img-sim' or 'mix'"),
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
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(folder, words, told):
    Path("empty.jsonl").write_text("")
    Path("torn.jsonl").write_text('{"question_id": 1, "ima')
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    output = " ".join(icdsel(*words, code=2).split())
    assert told in output
    assert "Traceback" not in output
    after = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before  # nothing overwritten


def test_a_checkpoint_of_another_width_is_refused(folder):
    from icdsel.checkpoint import save_policy
    from icdsel.policy import PointerConfig, PointerNetwork

    network = PointerNetwork(PointerConfig(d_model=7, hidden_dim=8))
    save_policy("narrow.pt", network, epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    assert "width 7" in icdsel("infer", "--n", 40, "--checkpoint", "narrow.pt", code=2)
    assert "narrow.pt" in icdsel("train", "--init", "narrow.pt", "--run", "narrow", code=2)
    assert "width 7" in icdsel("gen-rl-data", "--init", "narrow.pt", "-o", "narrow.jsonl", code=2)


def test_more_queries_than_there_are_takes_all_and_says_so(folder, monkeypatch):
    told = icdsel("infer", "--n", 5000, "--selector", "zero-shot", "--split", "tuning")
    assert "has 1000: taking all" in told
    for name, lines in (("zero-shot", 1000), ("majority", 4000)):
        path = folder / f"results/world/infer/RandSampler_tiny-vlm/{name}_tuning-1000.jsonl"
        assert len(path.read_text().splitlines()) == lines
        path.unlink()
        path.with_suffix(".meta.json").unlink()


def test_old_variables_are_warned_about_by_name(folder, monkeypatch):
    monkeypatch.setenv("GRPO_EPOCHS", "3")
    monkeypatch.setenv("ICDSEL_TRAIN_BATCHSIZE", "3")
    told = icdsel("convert", "rce_epoch5.pt", "--run", RUN)
    assert "--grpo-epochs" in told
    assert "ICDSEL_TRAIN_BATCH_SIZE" in told


def test_an_interrupted_generation_goes_on_to_the_same_bytes(folder):
    command = [sys.executable, "-m", "icdsel", "gen-rl-data", "--queries", "96"]
    part = folder / "interrupted.jsonl.part"
    process = subprocess.Popen([*command, "-o", "interrupted.jsonl"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "give the same command again" in told
    lines = part.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < 96
    with part.open("ab") as file:
        file.write(b'{"question_id": 17, "torn')
    assert "going on after" in icdsel("gen-rl-data", "--queries", 96, "-o", "interrupted.jsonl")
    icdsel("gen-rl-data", "--queries", 96, "-o", "whole.jsonl")
    assert (folder / "interrupted.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not part.exists()


def test_help_has_examples(folder):
    for command in ("gen-rl-data", "train", "convert", "infer", "compare", "demo"):
        assert f"icdsel {command}" in icdsel(command, "--help")


def test_shards_put_together_are_the_same_bytes(folder, monkeypatch):
    whole = (folder / "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl").read_bytes()
    icdsel("gen-rl-data", "--shard", "2/2", "--output", "parts.jsonl")
    assert Path("parts.shard-2-of-2.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[32:])
    asked = []
    score = generation._score
    monkeypatch.setattr(generation, "_score", lambda *args: asked.append(len(args[1])) or score(*args))
    told = icdsel("gen-rl-data", "--output", "parts.jsonl")
    assert "28 queries were scored in shards" in told
    assert asked == [32]  # only what no shard had
    assert Path("parts.jsonl").read_bytes() == whole
    icdsel("gen-rl-data", "--shard", "1/2", "--output", "other.jsonl", "--seed", 1)
    assert "left alone" in icdsel("gen-rl-data", "--output", "other.jsonl")
    assert Path("other.jsonl").read_bytes() == whole
    for wrong in ("3/2", "0/2", "x"):
        assert "--shard is K/N" in icdsel("gen-rl-data", "--shard", wrong, code=2)
