import inspect
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

import icdsel.artefacts.run_folder
from icdsel.artefacts.run_folder import run_name
from icdsel.cli.app import app
from icdsel.errors import SettingsError
from icdsel.policy.losses import grpo_loss, rce_loss, rce_temperature
from icdsel.policy.network import PointerConfig
from icdsel.policy.rewards import NORMALIZATIONS, REWARD_MODES, normalize_rewards, pointer_reward
from icdsel.settings.hints import OLD_VARIABLES, stray_variables, without_effect
from icdsel.settings.loading import Settings, load_settings
from icdsel.settings.names import every_setting, flag, variable_names
from icdsel.settings.presets import CLIP_B32, CLIP_L14, PRESETS, RECIPES
from icdsel.settings.tables import TABLES, DataSettings, InferSettings, RewardMode, RewardSettings, TrainSettings
from icdsel.tasks.vqa import vqa_accuracy

COMMANDS = typer.main.get_command(app).commands
QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where `icdsel.toml` would lie."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(command: str) -> dict[str, Any]:
    """The options of a command by flag."""
    return {name: option for option in COMMANDS[command].params for name in option.opts if name.startswith("--")}


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Runs `icdsel train` through the command line up to the stage, and returns the settings that reach it."""

    def invoke(*arguments: str) -> Settings:
        reached: list[Settings] = []

        def stage(settings: Settings, **_: object) -> SimpleNamespace:
            reached.append(settings)
            return SimpleNamespace(folder=Path("run"), checkpoint=Path("rce_epoch5.pt"), failed=0)

        monkeypatch.setattr(icdsel.stages.train, "train", stage)
        result = CliRunner().invoke(app, ["train", *arguments])
        assert result.exit_code == 0, result.output
        return reached[0]

    return invoke


def refusal(given: dict[str, dict[str, Any]]) -> str:
    with pytest.raises(SettingsError) as told:
        load_settings(given)
    return str(told.value)


# --- the flags of `train` ---------------------------------------------------------------------------------

# The mission's table: flag, place, default.
MISSION = [
    ("--rce-epochs", "train.rce_epochs", 5),
    ("--grpo-epochs", "train.grpo_epochs", 0),
    ("--batch-size", "train.batch_size", 1),
    ("--rce-lr", "train.rce_lr", 1e-4),
    ("--grpo-lr", "train.grpo_lr", 5e-6),
    ("--kl-beta", "train.kl_beta", 0.15),
    ("--num-layers", "train.num_layers", 1),
    ("--reward-mode", "reward.mode", "hard_plus_soft"),
    ("--hard-weight", "reward.hard_weight", 1.0),
    ("--soft-weight", "reward.soft_weight", 1.0),
    ("--rce-normalized-reward", "train.rce_normalized_reward", False),
    ("--freeze-backbone", "train.freeze_backbone", False),
]


def value_at(settings: Settings, place: str) -> Any:
    table, name = place.split(".")
    return getattr(getattr(settings, table), name)


@pytest.mark.parametrize(("spelled", "place", "default"), MISSION)
def test_the_missions_settings_are_flags_of_train(spelled: str, place: str, default: object) -> None:
    option = options("train")[spelled]
    assert option.default is None  # what is not given leaves the setting alone
    shown = re.search(r"\[default: (.*)\]$", option.help)
    assert shown is not None
    if isinstance(default, bool):
        assert shown[1] == str(default).lower()
        assert option.secondary_opts == [f"--no-{spelled[2:]}"]
    else:
        assert type(default)(shown[1]) == default
    assert value_at(load_settings({}), place) == default


def test_a_bare_train_gets_the_missions_defaults(train: Callable[..., Settings]) -> None:
    settings = train()
    assert {place: value_at(settings, place) for _, place, _ in MISSION} == {p: default for _, p, default in MISSION}


@pytest.mark.parametrize(
    ("arguments", "place", "value"),
    [
        (["--rce-epochs", "7"], "train.rce_epochs", 7),
        (["--grpo-epochs", "3"], "train.grpo_epochs", 3),
        (["--batch-size", "8"], "train.batch_size", 8),
        (["--rce-lr", "0.01"], "train.rce_lr", 0.01),
        (["--grpo-lr", "1e-5"], "train.grpo_lr", 1e-5),
        (["--kl-beta", "0.2"], "train.kl_beta", 0.2),
        (["--num-layers", "3"], "train.num_layers", 3),
        (["--reward-mode", "soft_only"], "reward.mode", "soft_only"),
        (["--hard-weight", "2"], "reward.hard_weight", 2.0),
        (["--soft-weight", "0.5"], "reward.soft_weight", 0.5),
        (["--rce-normalized-reward"], "train.rce_normalized_reward", True),
        (["--freeze-backbone"], "train.freeze_backbone", True),
    ],
)
def test_a_flag_sets_its_setting_and_no_other(
    train: Callable[..., Settings], arguments: list[str], place: str, value: object
) -> None:
    settings = train(*arguments)
    assert value_at(settings, place) == value
    differing = [
        f"{table}.{name}"
        for table, name, _ in every_setting()
        if value_at(settings, f"{table}.{name}") != value_at(load_settings({}), f"{table}.{name}")
    ]
    assert differing == [place]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_options_of_a_command_have_one_flag(command: str) -> None:
    spelled = [name for option in COMMANDS[command].params for name in (*option.opts, *option.secondary_opts)]
    assert len(set(spelled)) == len(spelled)


def test_every_setting_has_words_and_a_command_that_takes_it() -> None:
    taken = {option.name for command in COMMANDS.values() for option in command.params}
    for table, name, field in every_setting():
        assert field.description, f"{table}.{name}"
        assert f"{table}__{name}" in taken


# --- where a value comes from -----------------------------------------------------------------------------


def test_flag_before_variable_before_file_before_default(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Settings]
) -> None:
    def found(*arguments: str) -> tuple[int, float, str]:
        settings = train(*arguments)
        return settings.train.batch_size, settings.train.rce_lr, settings.data.sampler

    assert found() == (1, 1e-4, "rand")
    (empty_folder / "icdsel.toml").write_text(
        '[train]\nbatch_size = 2\nrce_lr = 0.002\n[data]\nsampler = "text-sim"\n', encoding="utf-8"
    )
    assert found() == (2, 0.002, "text-sim")
    monkeypatch.setenv("ICDSEL_TRAIN_BATCH_SIZE", "3")
    monkeypatch.setenv("ICDSEL_DATA_SAMPLER", "img-sim")
    assert found() == (3, 0.002, "img-sim")
    assert found("--batch-size", "4") == (4, 0.002, "img-sim")
    assert found("--batch-size", "4", "--rce-lr", "0.004", "--sampler", "mix") == (4, 0.004, "mix")
    # A flag for one setting of a table leaves the others to the file and the variables.
    assert found("--rce-lr", "0.004") == (3, 0.004, "img-sim")


def test_zero_and_false_count_at_every_level(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Settings]
) -> None:
    (empty_folder / "icdsel.toml").write_text(
        "[train]\ngrpo_epochs = 3\nkl_beta = 0.5\nfreeze_backbone = true\ndropout = 0.4\n[data]\nseed = 7\n"
    )
    settings = train()
    assert (settings.train.grpo_epochs, settings.train.freeze_backbone, settings.data.seed) == (3, True, 7)
    settings = train("--grpo-epochs", "0", "--kl-beta", "0", "--no-freeze-backbone", "--dropout", "0", "--seed", "0")
    assert (settings.train.grpo_epochs, settings.train.kl_beta, settings.train.dropout) == (0, 0.0, 0.0)
    assert (settings.train.freeze_backbone, settings.data.seed) == (False, 0)
    monkeypatch.setenv("ICDSEL_TRAIN_GRPO_EPOCHS", "0")
    monkeypatch.setenv("ICDSEL_TRAIN_FREEZE_BACKBONE", "false")
    monkeypatch.setenv("ICDSEL_TRAIN_DROPOUT", "0")
    settings = train()
    assert (settings.train.grpo_epochs, settings.train.freeze_backbone, settings.train.dropout) == (0, False, 0.0)
    # And back again over them.
    settings = train("--grpo-epochs", "2", "--freeze-backbone")
    assert (settings.train.grpo_epochs, settings.train.freeze_backbone) == (2, True)


def test_lists_are_given_with_commas_everywhere(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({"infer": {"shots": "1,2"}}).infer.shots == (1, 2)
    assert load_settings({"infer": {"selector": "policy, random"}}).infer.selector == ("policy", "random")
    monkeypatch.setenv("ICDSEL_INFER_SHOTS", "3,4")
    assert load_settings({}).infer.shots == (3, 4)
    (empty_folder / "icdsel.toml").write_text("[infer]\nshots = [2]\n[proposals]\ntemperatures = [0.5, 2]\n")
    assert load_settings({}).infer.shots == (3, 4)
    assert load_settings({}).proposals.temperatures == (0.5, 2.0)


def test_every_setting_has_a_variable_that_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(variable_names()) == len(list(every_setting()))
    monkeypatch.setenv("ICDSEL_PROPOSALS_QUERY_SPLIT", "tuning")
    monkeypatch.setenv("ICDSEL_VLM_MAX_NEW_TOKENS", "9")
    monkeypatch.setenv("ICDSEL_DATA_EXCLUDE_SAME_IMAGE", "false")
    settings = load_settings({})
    assert (settings.proposals.query_split, settings.vlm.max_new_tokens) == ("tuning", 9)
    assert settings.data.exclude_same_image is False


# --- what the dataset and the recipe decide ---------------------------------------------------------------


def test_the_dataset_decides_the_model_and_the_number_of_queries() -> None:
    def decided(**data: str) -> tuple[str | None, int | None]:
        settings = load_settings({"data": data})
        return settings.vlm.model, settings.proposals.queries

    assert decided() == ("tiny-vlm", 800)
    assert decided(dataset="okvqa") == (QWEN, 800)
    assert decided(dataset="vqav2") == decided(dataset="VQAV2_local") == (QWEN, 5000)
    own = load_settings({"data": {"dataset": "vqav2"}, "vlm": {"model": "tiny-vlm"}, "proposals": {"queries": 10}})
    assert (own.vlm.model, own.proposals.queries) == ("tiny-vlm", 10)


def test_the_recipe_fills_in_what_is_not_said() -> None:
    plain, original = TrainSettings(), TrainSettings(recipe="lever-plus")
    for settings in (plain, original):
        recipe = RECIPES[settings.recipe]
        for name in TrainSettings.by_recipe:
            assert getattr(settings, name) == getattr(recipe, name)
    # The original's network: no gate, no tower, one head, dropout 0.5.
    assert (original.gate, original.tower, original.num_heads, original.dropout) == (False, 0, 1, 0.5)
    assert plain.gate is True
    own = TrainSettings(recipe="lever-plus", gate=True, dropout=0.0)
    assert (own.gate, own.dropout, own.num_heads) == (True, 0.0, 1)


@pytest.mark.parametrize(
    ("table", "name", "given", "meant"),
    [
        ("data", "dataset", "okvqa_local", "okvqa"),
        ("data", "dataset", "vqav2_local", "vqav2"),
        ("data", "dataset", "okvqa", "okvqa"),
        ("data", "sampler", "rand_sampler", "rand"),
        ("data", "sampler", "RandSampler", "rand"),
        ("data", "sampler", "text_sim_sampler", "text-sim"),
        ("data", "sampler", "img_sim_sampler", "img-sim"),
        ("data", "sampler", "mix_sampler", "mix"),
        ("vlm", "model", "qwen2.5_vl_3B", QWEN),
        ("vlm", "model", "qwen2.5-vl-3b", QWEN),
        ("vlm", "model", "Qwen2.5-VL-3B-Instruct", QWEN),
        ("vlm", "model", "someone/Other-VLM", "someone/Other-VLM"),
    ],
)
def test_names_as_the_scripts_spelled_them(
    table: str, name: str, given: str, meant: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert value_at(load_settings({table: {name: given}}), f"{table}.{name}") == meant
    (empty_folder / "icdsel.toml").write_text(f'[{table}]\n{name} = "{given}"\n')
    assert value_at(load_settings({}), f"{table}.{name}") == meant
    (empty_folder / "icdsel.toml").unlink()
    monkeypatch.setenv(f"ICDSEL_{table}_{name}".upper(), given)
    assert value_at(load_settings({}), f"{table}.{name}") == meant


def test_the_first_line_of_the_scripts(train: Callable[..., Settings]) -> None:
    # train_v3.sh vqa okvqa_local 0 query_img_text_icd_img_text rand_sampler qwen2.5_vl_3B
    old = train("--dataset", "okvqa_local", "--sampler", "rand_sampler", "--model", "qwen2.5_vl_3B")
    new = train("--dataset", "okvqa", "--sampler", "rand", "--model", "qwen2.5-vl-3b")
    assert old == new
    assert new.data.embed == "both"
    assert new.dataset_dir / "model_cpk" / run_name(new) == Path(
        "results/okvqa/model_cpk/v3_RandSampler_Qwen2_5-VL-3B-Instruct"
    )


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[train]\nbatchsize = 2\n", ["'train.batchsize'", "did you mean 'batch_size'?"]),
        ("[trian]\nbatch_size = 2\n", ["'trian'", "did you mean 'train'?"]),
        ("batch_size = 2\n", ["'batch_size'", "data, vlm, proposals, reward, train, infer"]),
        ("[infer]\nxyz = 1\n", ["'infer.xyz'", "there are: n, shots, selector"]),
        ("[train]\nbatch_size = 0\n", ["--batch-size (train.batch_size)", "greater than or equal to 1", "got 0"]),
        ("[data]\nsampler = 'best'\n", ["--sampler", "'rand'", "'mix'", "got 'best'"]),
        ("[reward]\nmode = 'hybrid'\n", ["--reward-mode (reward.mode)", "use hard_plus_soft", "got 'hybrid'"]),
        ("[train\n", ["icdsel.toml is not valid TOML", "line 1"]),
        ("data = 3\n", ["[data]", "dictionary"]),
        ("[data]\ndataset = ['okvqa']\n", ["--dataset", "string"]),
        ("[train]\nrecipe = ['icdsel']\n", ["--recipe", "'lever-plus'"]),
    ],
)
def test_what_is_wrong_in_the_file_is_named(empty_folder: Path, content: str, parts: list[str]) -> None:
    (empty_folder / "icdsel.toml").write_text(content)
    told = refusal({})
    for part in parts:
        assert part in told


def test_a_mark_before_the_file_is_passed_over(empty_folder: Path) -> None:
    (empty_folder / "icdsel.toml").write_text("[train]\nbatch_size = 2\n", encoding="utf-8-sig")
    assert load_settings({}).train.batch_size == 2


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_not_passed_over(empty_folder: Path, make: Callable[[Path], None]) -> None:
    make(empty_folder / "icdsel.toml")
    assert "icdsel.toml cannot be read" in refusal({})


@pytest.mark.parametrize("name", ["..jsonl", "...jsonl", "data/...jsonl"])
def test_results_do_not_leave_their_folder(empty_folder: Path, name: str) -> None:
    assert "--dataset (data.dataset)" in refusal({"data": {"dataset": name}})


def test_every_mistake_is_told_at_once(empty_folder: Path) -> None:
    (empty_folder / "icdsel.toml").write_text("[train]\nbatchsize = 2\nrce_lr = -1\n[dta]\n")
    told = refusal({"infer": {"n": "many"}})
    assert len(told.splitlines()) == 4
    for part in ("train.batchsize", "--rce-lr", "'dta'", "--n (infer.n)"):
        assert part in told


# What does not fit together, and the remedy that the message must name.
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"infer": {"n": "0"}}, ["n is 0", "-1 for all"]),
        ({"infer": {"n": "-5"}}, ["n is -5", "-1 for all"]),
        ({"infer": {"shots": "0,1"}}, ["shots", "1 or more", "zero-shot"]),
        ({"infer": {"shots": "2,2"}}, ["shots", "different"]),
        ({"infer": {"shots": ""}}, ["shots"]),
        ({"infer": {"selector": "policy,best"}}, ["--selector", "'nearest-both'", "'best'"]),
        ({"infer": {"selector": ""}}, ["no selector"]),
        ({"train": {"rce_epochs": "0", "grpo_epochs": "0"}}, ["rce_epochs and grpo_epochs", "nothing"]),
        ({"train": {"hidden_dim": "30"}}, ["hidden_dim (30)", "multiple of num_heads (4)"]),
        ({"vlm": {"icd_template": "{answer}"}}, ["icd_template", "{question}"]),
        ({"vlm": {"query_template": "Answer!"}}, ["query_template", "{question}"]),
        ({"vlm": {"icd_template": "{question}"}}, ["icd_template", "{answer}"]),
        ({"vlm": {"min_pixels": "100", "max_pixels": "99"}}, ["min_pixels (100)", "max_pixels (99)"]),
        ({"proposals": {"temperatures": "1.0,0"}}, ["temperatures", "above 0"]),
        (
            {"proposals": {"beam": "0", "samples": "0", "retrieval": "0", "random": "0"}},
            ["no pointer", "beam, samples, retrieval or random"],
        ),
    ],
)
def test_what_does_not_fit_together_is_told_with_the_remedy(given: dict[str, dict[str, Any]], parts: list[str]) -> None:
    told = refusal(given)
    for part in parts:
        assert part in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["infer", "--n", "0"], "-1 for all"),
        (["train", "--rce-epochs", "0"], "nothing would be trained"),
        (["train", "--sampler", "best"], "--sampler"),
        (["train", "--batch-size", "x"], "--batch-size (train.batch_size)"),
        (["gen-rl-data", "--query-template", "Answer!"], "{question}"),
    ],
)
def test_a_mistake_ends_with_one_message_and_code_2(arguments: list[str], part: str, empty_folder: Path) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert part in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert list(empty_folder.iterdir()) == []


# --- what is only warned about ----------------------------------------------------------------------------


def test_variables_without_effect_are_named_with_the_flag_that_does_it() -> None:
    warnings = stray_variables(
        {
            "GRPO_EPOCHS": "3",
            "FREEZE_BACKBONE_IN_GRPO": "true",
            "ICDSEL_TRAIN_BATCHSIZE": "2",
            "ICDSEL_TRAIN_BATCH_SIZE": "2",
            "ICDSEL_QQQ": "1",
            "HOME": "/root",
        }
    )
    assert warnings == [
        "FREEZE_BACKBONE_IN_GRPO=true is ignored; the flag --freeze-backbone does it now",
        "GRPO_EPOCHS=3 is ignored; the flag --grpo-epochs does it now",
        "ICDSEL_QQQ is no setting and is ignored",
        "ICDSEL_TRAIN_BATCHSIZE is no setting and is ignored; did you mean ICDSEL_TRAIN_BATCH_SIZE?",
    ]


def test_stray_variables_are_warned_about_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., Settings]
) -> None:
    plain = train()
    for name, value in {"GRPO_EPOCHS": "3", "BATCH_SIZE": "9", "ICDSEL_TRAIN_BATCHSIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train("--rce-epochs", "5") == plain
    result = CliRunner().invoke(app, ["train"])
    assert result.exit_code == 0
    for part in ("GRPO_EPOCHS=3", "--grpo-epochs", "BATCH_SIZE=9", "--batch-size", "ICDSEL_TRAIN_BATCHSIZE"):
        assert part in result.output


def test_the_flags_that_replace_the_old_variables_exist() -> None:
    there = {name for command in COMMANDS.values() for option in command.params for name in option.opts}
    there |= {name for command in COMMANDS.values() for option in command.params for name in option.secondary_opts}
    assert set(OLD_VARIABLES.values()) <= there
    # All twelve of the mission's table are among them.
    assert {spelled for spelled, _, _ in MISSION} <= set(OLD_VARIABLES.values())


# --- nothing heavy is loaded ------------------------------------------------------------------------------

_HEAVY = """
import sys
from icdsel.__main__ import main
sys.argv = ["icdsel", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code
heavy = sorted({"torch", "transformers", "numpy", "scipy", "matplotlib", "PIL"} & set(sys.modules))
sys.exit(f"code {code}, loaded {heavy}" if code or heavy else 0)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    made = subprocess.run([sys.executable, "-c", _HEAVY, *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip()


# --- names of runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "suffix"),
    [
        ({}, ""),
        ({"train": {"rce_epochs": "5", "kl_beta": "0.15"}, "reward": {"hard_weight": "1"}}, ""),
        ({"train": {"grpo_epochs": "3", "freeze_backbone": True}}, "_grpo-epochs-3_freeze-backbone"),
        ({"train": {"rce_normalized_reward": True}}, "_rce-normalized-reward"),
        ({"train": {"grpo_lr": "1e-5", "kl_beta": "0.1"}}, "_grpo-lr-1e-05_kl-beta-0.1"),
        ({"train": {"kl_beta": "0", "dropout": "0"}}, "_kl-beta-0_dropout-0"),
        ({"train": {"gate": False}}, "_no-gate"),
        ({"train": {"train_seed": "0"}}, "_train-seed-0"),
        ({"train": {"init": "runs/other/rce_epoch5.pt"}}, "_init-rce_epoch5"),
        ({"reward": {"mode": "soft_only", "soft_weight": "2"}}, "_mode-soft_only_soft-weight-2"),
        ({"train": {"recipe": "lever-plus"}}, "_lever-plus"),
        ({"train": {"recipe": "lever-plus", "gate": True}}, "_lever-plus_gate"),
        ({"data": {"seed": "7"}, "vlm": {"max_new_tokens": "9"}}, ""),  # no training settings
    ],
)
def test_a_run_is_named_by_what_differs_from_the_defaults(given: dict[str, dict[str, Any]], suffix: str) -> None:
    assert run_name(load_settings(given)) == f"v3_RandSampler_tiny-vlm{suffix}"


def test_names_of_samplers_and_models_in_runs() -> None:
    def name(sampler: str, model: str) -> str:
        return run_name(load_settings({"data": {"sampler": sampler}, "vlm": {"model": model}}))

    assert name("rand", "qwen2.5-vl-3b") == "v3_RandSampler_Qwen2_5-VL-3B-Instruct"
    assert name("text-sim", "tiny-vlm") == "v3_TextSimSampler_tiny-vlm"
    assert name("img-sim", "/models/my vlm.v2/") == "v3_ImgSimSampler_my_vlm_v2"
    assert name("mix", "someone/Other-VLM") == "v3_MixSampler_Other-VLM"


def test_runs_of_different_training_settings_have_different_names() -> None:
    other: dict[str, dict[str, Any]] = {
        "reward": {
            "mode": "soft_only",
            "hard_weight": 2,
            "soft_weight": 2,
            "rel_weight": 2,
            "normalization": "rank",
            "clamp": 2,
            "skip_fallback": False,
            "require_correct": True,
            "accept_unsound": True,
        },
        "train": {
            "recipe": "lever-plus",
            "rce_epochs": 1,
            "grpo_epochs": 1,
            "batch_size": 2,
            "rce_lr": 1,
            "grpo_lr": 1,
            "kl_beta": 1,
            "online_samples": 4,
            "vlm_budget": 100,
            "num_layers": 2,
            "rce_normalized_reward": True,
            "freeze_backbone": True,
            "rce_over": "pool",
            "rce_temp_start": 1,
            "rce_temp_end": 1,
            "label_smoothing": 0.1,
            "clip_epsilon": 0.1,
            "hidden_dim": 64,
            "num_heads": 2,
            "tower": 0,
            "gate": False,
            "dropout": 0.3,
            "attn_dropout": 0.3,
            "init": "a.pt",
            "warm_start": "beams.json",
            "warm_epochs": 2,
            "train_seed": 1,
        },
    }
    assert {table: set(values) for table, values in other.items()} == {
        # TensorBoard changes no result; `online` cannot stand alone.
        table: set(TABLES[table].model_fields) - {"tensorboard", "online"}
        for table in other
    }
    names = [
        run_name(load_settings({table: {name: value}})) for table, row in other.items() for name, value in row.items()
    ]
    names.append(run_name(load_settings({})))
    names.append(run_name(load_settings({"train": {"online": True, "grpo_epochs": 1}})))
    assert len(set(names)) == len(names)


# --- settings and the library's signatures ----------------------------------------------------------------


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def default(table: type[BaseModel], name: str) -> Any:
    return table.model_fields[name].default


def test_the_defaults_of_the_network_are_the_originals_with_its_gate() -> None:
    original = RECIPES["lever-plus"]
    assert defaults_of(PointerConfig) == {
        "hidden_dim": default(TrainSettings, "hidden_dim"),
        "num_layers": default(TrainSettings, "num_layers"),
        "num_heads": original.num_heads,
        "gate": True,
        "dropout": original.dropout,
        "attn_dropout": original.attn_dropout,
        "tower": original.tower,
    }
    assert (original.gate, RECIPES["icdsel"].gate) == (False, True)


def test_the_defaults_of_the_losses_are_those_of_the_settings() -> None:
    assert defaults_of(rce_loss) == {
        "label_smoothing": default(TrainSettings, "label_smoothing"),
        "over": RECIPES["lever-plus"].rce_over,
    }
    assert defaults_of(grpo_loss) == {
        "clip_epsilon": default(TrainSettings, "clip_epsilon"),
        "top_k": None,
        "kl": RECIPES["lever-plus"].kl,
        "ref_log_prob": None,
    }
    assert defaults_of(rce_temperature) == {
        "start": default(TrainSettings, "rce_temp_start"),
        "end": default(TrainSettings, "rce_temp_end"),
    }


def test_the_defaults_of_the_rewards_are_those_of_the_settings() -> None:
    assert defaults_of(pointer_reward) == {
        name: default(RewardSettings, name) for name in ("hard_weight", "soft_weight", "rel_weight")
    }
    assert defaults_of(normalize_rewards) == {
        "method": default(RewardSettings, "normalization"),
        "clamp": default(RewardSettings, "clamp"),
        "mask": None,
    }
    assert defaults_of(vqa_accuracy) == {"variant": "official"}


def test_the_settings_offer_what_the_library_has() -> None:
    assert typing.get_args(RewardMode) == tuple(REWARD_MODES)
    assert default(RewardSettings, "mode") == next(iter(REWARD_MODES))
    offered = typing.get_args(RewardSettings.model_fields["normalization"].annotation)
    assert {*offered, "none"} == set(NORMALIZATIONS)
    assert set(RECIPES) == set(typing.get_args(TrainSettings.model_fields["recipe"].annotation))


def test_settings_survive_their_own_file() -> None:
    # What a run writes beside its results is enough to repeat it.
    settings = load_settings({"train": {"recipe": "lever-plus", "init": "a.pt"}, "infer": {"shots": "1,2"}})
    written = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert load_settings(written) == settings


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = load_settings({})
    with pytest.raises(ValueError, match="frozen"):
        settings.train.batch_size = 2  # type: ignore[misc]


def test_tables_can_be_given_ready_made() -> None:
    settings = Settings(data=DataSettings(dataset="vqav2"), infer=InferSettings(n=5))
    assert (settings.vlm.model, settings.proposals.queries, settings.infer.n) == (QWEN, 5000, 5)


def test_flags_are_names_with_dashes_unless_a_field_says_otherwise() -> None:
    spelled = {f"{table}.{name}": flag(name, field) for table, name, field in every_setting()}
    assert spelled["train.batch_size"] == "--batch-size"
    assert spelled["reward.mode"] == "--reward-mode"
    assert spelled["proposals.query_split"] == "--split"


# --- presets ----------------------------------------------------------------------------------------------


def test_a_preset_sets_what_is_not_set_by_itself() -> None:
    preset = load_settings({"data": {"preset": "lever-plus", "dataset": "okvqa"}})
    assert preset.data.shown_answer == "stemmed" and preset.data.metric == "openflamingo"
    assert preset.data.pool_rules == "lever-plus" and not preset.data.exclude_same_image
    assert (preset.vlm.num_beams, preset.vlm.length_penalty, preset.vlm.repetition_penalty) == (3, 0.0, "model")
    assert preset.vlm.system_prompt.startswith("In the upcoming task, you will see four sets of dialogues")
    assert preset.train.recipe == "lever-plus" and preset.train.gate is False
    own = load_settings({"data": {"preset": "lever-plus", "metric": "official"}, "vlm": {"num_beams": "1"}})
    assert (own.data.metric, own.vlm.num_beams, own.vlm.clean_answers) == ("official", 1, "lever-plus")


def test_the_icdsel_preset_is_what_the_tables_say() -> None:
    for table, values in PRESETS["lever-plus"].items():
        for name, value in values.items():
            assert TABLES[table].model_fields[name].default != value
    assert PRESETS["icdsel"] == {}


@pytest.mark.parametrize(
    ("given", "encoder", "sampler_encoder"),
    [
        ({}, "vlm", "vlm"),
        ({"data": {"dataset": "okvqa"}}, CLIP_B32, CLIP_B32),
        ({"data": {"dataset": "okvqa", "preset": "lever-plus"}}, CLIP_B32, CLIP_L14),
        ({"data": {"dataset": "okvqa"}, "vlm": {"model": "tiny-vlm"}}, "vlm", "vlm"),
        ({"data": {"preset": "lever-plus"}}, "vlm", "vlm"),
        ({"data": {"dataset": "okvqa", "encoder": "my-clip"}}, "my-clip", "my-clip"),
    ],
)
def test_what_embeds_by_default(given: dict[str, Any], encoder: str, sampler_encoder: str) -> None:
    data = load_settings(given).data
    assert (data.encoder, data.sampler_encoder) == (encoder, sampler_encoder)


@pytest.mark.parametrize("mode", ["legacy", "hybrid"])
def test_retired_reward_modes_name_the_one_to_use(mode: str) -> None:
    with pytest.raises(SettingsError, match=rf"retired.*use hard_plus_soft, got '{mode}'"):
        load_settings({"reward": {"mode": mode}})


@pytest.mark.parametrize("model", ["flamingo_3B", "openflamingo/OpenFlamingo-9B-vitl-mpt7b", "idefics-9b"])
def test_flamingo_is_refused_with_what_to_use(model: str) -> None:
    with pytest.raises(SettingsError, match=r"not supported.*qwen2\.5-vl-3b"):
        load_settings({"vlm": {"model": model}})


def test_models_of_today_are_not_taken_for_flamingo() -> None:
    for model in ("HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceM4/idefics2-8b", "llava-hf/llava-v1.6-mistral-7b-hf"):
        assert load_settings({"vlm": {"model": model}}).vlm.model == model


def test_a_size_is_a_number_or_all() -> None:
    assert load_settings({"data": {"pool_size": "128"}}).data.pool_size == 128
    assert load_settings({"data": {"pool_size": "all"}}).data.pool_size == "all"
    with pytest.raises(SettingsError, match=r"--pool-size"):
        load_settings({"data": {"pool_size": "some"}})


@pytest.mark.parametrize("seconds", [0, 1e-9, 1e10])
def test_a_limit_of_time_is_one_that_a_timer_can_keep(seconds: float) -> None:
    with pytest.raises(SettingsError, match="--call-timeout"):
        load_settings({"vlm": {"call_timeout": seconds}})


def test_what_may_be_this_or_that_is_refused_in_one_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"data": {"pool_size": "0"}})
    assert str(caught.value).count("--pool-size") == 1
    assert "greater than or equal to 1, or 'all'" in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_settings_are_finite(value: str) -> None:
    with pytest.raises(SettingsError, match="--length-penalty"):
        load_settings({"vlm": {"length_penalty": value}})


