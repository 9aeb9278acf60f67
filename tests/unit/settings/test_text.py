"""Text that a user did not mean: empty values of unset variables, and `~` that no shell expanded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import SettingsError
from icdsel.settings import load_settings, settings_from, with_values
from icdsel.settings.names import every_setting
from icdsel.settings.tables import TABLES

MAY_BE_EMPTY = [f"{table}.{name}" for table, kind in TABLES.items() for name in kind.MAY_BE_EMPTY]
SETTINGS = [f"{table}.{name}" for table, name, _ in every_setting() if f"{table}.{name}" not in MAY_BE_EMPTY]


def by_caller(place: str, value: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    table, name = place.split(".")
    return {table: {name: value}}


def by_variable(place: str, value: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv(f"ICDSEL_{place.replace('.', '_').upper()}", value)
    return {}


def by_file(place: str, value: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    table, name = place.split(".")
    Path("icdsel.toml").write_text(f"[{table}]\n{name} = '{value}'\n")
    return {}


Source = Callable[[str, str, pytest.MonkeyPatch], dict[str, Any]]
SOURCES = [by_caller, by_variable, by_file]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("place", SETTINGS)
def test_an_empty_value_is_rejected(place: str, value: str, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=rf"^--[a-z-]+ \({place}\): it is empty"):
        load_settings(source(place, value, monkeypatch))


def test_only_what_the_help_says_may_be_empty() -> None:
    assert MAY_BE_EMPTY == ["vlm.system_prompt"]
    assert "if empty" in str(TABLES["vlm"].model_fields["system_prompt"].description)


@pytest.mark.parametrize("source", SOURCES)
def test_the_system_prompt_may_be_empty(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(source("vlm.system_prompt", "", monkeypatch)).vlm.system_prompt == ""


PATHS = [
    *("data.data_dir", "data.image_dir", "data.results_dir", "data.train_embeddings", "vlm.image_cache_dir"),
    *("proposals.init", "train.init", "train.warm_start"),
    *("data.dataset", "data.encoder", "data.sampler_encoder", "vlm.model"),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("place", PATHS)
def test_the_home_folder_is_found_in_every_path(place: str, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    table, name = place.split(".")
    settings = load_settings(source(place, "~/mine", monkeypatch))
    assert str(getattr(getattr(settings, table), name)) == "/homes/me/mine"


def test_every_path_is_among_them() -> None:
    paths = {f"{table}.{name}" for table, name, field in every_setting() if Path in kinds(field.annotation)}
    assert paths <= set(PATHS)


def kinds(annotation: Any) -> set[Any]:
    """The types in an annotation."""
    return {annotation}.union(*map(kinds, getattr(annotation, "__args__", ())))


def test_the_folder_of_another_user_is_found() -> None:
    found = load_settings({"data": {"results_dir": "~root/x"}}).data.results_dir
    assert found == Path(os.path.expanduser("~root/x")) != Path("~root/x")  # noqa: PTH111 - an independent reading


def test_an_unknown_user_is_rejected() -> None:
    with pytest.raises(SettingsError, match=r"--results-dir .*no home folder is known for ~nobody-here: write \./~"):
        load_settings({"data": {"results_dir": "~nobody-here/x"}})


def test_a_tilde_elsewhere_is_kept() -> None:
    settings = load_settings(
        {"data": {"results_dir": "./~"}, "vlm": {"icd_template": "~ {question} {answer}", "model": "a/~b"}}
    )
    assert (str(settings.data.results_dir), settings.vlm.icd_template[0], settings.vlm.model) == ("~", "~", "a/~b")


# ---- line breaks in prompts ----


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", TABLES["vlm"].ESCAPED)
def test_a_line_break_is_typed_as_in_a_program(name: str, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = r"Q:{question}\n\tA:{answer} C:\\new \d"
    settings = load_settings(source(f"vlm.{name}", typed, monkeypatch))
    assert getattr(settings.vlm, name) == "Q:{question}\n\tA:{answer} C:\\new \\d"


def test_a_recorded_prompt_and_one_with_real_line_breaks_stay_as_they_are() -> None:
    recorded = load_settings({"vlm": {"system_prompt": r"a\\n"}}).model_dump(exclude_unset=True)
    assert recorded["vlm"]["system_prompt"] == r"a\n"
    assert settings_from(recorded).vlm.system_prompt == r"a\n"
    assert with_values(settings_from(recorded), {"data": {"seed": 1}}).vlm.system_prompt == r"a\n"
    Path("icdsel.toml").write_text('[vlm]\nsystem_prompt = "a\\nb"\n')
    assert load_settings({}).vlm.system_prompt == "a\nb"


def test_escapes_are_for_prompts_only() -> None:
    assert load_settings({"vlm": {"model": r"C:\new"}}).vlm.model == r"C:\new"
