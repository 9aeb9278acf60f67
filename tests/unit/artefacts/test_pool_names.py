"""Which results of other settings exist side by side, and which are rejected with the settings that differ."""

from pathlib import Path
from typing import Any

import pytest

from icdsel.artefacts.rl_data import metadata_path, rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE, run_name, runs_dir
from icdsel.settings import Settings, settings_from
from icdsel.settings.identity import identity
from icdsel.settings.tables import TABLES
from icdsel.store.metadata import Metadata

POOLS = [
    pytest.param({"pool_size": 16}, "pool-size-16", id="size"),
    pytest.param({"pool_size": "all"}, "pool-size-all", id="all"),
    pytest.param({"pool_rules": "lever-plus"}, "pool-rules-lever-plus", id="rules"),
    pytest.param({"exclude_same_image": False}, "no-exclude-same-image", id="same image"),
    pytest.param({"embed": "image"}, "embed-image", id="embed"),
]


def under(folder: Path, data: dict[str, Any], **tables: dict[str, Any]) -> Settings:
    return settings_from({"data": {"results_dir": str(folder)} | data, **tables})


@pytest.mark.parametrize(("data", "part"), POOLS)
def test_results_of_other_pools_have_names_of_their_own(data: dict[str, Any], part: str, tmp_path: Path) -> None:
    settings = under(tmp_path, data)
    assert rl_data_path(settings).name == f"rl_data_RandSampler_tiny-vlm_{part}.jsonl"
    assert run_name(settings) == f"v3_RandSampler_tiny-vlm_{part}"
    validation = under(tmp_path, data, proposals={"query_split": "validation"}, train={"grpo_epochs": 3})
    assert rl_data_path(validation).name == f"rl_data_RandSampler_tiny-vlm_{part}_validation.jsonl"
    assert run_name(validation) == f"v3_RandSampler_tiny-vlm_{part}_grpo-epochs-3"


@pytest.mark.parametrize("preset", ["icdsel", "lever-plus"])
def test_the_default_names_stay(preset: str, tmp_path: Path) -> None:
    settings = under(tmp_path, {"preset": preset, "pool_size": 64})
    assert rl_data_path(settings).name == "rl_data_RandSampler_tiny-vlm.jsonl"
    assert run_name(settings) == {"icdsel": "", "lever-plus": "_lever-plus"}[preset].join(
        ["v3_RandSampler_tiny-vlm", ""]
    )


@pytest.mark.parametrize(("data", "part"), POOLS)
def test_results_of_earlier_versions_are_found_if_they_have_these_pools(
    data: dict[str, Any], part: str, tmp_path: Path
) -> None:
    settings, default = under(tmp_path, data), under(tmp_path, {})
    earlier, run = rl_data_path(default), runs_dir(default) / run_name(default)
    for metadata, inputs in (
        (metadata_path(earlier), identity(settings, "data")),
        (run / METADATA_FILE, identity(settings, "data")),
    ):
        Metadata(inputs=inputs).write(metadata)
    assert rl_data_path(settings) == earlier and run_name(settings) == run.name
    other = under(tmp_path, {"pool_size": 7})
    assert rl_data_path(other).stem.endswith("pool-size-7") and run_name(other).endswith("pool-size-7")
    metadata_path(earlier).write_text("damaged")
    assert rl_data_path(settings) != earlier


OTHERS: dict[str, dict[str, Any]] = {
    "data": {
        "preset": "lever-plus",
        "dataset": "okvqa",
        "shown_answer": "stemmed",
        "metric": "lemmatised",
        "sampler": "mix",
        "pool_size": 16,
        "pool_rules": "lever-plus",
        "exclude_same_image": False,
        "embed": "image",
        "seed": 1,
    },
    "vlm": {
        "system_prompt": "Be brief.",
        "icd_template": "{question} {answer}",
        "query_template": "{question}",
        "layout": "turns",
        "max_new_tokens": 9,
        "num_beams": 2,
        "length_penalty": 0.5,
        "repetition_penalty": 2,
        "clean_answers": "lever-plus",
        "min_pixels": 900,
        "max_pixels": 9000,
    },
    "proposals": {
        "queries": 10,
        "query_split": "tuning",
        "shots": 3,
        "beam": 1,
        "samples": 1,
        "temperatures": (1.0,),
        "retrieval": 1,
        "random": 2,
    },
}


@pytest.mark.parametrize("place", [f"{table}.{name}" for table, values in OTHERS.items() for name in values])
def test_no_setting_that_decides_rl_data_is_mixed_silently(place: str, tmp_path: Path) -> None:
    table, name = place.split(".")
    settings, default = under(tmp_path, {}), under(tmp_path, {})
    given = {"data": {"results_dir": str(tmp_path)}}
    settings = settings_from(given | {table: given.get(table, {}) | {name: OTHERS[table][name]}})
    inputs, usual = (identity(one, "data", "vlm", "proposals") for one in (settings, default))
    assert rl_data_path(settings) != rl_data_path(default) or inputs != usual


def test_every_such_setting_was_tried() -> None:
    default = settings_from({})
    recorded = {place for place in identity(default, "data", "vlm", "proposals") if place != "proposals.init"}
    assert recorded <= {f"{table}.{name}" for table, values in OTHERS.items() for name in values}
    assert {place.split(".")[0] for place in recorded} <= set(TABLES)