def test_a_file_of_settings_that_is_not_utf8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("icdsel.toml").write_bytes(b"[data]\ndataset = '\xff'\n")
    with pytest.raises(SettingsError, match=r"icdsel\.toml is not UTF-8: byte"):
        load_settings({})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": {"warm_epochs": 9}}, "--warm-epochs changes nothing without --warm-start"),
        ({"train": {"freeze_backbone": True}}, "--freeze-backbone changes nothing without GRPO"),
        ({"reward": {"rel_weight": 1}}, "--rel-weight changes nothing in the mode hard_plus_soft"),
        ({"vlm": {"length_penalty": 0.5}}, "--length-penalty changes nothing with one beam"),
        ({"vlm": {"layout": "turns", "icd_template": "{question}{answer}"}}, "--icd-template changes nothing"),
        ({"data": {"sampler": "mix", "pool_size": "all"}}, "--sampler changes nothing"),
    ],
)
def test_flags_without_effect_are_named(given: dict[str, Any], told: str) -> None:
    (warning,) = without_effect(load_settings(given), given)
    assert warning.startswith(told)
    assert without_effect(load_settings(given), ["infer"]) == []


def test_nothing_is_warned_of_by_default() -> None:
    assert without_effect(load_settings({}), TABLES) == []
    preset = load_settings({"data": {"preset": "lever-plus"}, "train": {"grpo_epochs": 3, "freeze_backbone": True}})
    assert without_effect(preset, TABLES) == []


def test_online_is_for_grpo_of_the_recipe_icdsel() -> None:
    with pytest.raises(SettingsError, match="grpo_epochs"):
        load_settings({"train": {"online": True}})
    with pytest.raises(SettingsError, match="lever-plus has no online GRPO"):
        load_settings({"train": {"online": True, "grpo_epochs": 2, "recipe": "lever-plus"}})
