"""The names of bundled worlds: what they mean, that equal worlds have equal names, and what a mistake gets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from icdsel.errors import SettingsError
from icdsel.settings import load_settings, settings_from
from icdsel.settings.flags import flags
from icdsel.settings.identity import identity
from icdsel.settings.worlds import (
    DIFFICULTIES,
    Difficulty,
    difficulty_of,
    is_world,
    normalised,
    world_folder,
    world_in,
    world_name,
    world_names,
)

_SHARES = st.floats(0, 1)
_WORLDS = st.builds(
    lambda pairs, plain, **rest: Difficulty(pairs=pairs, plain=plain if pairs + plain <= 1 else 0, **rest),
    pairs=_SHARES | st.just(0.25),
    plain=_SHARES | st.just(0.3),
    backgrounds=st.booleans(),
    companions=_SHARES | st.just(0.5),
    wordings=st.integers(1, 8),
    synonyms=st.integers(1, 3),
    careless=_SHARES,
    careless_wrong=_SHARES,
    train=st.integers(1, 1_000_000),
    seed=st.integers(0, 2**32 - 1),
)


@given(_WORLDS)
def test_a_name_means_the_world_that_it_was_made_for(world: Difficulty) -> None:
    name = world_name(world)
    assert difficulty_of(name) == world
    assert is_world(name) and normalised(name) == name
    folder = world_folder(name)
    assert world_in(folder) == name
    assert len(folder) <= 230  # file systems allow 255 bytes; a lock's ending is added
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_=.")


@given(_WORLDS, st.sampled_from(world_names()), st.randoms())
def test_equal_worlds_have_equal_names_whatever_is_typed(world: Difficulty, preset: str, random) -> None:
    parts = [f"{name}={value}" for name, value in world]
    random.shuffle(parts)
    assert normalised(f"{preset}:{', '.join(parts)}") == world_name(world)


@pytest.mark.parametrize(
    ("typed", "name", "folder"),
    [
        ("world", "world", "world"),
        ("world-easy", "world", "world"),
        ("world:seed=20251210", "world", "world"),
        ("world-hard:pairs=0.250", "world-hard", "world-hard"),
        ("world-hard:seed=7,pairs=.4", "world-hard:pairs=0.4,seed=7", "world-hard_pairs=0.4_seed=7"),
        ("world:backgrounds=True", "world:backgrounds=yes", "world_backgrounds=yes"),
        ("world-hard:careless=0,plain=0,pairs=0", "world-misleading", "world-misleading"),
        ("world:plain=1,careless_wrong=-0.0", "world:plain=1,careless_wrong=0", "world_plain=1_careless_wrong=0"),
    ],
)  # fmt: skip
def test_names_are_recorded_in_one_form(typed: str, name: str, folder: str) -> None:
    settings = load_settings({"data": {"dataset": typed}})
    assert settings.data.dataset == name
    assert settings.dataset_dir == Path("results", folder)
    assert identity(settings, "data")["data.dataset"] == folder
    assert world_in(folder) == name


@pytest.mark.parametrize("name", ["world-cup", "worlds", "my/world-hard", "world-hard.jsonl", "hub:a/world", "okvqa"])
def test_other_names_are_not_worlds(name: str) -> None:
    assert not is_world(name) and normalised(name) == name and world_in(name) is None
    assert load_settings({"data": {"dataset": name}}).vlm.model.startswith("Qwen/")


def test_folders_in_another_form_are_not_those_of_a_world() -> None:
    for folder in (
        "world-easy",
        "world-hard_pairs=0.25",
        "world-hard_pairs=2",
        "world-hard_seed=7_pairs=0.4",
        "world:",
    ):
        assert world_in(folder) is None


@pytest.mark.parametrize("dataset", ["world", "world-hard", "world-misleading", "world:seed=3"])
def test_every_world_has_the_defaults_of_the_bundled_world(dataset: str) -> None:
    settings = settings_from({"data": {"dataset": dataset}})
    assert (settings.vlm.model, settings.data.encoder, settings.data.sampler_encoder) == ("tiny-vlm", "vlm", "vlm")
    stated = [] if dataset == "world" else ["--dataset", dataset]
    assert flags(settings, "data", "vlm") == stated


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("world-hrad:seed=1", ["no such world", "world, world-misleading, world-hard", "did you mean 'world-hard'?"]),
        ("world-hard:sed=1", ["'sed'", "seed (a whole number from 0 to 4294967295)", "backgrounds (yes or no)"]),
        ("world-hard:seed", ["'seed' is not NUMBER=VALUE", "pairs (a number from 0 to 1)"]),
        ("world-hard:", ["'' is not NUMBER=VALUE"]),
        ("world-hard:pairs=2", ["pairs must be a number from 0 to 1, not '2'"]),
        ("world-hard:pairs=nan", ["pairs must be a number from 0 to 1"]),
        ("world:synonyms=4,wordings=0", ["synonyms must be a whole number from 1 to 3", "wordings must be"]),
        ("world:backgrounds=some", ["backgrounds must be yes or no, not 'some'"]),
        ("world:train=0", ["train must be a whole number from 1 to 1000000"]),
        ("world:seed=1,seed=2", ["seed is given twice"]),
        ("world-hard:pairs=0.9", ["pairs (0.9) and plain (0.3)", "at most 1"]),
    ],
)
def test_a_mistake_gets_one_line_that_says_what_is_allowed(typed: str, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"data": {"dataset": typed}})
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith("--dataset (data.dataset): ")
    assert all(part in message for part in parts), message


def test_numbers_given_in_python_are_checked_too() -> None:
    with pytest.raises(ValidationError):
        Difficulty(pairs=0.6, plain=0.6)
    with pytest.raises(ValidationError):
        Difficulty(pears=0.6)  # type: ignore[call-arg]


def test_the_documentation_explains_every_number_and_preset() -> None:
    page = (Path(__file__).parents[3] / "docs/world.md").read_text()
    section = page.partition("## Harder worlds")[2]
    for name in Difficulty.model_fields:
        assert f"| `{name}` |" in section
    for preset in world_names():
        assert f"`{preset}`" in section
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    stated = {row[0].strip(" `"): [cell.strip() for cell in row[1 : 1 + len(DIFFICULTIES)]] for row in rows}
    for name in Difficulty.model_fields:
        values = [getattr(world, name) for world in DIFFICULTIES.values()]
        texts = [("no", "yes")[value] if isinstance(value, bool) else f"{value:,}" for value in values]
        assert stated[name] == [text.removesuffix(".0") for text in texts]
