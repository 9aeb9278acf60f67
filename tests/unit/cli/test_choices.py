"""Names of things that come in kinds: which ones the command line takes."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from icdsel.cli.choices import REGISTRIES, choices, ignored_settings, require_known
from icdsel.cli.options import metavar, with_settings
from icdsel.errors import SettingsError
from icdsel.settings import Settings, settings_from, with_values
from icdsel.settings.names import every_setting
from icdsel.settings.tables import TABLES
from icdsel.settings.values import choice_of


@dataclass(frozen=True)
class Entry:
    name: str
    ignores: tuple[str, ...] = ()


@pytest.fixture
def plugin_sampler(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a sampler that is registered at run time."""
    registry = REGISTRIES["sampler"]
    monkeypatch.setitem(registry, "by-length", Entry("by-length", ignores=("data.seed",)))
    return "by-length"


def test_every_choice_has_a_registry_that_contains_its_default() -> None:
    marked = [(table, name, field) for table, name, field in every_setting() if choice_of(field)]
    assert {name for _, name, _ in marked} >= {
        "task",
        "engine",
        "sampler",
        "pool_rules",
        "layout",
        "mode",
        "normalization",
        "selector",
        "tracker",
    }
    require_known(settings_from({}))
    require_known(settings_from({"data": {"preset": "lever-plus"}}))


def test_the_help_lists_the_names_of_a_choice() -> None:
    fields = TABLES["data"].model_fields
    assert metavar(fields["sampler"]) == "rand|text-sim|img-sim|mix"
    assert metavar(TABLES["infer"].model_fields["selector"]).endswith("|majority-all|oracle,…")
    assert choices(fields["seed"]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data": {"pool_rules": "none"}},
            r"--pool-rules \(data.pool_rules\): unknown rules .* one of icdsel, lever-plus",
        ),
        ({"data": {"sampler": "text-smi"}}, r"--sampler \(data.sampler\): unknown sampler 'text-smi': did you mean"),
        (
            {"infer": {"selector": "policy,best"}},
            r"--selector \(infer.selector\): unknown selector 'best'",
        ),
        ({"reward": {"mode": "hard"}}, r"--reward-mode \(reward.mode\): unknown reward mode 'hard'"),
        ({"data": {"metric": "none"}}, r"unknown metric of the task vqa 'none': choose one of normalised"),
    ],
)
def test_an_unknown_name_is_rejected_with_those_that_exist(given: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        require_known(settings_from(given))


def test_all_unknown_names_are_listed() -> None:
    with pytest.raises(SettingsError) as caught:
        require_known(settings_from({"data": {"sampler": "x"}, "infer": {"selector": "y,policy,z"}}))
    assert len(str(caught.value).splitlines()) == 3


def test_the_command_line_takes_a_name_registered_at_run_time(
    plugin_sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    received: list[Settings] = []
    app = typer.Typer()

    @app.command()
    @with_settings("data")
    def command(settings: Settings) -> None:
        received.append(settings)

    result = CliRunner().invoke(app, ["--sampler", plugin_sampler])
    assert result.exit_code == 0, result.output
    assert received[0].data.sampler == plugin_sampler
    assert received[0].pair_name == "ByLengthSampler_tiny-vlm"
    rejected = CliRunner().invoke(app, ["--sampler", "by-lenght"])
    assert rejected.exit_code == 2 and "did you mean 'by-length'?" in rejected.output
    assert len(received) == 1


def test_settings_that_an_entry_ignores_are_named_where_they_were_given(plugin_sampler: str) -> None:
    settings = settings_from({"data": {"sampler": plugin_sampler, "seed": 42}})
    assert ignored_settings(settings, ["data"]) == ["--seed has no effect with the sampler by-length"]
    assert ignored_settings(settings, ["train"]) == []
    assert ignored_settings(with_values(settings, {"data": {"seed": None}}), ["data"]) == []


@pytest.mark.parametrize(
    ("given", "warnings"),
    [
        ({"reward": {"rel_weight": 1}}, ["--rel-weight has no effect with the reward mode hard_plus_soft"]),
        ({"reward": {"rel_weight": 1, "mode": "hard_plus_gtprob_plus_rel"}}, []),
        (
            {"vlm": {"layout": "turns", "icd_template": "{question}{answer}"}},
            ["--icd-template has no effect with the prompt layout turns"],
        ),
        ({"vlm": {"icd_template": "{question}{answer}"}}, []),
    ],
)
def test_reward_modes_and_layouts_say_what_they_ignore(
    given: dict[str, dict[str, object]], warnings: list[str]
) -> None:
    assert ignored_settings(settings_from(given), TABLES) == warnings
