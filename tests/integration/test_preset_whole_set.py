"""The preset for choosing from the whole training set, beside the default one."""

from pathlib import Path

from typer.testing import CliRunner

from icdsel.artefacts.rl_data import rl_data_path
from icdsel.artefacts.run_folder import run_name
from icdsel.cli.app import app
from icdsel.settings.loading import settings_from

WHOLE = {"data": {"preset": "whole-set"}}


def test_it_chooses_from_everything_and_as_few_icds_as_are_worth_it():
    settings = settings_from(WHOLE)
    assert (settings.data.pool_size, settings.data.embed) == ("all", "separate")
    assert (settings.proposals.min_shots, settings.proposals.answers, settings.proposals.prune) == (0, 3, 2)
    assert settings.reward.price == 0.1
    assert (settings.train.rce_over, settings.train.question_gate, settings.train.num_layers) == ("best", 32, 0)


def test_given_values_override_it():
    settings = settings_from({"data": {"preset": "whole-set", "pool_size": 32}, "train": {"rce_lr": 1e-3}})
    assert settings.data.pool_size == 32 and settings.train.rce_lr == 1e-3
    assert settings.train.rce_over == "group"  # pools of 32 are small


def test_its_files_have_names_of_their_own():
    whole, usual = settings_from(WHOLE), settings_from({})
    assert rl_data_path(whole) == rl_data_path(usual).with_stem(f"{rl_data_path(usual).stem}_whole-set")
    assert run_name(whole) == f"{run_name(usual)}_whole-set"
    assert run_name(settings_from({"data": {"preset": "lever-plus"}})) == "v3_RandSampler_tiny-vlm_lever-plus"


def test_it_runs_from_rl_data_to_the_comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    world = ["--preset", "whole-set", "--dataset", "world-hard:train=300"]
    for line in (
        ["train", *world, "--queries", "40", "--rce-epochs", "2", "--run", "one"],
        ["infer", *world, "--run", "one", "--n", "24", "--shots", "2,auto", "--selector", "policy,nearest-both"],
        ["compare", *world, "--json", "table.json"],
    ):
        result = run.invoke(app, line)
        assert result.exit_code == 0, result.output
    text = Path("table.json").read_text()
    assert '"mean_shots"' in text and '"pool": "all"' in text
