"""Where a value comes from: callers, variables, `icdsel.toml`; and what is wrong with it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import SettingsError
from icdsel.settings import load_settings, settings_from
from icdsel.settings.names import every_setting, variable_names
from icdsel.settings.presets import QWEN_3B


def value_at(place: str, given: dict[str, dict[str, Any]] | None = None) -> Any:
    table, name = place.split(".")
    return getattr(getattr(load_settings(given or {}), table), name)


def rejection(given: dict[str, dict[str, Any]]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(given)
    return str(caught.value)


def test_a_caller_wins_over_a_variable_over_the_file_over_the_default(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(**given: dict[str, Any]) -> tuple[int, float, str]:
        settings = load_settings(given)
        return settings.train.batch_size, settings.train.rce_lr, settings.data.sampler

    assert found() == (1, 1e-4, "rand")
    (empty_folder / "icdsel.toml").write_text(
        '[train]\nbatch_size = 2\nrce_lr = 0.002\n[data]\nsampler = "text-sim"\n', encoding="utf-8"
    )
    assert found() == (2, 0.002, "text-sim")
    monkeypatch.setenv("ICDSEL_TRAIN_BATCH_SIZE", "3")
    monkeypatch.setenv("ICDSEL_DATA_SAMPLER", "img-sim")
    assert found() == (3, 0.002, "img-sim")
    assert found(train={"batch_size": "4"}) == (4, 0.002, "img-sim")
    assert found(train={"batch_size": "4", "rce_lr": "0.004"}, data={"sampler": "mix"}) == (4, 0.004, "mix")
    # A value for one setting of a table leaves the others to the file and the variables.
    assert found(train={"rce_lr": "0.004"}) == (3, 0.004, "img-sim")


def test_zero_and_false_count_from_every_source(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_folder / "icdsel.toml").write_text(
        "[train]\ngrpo_epochs = 3\nkl_beta = 0.5\nfreeze_backbone = true\ndropout = 0.4\n[data]\nseed = 7\n"
    )
    settings = load_settings({})
    assert (settings.train.grpo_epochs, settings.train.freeze_backbone, settings.data.seed) == (3, True, 7)
    zeros = {"grpo_epochs": "0", "kl_beta": "0", "freeze_backbone": False, "dropout": "0"}
    settings = load_settings({"train": zeros, "data": {"seed": "0"}})
    assert (settings.train.grpo_epochs, settings.train.kl_beta, settings.train.dropout) == (0, 0.0, 0.0)
    assert (settings.train.freeze_backbone, settings.data.seed) == (False, 0)
    monkeypatch.setenv("ICDSEL_TRAIN_GRPO_EPOCHS", "0")
    monkeypatch.setenv("ICDSEL_TRAIN_FREEZE_BACKBONE", "false")
    monkeypatch.setenv("ICDSEL_TRAIN_DROPOUT", "0")
    settings = load_settings({})
    assert (settings.train.grpo_epochs, settings.train.freeze_backbone, settings.train.dropout) == (0, False, 0.0)
    settings = load_settings({"train": {"grpo_epochs": "2", "freeze_backbone": True}})
    assert (settings.train.grpo_epochs, settings.train.freeze_backbone) == (2, True)


def test_lists_may_be_given_with_commas(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert value_at("infer.shots", {"infer": {"shots": "1,2"}}) == (1, 2)
    assert value_at("infer.selector", {"infer": {"selector": "policy, random"}}) == ("policy", "random")
    monkeypatch.setenv("ICDSEL_INFER_SHOTS", "3,4")
    assert value_at("infer.shots") == (3, 4)
    (empty_folder / "icdsel.toml").write_text("[infer]\nshots = [2]\n[proposals]\ntemperatures = [0.5, 2]\n")
    assert value_at("infer.shots") == (3, 4)
    assert value_at("proposals.temperatures") == (0.5, 2.0)


def test_every_setting_has_a_variable_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(variable_names()) == len(list(every_setting()))
    monkeypatch.setenv("ICDSEL_PROPOSALS_QUERY_SPLIT", "tuning")
    monkeypatch.setenv("ICDSEL_VLM_MAX_NEW_TOKENS", "9")
    monkeypatch.setenv("ICDSEL_DATA_EXCLUDE_SAME_IMAGE", "false")
    settings = load_settings({})
    assert (settings.proposals.query_split, settings.vlm.max_new_tokens) == ("tuning", 9)
    assert settings.data.exclude_same_image is False


def test_an_unknown_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICDSEL_TRAIN_BATCHSIZE", "2")
    monkeypatch.setenv("ICDSEL_DATA", '{"seed": 1}')
    assert load_settings({}) == settings_from({})


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
        ("vlm", "model", "qwen2.5_vl_3B", QWEN_3B),
        ("vlm", "model", "qwen2.5-vl-3b", QWEN_3B),
        ("vlm", "model", "Qwen2.5-VL-3B-Instruct", QWEN_3B),
        ("vlm", "model", "someone/Other-VLM", "someone/Other-VLM"),
    ],
)
def test_names_of_lever_plus_are_understood_from_every_source(
    table: str, name: str, given: str, meant: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{table}.{name}"
    assert value_at(place, {table: {name: given}}) == meant
    (empty_folder / "icdsel.toml").write_text(f'[{table}]\n{name} = "{given}"\n')
    assert value_at(place) == meant
    (empty_folder / "icdsel.toml").unlink()
    monkeypatch.setenv(f"ICDSEL_{table}_{name}".upper(), given)
    assert value_at(place) == meant


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[train]\nbatchsize = 2\n", ["'train.batchsize'", "did you mean 'batch_size'?"]),
        ("[trian]\nbatch_size = 2\n", ["'trian'", "did you mean 'train'?"]),
        ("batch_size = 2\n", ["'batch_size'", "data, vlm, proposals, reward, train, infer"]),
        ("[infer]\nxyz = 1\n", ["'infer.xyz'", "choose one of n, shots, max_shots, selector"]),
        ("[train]\nbatch_size = 0\n", ["--batch-size (train.batch_size)", "greater than or equal to 1", "got 0"]),
        ("[data]\nembed = 'best'\n", ["--embed", "'both'", "'image'", "got 'best'"]),
        ("[reward]\nmode = 'hybrid'\n", ["--reward-mode (reward.mode)", "use hard_plus_soft", "got 'hybrid'"]),
        ("[train\n", ["icdsel.toml is not valid TOML", "line 1"]),
        ("data = 3\n", ["[data]", "dictionary"]),
        ("[data]\ndataset = ['okvqa']\n", ["--dataset", "string"]),
        ("[train]\nrecipe = ['icdsel']\n", ["--recipe", "'lever-plus'"]),
    ],
)
def test_a_mistake_in_the_file_is_named(empty_folder: Path, content: str, parts: list[str]) -> None:
    (empty_folder / "icdsel.toml").write_text(content)
    message = rejection({})
    for part in parts:
        assert part in message


def test_a_byte_order_mark_in_the_file_is_ignored(empty_folder: Path) -> None:
    (empty_folder / "icdsel.toml").write_text("[train]\nbatch_size = 2\n", encoding="utf-8-sig")
    assert value_at("train.batch_size") == 2


def test_a_file_that_is_not_utf_8_is_rejected(empty_folder: Path) -> None:
    (empty_folder / "icdsel.toml").write_bytes(b"[data]\ndataset = '\xff'\n")
    assert "icdsel.toml is not UTF-8: byte" in rejection({})


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_something_else_in_place_of_the_file_is_rejected(empty_folder: Path, make: Callable[[Path], None]) -> None:
    make(empty_folder / "icdsel.toml")
    assert "icdsel.toml cannot be read" in rejection({})


def test_a_very_large_file_is_rejected(empty_folder: Path) -> None:
    (empty_folder / "icdsel.toml").write_text("#" * 2**21)
    assert "icdsel.toml cannot be read" in rejection({})


# --- values -----------------------------------------------------------------------------------------------


def test_all_mistakes_are_listed_together(empty_folder: Path) -> None:
    (empty_folder / "icdsel.toml").write_text("[train]\nbatchsize = 2\nrce_lr = -1\n[dta]\n")
    message = rejection({"infer": {"n": "many"}})
    assert len(message.splitlines()) == 4
    for part in ("train.batchsize", "--rce-lr", "'dta'", "--n (infer.n)"):
        assert part in message


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"infer": {"n": "0"}}, ["n is 0", "-1 for all"]),
        ({"infer": {"n": "-5"}}, ["n is -5", "-1 for all"]),
        ({"infer": {"shots": "0,1"}}, ["shots", "1 or more", "zero-shot"]),
        ({"infer": {"shots": "2,2"}}, ["shots", "distinct"]),
        ({"infer": {"shots": ""}}, ["shots"]),
        ({"infer": {"selector": ","}}, ["no selector"]),
        ({"train": {"rce_epochs": "0", "grpo_epochs": "0"}}, ["rce_epochs and grpo_epochs", "nothing"]),
        ({"train": {"hidden_dim": "30"}}, ["hidden_dim (30)", "multiple of num_heads (4)"]),
        ({"train": {"online": True}}, ["grpo_epochs"]),
        (
            {"train": {"online": True, "grpo_epochs": 2, "recipe": "lever-plus"}},
            ["lever-plus has no online GRPO"],
        ),
        ({"vlm": {"icd_template": "{answer}"}}, ["icd_template", "{question}"]),
        ({"vlm": {"query_template": "Answer!"}}, ["query_template", "{question}"]),
        ({"vlm": {"icd_template": "{question}"}}, ["icd_template", "{answer}"]),
        ({"vlm": {"min_pixels": "100", "max_pixels": "99"}}, ["min_pixels (100)", "max_pixels (99)"]),
        ({"proposals": {"temperatures": "1.0,0"}}, ["temperatures", "above 0"]),
        (
            {"proposals": {"beam": "0", "samples": "0", "retrieval": "0", "random": "0"}},
            ["no pointer", "beam, samples, retrieval, random or answers"],
        ),
        ({"data": {"image_dir": ""}}, ["--image-dir", "it is empty"]),
        ({"data": {"seed": 2**63}}, ["seed", "64 bits"]),
        ({"data": {"encoder": "a\0b"}}, ["encoder", "null byte"]),
        ({"data": {"pool_size": "some"}}, ["--pool-size"]),
        ({"data": {"pool_size": "0"}}, ["--pool-size", "greater than or equal to 1, or 'all'"]),
        ({"vlm": {"length_penalty": "nan"}}, ["--length-penalty"]),
        ({"vlm": {"length_penalty": "inf"}}, ["--length-penalty"]),
        ({"vlm": {"call_timeout": 0}}, ["--call-timeout"]),
        ({"vlm": {"call_timeout": 1e-9}}, ["--call-timeout"]),
        ({"vlm": {"call_timeout": 1e10}}, ["--call-timeout"]),
        ({"reward": {"mode": "legacy"}}, ["retired", "use hard_plus_soft, got 'legacy'"]),
        ({"reward": {"mode": "hybrid"}}, ["retired", "use hard_plus_soft, got 'hybrid'"]),
    ],
)
def test_impossible_values_are_rejected_in_one_line_with_the_remedy(
    given: dict[str, dict[str, Any]], parts: list[str]
) -> None:
    for message in (rejection(given), _rejection_without_sources(given)):
        for part in parts:
            assert part in message
        assert len(message.splitlines()) == 1


def _rejection_without_sources(given: dict[str, dict[str, Any]]) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_from(given)
    return str(caught.value)


@pytest.mark.parametrize("name", ["..jsonl", "...jsonl", "data/...jsonl"])
def test_a_dataset_cannot_lead_its_results_out_of_their_folder(name: str) -> None:
    assert "--dataset (data.dataset)" in rejection({"data": {"dataset": name}})


@pytest.mark.parametrize("model", ["flamingo_3B", "openflamingo/OpenFlamingo-9B-vitl-mpt7b", "idefics-9b"])
def test_flamingo_is_rejected_with_a_model_to_use_instead(model: str) -> None:
    with pytest.raises(SettingsError, match=r"not supported.*qwen2\.5-vl-3b"):
        load_settings({"vlm": {"model": model}})


@pytest.mark.parametrize(
    "model", ["HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceM4/idefics2-8b", "llava-hf/llava-v1.6-mistral-7b-hf"]
)
def test_current_models_are_not_taken_for_flamingo(model: str) -> None:
    assert value_at("vlm.model", {"vlm": {"model": model}}) == model


def test_a_pool_size_is_a_number_or_all() -> None:
    assert value_at("data.pool_size", {"data": {"pool_size": "128"}}) == 128
    assert value_at("data.pool_size", {"data": {"pool_size": "all"}}) == "all"
