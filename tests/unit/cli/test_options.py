"""From the command line to settings: flags, their help, and how mistakes end."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from command_line import icdsel
from typer.testing import CliRunner

from icdsel.artefacts.run_folder import run_name
from icdsel.cli.app import app
from icdsel.cli.exits import finish
from icdsel.cli.help import COMMON, PLACES
from icdsel.cli.interruption import NOTHING_KEPT
from icdsel.cli.options import with_settings
from icdsel.console import show_messages
from icdsel.settings import Settings, settings_from
from icdsel.settings.hints import OLD_VARIABLES
from icdsel.settings.names import default_text, every_setting

COMMANDS = typer.main.get_command(app).commands

# The settings that the scripts of Lever-Plus took: flag, place, default.
SCRIPTS = [
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


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(command: str) -> dict[str, Any]:
    """The options of a command, by flag."""
    return {name: option for option in COMMANDS[command].params for name in option.opts if name.startswith("--")}


class Command:
    """A command with the flags of some tables, which keeps the settings that it was called with."""

    def __init__(self, *tables: str, varied: tuple[str, ...] = ()) -> None:
        self.app = typer.Typer()
        self.output = ""
        self.settings: Settings | None = None

        def command(settings: Settings) -> None:
            self.settings = settings

        self.app.command()(with_settings(*tables, varied=varied)(command))

    def __call__(self, *arguments: str, code: int = 0) -> Settings:
        result = CliRunner().invoke(self.app, arguments)
        self.output = result.output
        assert result.exit_code == code, result.output
        assert self.settings is not None or code
        return self.settings  # type: ignore[return-value]


@pytest.fixture
def train() -> Command:
    """A command with the flags of `icdsel train`."""
    return Command("data", "vlm", "proposals", "reward", "train")


def value_at(settings: Settings, place: str) -> Any:
    table, name = place.split(".")
    return getattr(getattr(settings, table), name)


# --- flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spelled", "place", "default"), SCRIPTS)
def test_a_setting_of_lever_plus_is_a_flag_of_train(spelled: str, place: str, default: object) -> None:
    option = options("train")[spelled]
    assert option.default is None  # a flag that is not given leaves the setting alone
    assert option.help.endswith(f" [default: {default_text(*place.split('.'))}]")
    assert isinstance(default, bool) == (option.secondary_opts == [f"--no-{spelled[2:]}"])
    assert value_at(settings_from({}), place) == default


def test_train_without_flags_has_the_defaults(train: Command) -> None:
    settings = train()
    assert {place: value_at(settings, place) for _, place, _ in SCRIPTS} == {p: default for _, p, default in SCRIPTS}


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
        (["--device", "cpu"], "vlm.device", "cpu"),
        (["--train-device", "cpu"], "train.device", "cpu"),
    ],
)
def test_a_flag_sets_its_setting_and_no_other(train: Command, arguments: list[str], place: str, value: object) -> None:
    settings = train(*arguments)
    assert value_at(settings, place) == value
    places = [f"{table}.{name}" for table, name, _ in every_setting()]
    assert [p for p in places if value_at(settings, p) != value_at(settings_from({}), p)] == [place]
    assert {p for p in places if p.split(".")[1] in getattr(settings, p.split(".")[0]).model_fields_set} == {place}


def test_a_switch_can_be_turned_off(empty_folder: Path, train: Command) -> None:
    (empty_folder / "icdsel.toml").write_text("[train]\nfreeze_backbone = true\ngrpo_epochs = 3\n")
    assert train().train.freeze_backbone
    assert not train("--no-freeze-backbone").train.freeze_backbone


@pytest.mark.parametrize("command", COMMANDS)
def test_the_values_of_a_list_may_be_given_one_by_one(command: str) -> None:
    lists = [option for option in COMMANDS[command].params if option.metavar and option.metavar.endswith(",…")]
    assert all(option.multiple for option in lists if "__" in str(option.name))


def test_lists_that_are_given_one_by_one_are_joined() -> None:
    infer = Command("data", "vlm", "infer")
    settings = infer("--shots", "1", "--shots", "3,auto", "--selector", "random", "--selector", "oracle")
    assert settings.infer.shots == (1, 3, "auto") and settings.infer.selector == ("random", "oracle")
    infer("--selector", "random", "--selector", " ", code=2)
    assert "it is empty" in " ".join(infer.output.split())


def test_the_defaults_of_a_command_come_after_files_and_show_in_its_help(empty_folder: Path) -> None:
    kept: list[Settings] = []
    small = typer.Typer()

    def keep(settings: Settings) -> None:
        kept.append(settings)

    small.command()(with_settings("data", defaults={"data.preset": "whole-set", "data.dataset": "world-hard"})(keep))
    assert CliRunner().invoke(small, ["--dataset", "world"]).exit_code == 0
    (empty_folder / "icdsel.toml").write_text('[data]\npreset = "icdsel"\n')
    assert CliRunner().invoke(small, []).exit_code == 0
    assert [(each.data.preset, each.data.dataset) for each in kept] == [
        ("whole-set", "world"),
        ("icdsel", "world-hard"),
    ]
    assert kept[0].data.pool_size == "all" and kept[1].data.pool_size == 64
    assert options("demo")["--preset"].help.endswith("[default: whole-set]")
    assert options("demo")["--dataset"].help.endswith("[default: world-hard]")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_a_command_are_distinct(command: str) -> None:
    spelled = [name for option in COMMANDS[command].params for name in (*option.opts, *option.secondary_opts)]
    assert len(set(spelled)) == len(spelled)


def test_every_setting_is_a_flag_of_some_command() -> None:
    taken = {option.name for command in COMMANDS.values() for option in command.params}
    assert {f"{table}__{name}" for table, name, _ in every_setting()} <= taken


def test_the_arguments_of_lever_plus_scripts_mean_the_same(train: Command) -> None:
    # train_v3.sh vqa okvqa_local 0 query_img_text_icd_img_text rand_sampler qwen2.5_vl_3B
    old = train("--dataset", "okvqa_local", "--sampler", "rand_sampler", "--model", "qwen2.5_vl_3B")
    new = train("--dataset", "okvqa", "--sampler", "rand", "--model", "qwen2.5-vl-3b")
    assert old == new
    assert new.data.embed == "both"
    assert new.dataset_dir / "model_cpk" / run_name(new) == Path(
        "results/okvqa/model_cpk/v3_RandSampler_Qwen2_5-VL-3B-Instruct"
    )


def test_the_flags_that_replace_variables_of_lever_plus_exist() -> None:
    every = [option for command in COMMANDS.values() for option in command.params]
    exist = {name for option in every for name in (*option.opts, *option.secondary_opts)}
    assert set(OLD_VARIABLES.values()) <= exist
    assert {spelled for spelled, _, _ in SCRIPTS} <= set(OLD_VARIABLES.values())


def test_a_dataclass_parameter_becomes_the_options_of_its_fields() -> None:
    @dataclass(frozen=True)
    class Outputs:
        json_file: Annotated[Path | None, typer.Option("--json")] = None
        rows: Annotated[int, typer.Option("--rows")] = 3

    called: list[Outputs] = []
    small = typer.Typer()

    @small.command()
    @with_settings("infer")
    def show(settings: Settings, outputs: Outputs = Outputs()) -> None:
        called.append(outputs)

    assert CliRunner().invoke(small, ["--json", "a.json"]).exit_code == 0
    assert CliRunner().invoke(small, ["--rows", "5", "--n", "7"]).exit_code == 0
    assert called == [Outputs(Path("a.json")), Outputs(None, 5)]


# --- mistakes ---------------------------------------------------------------------------------------------


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


def test_stray_variables_are_warned_about_and_change_nothing(monkeypatch: pytest.MonkeyPatch, train: Command) -> None:
    before = train()
    for name, value in {"GRPO_EPOCHS": "3", "BATCH_SIZE": "9", "ICDSEL_TRAIN_BATCHSIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train("--rce-epochs", "5") == before
    for part in ("GRPO_EPOCHS=3", "--grpo-epochs", "BATCH_SIZE=9", "--batch-size", "ICDSEL_TRAIN_BATCHSIZE"):
        assert part in train.output


def test_a_given_setting_without_effect_is_warned_about(train: Command) -> None:
    train("--freeze-backbone", "--rel-weight", "0.1")
    assert "--freeze-backbone has no effect without GRPO" in " ".join(train.output.split())
    assert "--rel-weight has no effect with the reward mode hard_plus_soft" in " ".join(train.output.split())


def test_settings_that_the_command_varies_are_left_to_its_own_warnings() -> None:
    """`icdsel experiment rce,grpo --kl-beta 0.3` trains one variant with GRPO."""
    experiment = Command("data", "vlm", "reward", "train", varied=("train", "reward"))
    experiment("--kl-beta", "0.3", "--rel-weight", "0.1", "--length-penalty", "0.5")
    shown = " ".join(experiment.output.split())
    assert "--length-penalty has no effect" in shown
    assert "--kl-beta" not in shown and "--rel-weight" not in shown


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["infer", "--queries", "3"], "--n"),
        (["train", "--n", "3"], "--queries"),
        (["gen-rl-data", "--shots", "2"], "--pointer-shots"),
        (["infer", "--url", "http://a/v1"], "--vlm-url"),
        (["infer", "--selectr", "random"], "--selector"),
    ],
)
def test_a_flag_of_another_command_or_a_misspelt_one_is_answered_with_the_right_one(
    arguments: list[str], meant: str
) -> None:
    said = " ".join(icdsel(*arguments, code=2).replace("│", " ").split())
    assert re.search(rf"No such option.*[ ']{meant}\b", said)
    assert "--overwrite" not in said


def test_a_bench_does_not_promise_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt(2)

    monkeypatch.setattr("icdsel.bench.whole_set.bench_whole_set", interrupted)
    assert f"interrupted; {NOTHING_KEPT}" in icdsel("bench", "--whole-set", 64, code=130)


@pytest.mark.parametrize(("vlm", "has_model"), [({}, True), ({"url": "http://a/v1", "model": "a"}, False)])
def test_the_hint_for_own_data_names_a_model_where_none_is_served(
    vlm: dict[str, Any], has_model: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show_messages()
    finish(settings_from({"vlm": vlm}))
    said = " ".join(capsys.readouterr().err.split())
    assert "For your own data, add --dataset okvqa" in said and ("--model qwen2.5-vl-3b" in said) is has_model


# --- help -------------------------------------------------------------------------------------------------

_HEAVY = """
import sys
from icdsel.__main__ import main
sys.argv = ["icdsel", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    heavy = {"torch", "transformers", "numpy", "matplotlib", "PIL"} & set(sys.modules)
    sys.exit(f"loaded {heavy}" if ended.code or heavy else 0)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy_and_shows_examples(arguments: list[str]) -> None:
    made = subprocess.run([sys.executable, "-c", _HEAVY, *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip()
    if arguments[0] in COMMANDS:
        assert re.search(rf"^ +icdsel {arguments[0]}\b", made.stdout, re.MULTILINE)


@pytest.mark.parametrize("module", ["icdsel", "icdsel.settings", "icdsel.experiments.variants", "icdsel.cli.app"])
def test_light_modules_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def help_of() -> Callable[..., str]:
    return lambda command, flag="--help-all": CliRunner().invoke(app, [command, flag]).output


def flags_in(shown: str) -> list[str]:
    """The flags that a help lists, in order."""
    return [flag for flag in re.findall(r"^│ (--[a-z-]+)", shown, re.MULTILINE) if flag not in ("--help", "--help-all")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [64, 80, 120])
def test_help_has_at_most_ten_flags_and_the_places_of_the_vlm_and_fits(
    command: str, columns: int, help_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = help_of(command, "--help")
    assert tuple(flags_in(shown)) == COMMON[command]
    assert 1 <= len({*COMMON[command]} - {*PLACES}) <= 10
    assert "--help-all" in shown and "Settings:" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    # The texts are whole: each is there, word by word, in the column of texts.
    words = "".join(re.sub(r"^│ (?:--\S+)?", "", line) for line in shown.splitlines())
    for flag in COMMON[command]:
        text = options(command)[flag].help
        assert "…" not in text
        for word in text.split():
            assert word.strip("`[]().,;") in words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_has_every_flag(command: str, help_of: Callable[..., str]) -> None:
    visible = [each for each in COMMANDS[command].params if not each.hidden and each.param_type_name == "option"]
    forms = [{*each.opts, *each.secondary_opts} - {"--help-all"} for each in visible]
    shown = set(flags_in(help_of(command)))
    assert all(len(shown & each) == 1 for each in forms if each)
    assert len(shown) == sum(map(bool, forms))


def test_a_switch_is_shown_in_the_form_that_changes_its_default(help_of: Callable[..., str]) -> None:
    shown = help_of("train")
    assert "--no-exclude-same-image" in shown and "--freeze-backbone" in shown
    assert "--no-freeze-backbone" not in shown and " --exclude-same-image" not in shown


def test_long_lists_of_names_stand_in_the_text_where_no_column_cuts_them(
    help_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = " ".join(re.sub(r"│ *", "", help_of("infer", "--help")).split())
    assert "Names: policy, zero-shot, random, balanced, nearest-image, nearest-question, nearest-both, " in shown


def test_the_help_of_compare_speaks_of_comparing_alone(help_of: Callable[..., str]) -> None:
    shown = help_of("compare")
    for flag in ("--train", "--seeds", "--dry-run", "--rce-lr", "--reward-mode", "--beam", "--selector"):
        assert f"{flag} " not in shown
    for flag in ("--reference", "--allow-different", "--html", "--dataset", "--sampler"):
        assert f"{flag} " in shown


def test_the_help_of_experiment_has_the_training_options(help_of: Callable[..., str]) -> None:
    shown = help_of("experiment")
    for flag in ("--seeds", "--dry-run", "--rce-lr", "--reward-mode", "--selector", "--n", "--shots", "--html"):
        assert f"{flag} " in shown
    for flag in ("--train", "--set", "--allow-different"):
        assert f"{flag} " not in shown


FLAGS = {  # an option that several commands have is tested with the first of them
    (option, parameter.help): pytest.param(name, option, id=f"{name} {option}")
    for name, command in reversed(COMMANDS.items())
    for parameter in command.params
    for option in parameter.opts[:1]
    if option.startswith("--") and option != "--help" and not parameter.is_flag
}.values()
ARGUMENTS = {
    "convert": ["policy.pt"],
    "push": ["my-bundle", "owner/name"],
    "experiment": ["rce"],
    "export": ["my-run", "my-bundle"],
}


@pytest.mark.parametrize(("command", "option"), FLAGS)
def test_no_option_takes_empty_text(command: str, option: str) -> None:
    if option == "--system-prompt":
        return
    said = " ".join(icdsel(command, *ARGUMENTS.get(command, []), option, " ", code=2).replace("│", " ").split())
    assert option in said and ("it is empty" in said or "valid int" in said or "parse string as a number" in said)


def test_options_find_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    icdsel("runs", "--json=~/runs.json", "--results-dir=~/results")
    assert (tmp_path / "home/runs.json").is_file() and not Path("~").exists()
    said = icdsel("train", "--rl-data=~nobody-here/x.jsonl", code=2)
    assert "no home folder is known for ~nobody-here" in " ".join(said.replace("│", " ").split())
