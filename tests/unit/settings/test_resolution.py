"""How what was given becomes settings in which every value is filled in."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from icdsel.settings import Settings, TrainSettings, load_settings, settings_from, with_values
from icdsel.settings.names import every_setting
from icdsel.settings.presets import CLIP_B32, CLIP_L14, PRESETS, QWEN_3B, RECIPES, Recipe
from icdsel.settings.tables import TABLES


def values(settings: Settings) -> dict[str, Any]:
    return {f"{table}.{name}": getattr(getattr(settings, table), name) for table, name, _ in every_setting()}


# --- what the dataset, the preset and the recipe decide ---------------------------------------------------


@pytest.mark.parametrize(
    ("given", "model", "queries"),
    [
        ({}, "tiny-vlm", 800),
        ({"data": {"dataset": "okvqa"}}, QWEN_3B, 800),
        ({"data": {"dataset": "my.jsonl"}}, QWEN_3B, 800),
        ({"data": {"dataset": "vqav2"}}, QWEN_3B, 5000),
        ({"data": {"dataset": "VQAV2_local"}}, QWEN_3B, 5000),
        ({"data": {"dataset": "vqav2"}, "vlm": {"model": "tiny-vlm"}, "proposals": {"queries": 10}}, "tiny-vlm", 10),
    ],
)
def test_the_dataset_decides_model_and_number_of_queries(given: dict[str, Any], model: str, queries: int) -> None:
    settings = settings_from(given)
    assert (settings.vlm.model, settings.proposals.queries) == (model, queries)


@pytest.mark.parametrize(
    ("given", "encoder", "sampler_encoder"),
    [
        ({}, "vlm", "vlm"),
        ({"data": {"dataset": "okvqa"}}, CLIP_B32, CLIP_B32),
        ({"data": {"dataset": "okvqa", "preset": "lever-plus"}}, CLIP_B32, CLIP_L14),
        ({"data": {"dataset": "okvqa"}, "vlm": {"model": "tiny-vlm"}}, "vlm", "vlm"),
        ({"data": {"preset": "lever-plus"}}, "vlm", "vlm"),
        ({"data": {"dataset": "okvqa", "encoder": "my-clip"}}, "my-clip", "my-clip"),
        ({"data": {"preset": "lever-plus", "encoder": "my-clip"}}, "my-clip", CLIP_L14),
        ({"data": {"sampler_encoder": "my-clip"}}, "vlm", "my-clip"),
    ],
)
def test_dataset_model_and_preset_decide_the_encoders(
    given: dict[str, Any], encoder: str, sampler_encoder: str
) -> None:
    data = settings_from(given).data
    assert (data.encoder, data.sampler_encoder) == (encoder, sampler_encoder)


def test_a_preset_changes_defaults_and_given_values_override_it() -> None:
    preset = settings_from({"data": {"preset": "lever-plus", "dataset": "okvqa"}})
    assert preset.data.shown_answer == "stemmed" and preset.data.metric == "openflamingo"
    assert preset.data.pool_rules == "lever-plus" and not preset.data.exclude_same_image
    assert (preset.vlm.num_beams, preset.vlm.length_penalty, preset.vlm.repetition_penalty) == (3, 0.0, "model")
    assert preset.vlm.system_prompt.startswith("In the upcoming task, you will see four sets of dialogues")
    assert preset.train.recipe == "lever-plus" and preset.train.gate is False
    own = settings_from({"data": {"preset": "lever-plus", "metric": "official"}, "vlm": {"num_beams": "1"}})
    assert (own.data.metric, own.vlm.num_beams, own.vlm.clean_answers) == ("official", 1, "lever-plus")


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [
        ("world", "normalised"),
        ("vqav2", "official"),
        ("vqav2_local", "official"),
        ("okvqa", "lemmatised"),
        ("my-set.jsonl", "normalised"),
        ("hub:owner/name", "normalised"),
    ],
)
def test_the_dataset_decides_the_metric(dataset: str, metric: str) -> None:
    assert settings_from({"data": {"dataset": dataset}}).data.metric == metric
    assert settings_from({"data": {"dataset": dataset, "metric": "openflamingo"}}).data.metric == "openflamingo"


def test_a_preset_only_lists_what_differs_from_the_defaults() -> None:
    for table, changes in PRESETS["lever-plus"].items():
        for name, value in changes.items():
            assert TABLES[table].model_fields[name].default != value
    assert PRESETS["icdsel"] == {}


def test_the_recipe_decides_the_network() -> None:
    for recipe, rules in RECIPES.items():
        settings = TrainSettings(recipe=recipe)
        shared = [name for name in Recipe.model_fields if name in TrainSettings.model_fields]
        assert len(shared) == 7
        assert {name: getattr(settings, name) for name in shared} == {name: getattr(rules, name) for name in shared}
    lever_plus = TrainSettings(recipe="lever-plus")
    assert (lever_plus.gate, lever_plus.tower, lever_plus.num_heads, lever_plus.dropout) == (False, 0, 1, 0.5)
    own = TrainSettings(recipe="lever-plus", gate=True, dropout=0.0)
    assert (own.gate, own.dropout, own.num_heads) == (True, 0.0, 1)


def test_rules_between_settings_hold_for_the_values_that_are_filled_in() -> None:
    # One head divides 30, four do not.
    assert settings_from({"data": {"preset": "lever-plus"}, "train": {"hidden_dim": 30}}).train.num_heads == 1


def test_no_value_is_missing_that_has_a_default() -> None:
    empty = {name for name, value in values(settings_from({})).items() if value is None}
    optional = {
        "threads",
        "validation_fraction",
        "image_dir",
        "train_embeddings",
        "min_pixels",
        "max_pixels",
        "image_cache_dir",
        "init",
        "vlm_budget",
        "workers",
        "ray_address",
    }
    assert {name.split(".")[1] for name in empty} == optional | {
        *("warm_start", "train_seed", "random_seed", "stop", "max_shots")
    }


def test_defaults_keep_what_other_defaults_depend_on() -> None:
    given = {
        "data": {"dataset": "okvqa", "preset": "lever-plus", "seed": 7, "encoder": "my-clip"},
        "vlm": {"model": "m"},
        "train": {"recipe": "icdsel", "gate": False},
    }
    defaults = settings_from(given).defaults()
    assert (defaults.data.dataset, defaults.data.preset, defaults.vlm.model) == ("okvqa", "lever-plus", "m")
    assert (defaults.data.seed, defaults.data.encoder, defaults.data.metric) == (42, CLIP_B32, "openflamingo")
    assert (defaults.train.recipe, defaults.train.gate) == ("icdsel", True)


# --- which values were given ------------------------------------------------------------------------------


def given_names(settings: Settings) -> set[str]:
    return {f"{table}.{name}" for table in TABLES for name in getattr(settings, table).model_fields_set}


def test_settings_remember_which_values_were_given(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_folder / "icdsel.toml").write_text("[train]\nnum_heads = 4\n")
    monkeypatch.setenv("ICDSEL_DATA_DATASET", "okvqa")
    settings = load_settings({"data": {"preset": "lever-plus", "seed": None}, "infer": {"n": 100}})
    # Not the model, which the dataset decides, nor what the preset and the recipe decide.
    assert given_names(settings) == {"data.dataset", "data.preset", "train.num_heads", "infer.n"}
    assert given_names(settings_from({})) == set()


def test_which_values_were_given_counts_neither_in_comparisons_nor_in_dumps() -> None:
    explicit, implicit = settings_from({"train": {"num_heads": 4}}), settings_from({})
    assert explicit == implicit
    assert explicit.model_dump(mode="json") == implicit.model_dump(mode="json")


@pytest.mark.parametrize("heads", [4, 1, 2])  # the default, the recipe's value, and another
def test_a_given_value_survives_another_recipe(heads: int) -> None:
    settings = settings_from({"train": {"num_heads": heads}})
    changed = with_values(settings, {"train": {"recipe": "lever-plus"}})
    assert (changed.train.num_heads, changed.train.tower) == (heads, 0)


def test_a_given_value_survives_another_preset_and_dataset() -> None:
    settings = settings_from({"data": {"metric": "official", "encoder": "vlm"}, "vlm": {"model": "tiny-vlm"}})
    changed = with_values(settings, {"data": {"preset": "lever-plus", "dataset": "vqav2"}})
    assert (changed.data.metric, changed.data.encoder, changed.vlm.model) == ("official", "vlm", "tiny-vlm")
    assert (changed.data.shown_answer, changed.proposals.queries) == ("stemmed", 5000)


def test_what_was_not_given_is_filled_in_again() -> None:
    changed = with_values(settings_from({}), {"data": {"dataset": "vqav2"}})
    assert changed == settings_from({"data": {"dataset": "vqav2"}})


def test_none_takes_a_given_value_back() -> None:
    settings = settings_from({"train": {"num_heads": 2, "init": "a.pt"}})
    assert with_values(settings, {"train": {"num_heads": None, "init": None}}) == settings_from({})


def test_more_values_leave_the_given_settings_as_they_are() -> None:
    settings = settings_from({"train": {"num_heads": 2}})
    changed = with_values(settings, {"train": {"dropout": 0.3}, "infer": {"n": 5}})
    assert given_names(changed) == {"train.num_heads", "train.dropout", "infer.n"}
    assert (settings.train.dropout, settings.infer.n) == (0.1, 100)


# --- reading nothing --------------------------------------------------------------------------------------


@pytest.fixture
def someone_elses_defaults(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader with settings in the environment and in `icdsel.toml`."""
    (empty_folder / "icdsel.toml").write_text("[train]\nrce_lr = 0.5\n[infer]\nn = 7\n")
    monkeypatch.setenv("ICDSEL_DATA_SEED", "9")
    monkeypatch.setenv("ICDSEL_VLM_MODEL", "someone/else")


@pytest.mark.usefixtures("someone_elses_defaults")
def test_only_load_settings_reads_environment_and_file() -> None:
    assert load_settings({}).data.seed == 9
    settings = settings_from({"data": {"dataset": "okvqa"}})
    assert (settings.data.seed, settings.vlm.model, settings.train.rce_lr) == (42, QWEN_3B, 1e-4)
    assert with_values(settings, {"infer": {"shots": "1"}}).infer.n == 100
    assert settings.defaults().train.rce_lr == 1e-4
    again = Settings(**dict(settings))
    assert again == settings


@pytest.mark.usefixtures("someone_elses_defaults")
def test_recorded_settings_are_read_back_as_they_were_written() -> None:
    settings = settings_from({"train": {"recipe": "lever-plus", "init": "a.pt"}, "infer": {"shots": "1,2"}})
    recorded = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert settings_from(recorded) == settings
    assert load_settings(recorded) == settings  # everything is recorded, so nothing is left to the reader's defaults


def test_settings_cannot_be_half_resolved() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        Settings(train=TrainSettings())  # type: ignore[call-arg]


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = settings_from({})
    with pytest.raises(ValueError, match="frozen"):
        settings.train.batch_size = 2  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.train = TrainSettings()  # type: ignore[misc]
