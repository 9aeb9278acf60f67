"""Names of settings and of runs, and how defaults are described."""

from typing import Any

import pytest

from icdsel.artefacts.run_folder import run_name
from icdsel.settings import settings_from
from icdsel.settings.names import default_text, every_setting, flag, help_text
from icdsel.settings.tables import TABLES


def test_flags_are_names_with_dashes_unless_a_field_names_another() -> None:
    spelled = {f"{table}.{name}": flag(name, field) for table, name, field in every_setting()}
    assert spelled["train.batch_size"] == "--batch-size"
    assert spelled["reward.mode"] == "--reward-mode"
    assert spelled["proposals.query_split"] == "--split"
    assert spelled["train.device"] == "--train-device"


def test_every_setting_has_a_help_text_without_its_default() -> None:
    for table, name, field in every_setting():
        text = help_text(field)
        assert text.endswith(".") and "[" not in text and "\n" not in text, f"{table}.{name}"


@pytest.mark.parametrize(
    ("table", "name", "text"),
    [
        ("train", "rce_lr", "0.0001"),
        ("train", "freeze_backbone", "false"),
        ("train", "num_heads", "4; 1 with recipe lever-plus"),
        ("train", "attn_dropout", "0.1"),  # the same in both recipes
        ("train", "recipe", "icdsel; lever-plus with preset lever-plus"),
        ("train", "init", ""),
        ("train", "train_seed", "the value of --seed"),
        ("vlm", "num_beams", "1; 3 with preset lever-plus"),
        ("proposals", "queries", "800; 5000 for vqav2"),
        ("infer", "shots", "1,2,3,4"),
    ],
)
def test_a_default_is_described_with_what_presets_and_recipes_change(table: str, name: str, text: str) -> None:
    assert default_text(table, name) == text


def test_a_long_value_of_a_preset_is_not_quoted() -> None:
    assert default_text("vlm", "system_prompt").endswith("; another with preset lever-plus")


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
        ({"train": {"recipe": "lever-plus", "num_heads": 4}}, "_lever-plus_num-heads-4"),
        ({"data": {"preset": "lever-plus"}}, "_lever-plus"),
        ({"data": {"seed": "7"}, "vlm": {"max_new_tokens": "9"}}, ""),  # not settings of training
        ({"train": {"device": "cuda:1", "tensorboard": True}}, ""),  # these change no result
    ],
)
def test_a_run_is_named_by_its_changed_settings(given: dict[str, dict[str, Any]], suffix: str) -> None:
    assert run_name(settings_from(given)) == f"v3_RandSampler_tiny-vlm{suffix}"


@pytest.mark.parametrize(
    ("sampler", "model", "name"),
    [
        ("rand", "qwen2.5-vl-3b", "v3_RandSampler_Qwen2_5-VL-3B-Instruct"),
        ("text-sim", "tiny-vlm", "v3_TextSimSampler_tiny-vlm"),
        ("img-sim", "/models/my vlm.v2/", "v3_ImgSimSampler_my_vlm_v2"),
        ("mix", "someone/Other-VLM", "v3_MixSampler_Other-VLM"),
        ("by-length", "tiny-vlm", "v3_ByLengthSampler_tiny-vlm"),  # of a plugin
    ],
)
def test_names_of_samplers_and_models_in_runs(sampler: str, model: str, name: str) -> None:
    assert run_name(settings_from({"data": {"sampler": sampler}, "vlm": {"model": model}})) == name


def test_runs_with_different_training_settings_have_different_names() -> None:
    other: dict[str, dict[str, Any]] = {
        "reward": {
            "mode": "soft_only",
            "hard_weight": 2,
            "soft_weight": 2,
            "rel_weight": 2,
            "price": 0.1,
            "token_price": 0.001,
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
            "rce_pool_weight": 0.5,
            "rce_temp_start": 1,
            "rce_temp_end": 1,
            "label_smoothing": 0.1,
            "clip_epsilon": 0.1,
            "hidden_dim": 64,
            "num_heads": 2,
            "tower": 0,
            "gate": False,
            "update": "residual",
            "stop": True,
            "query_tower": 64,
            "question_gate": 8,
            "negatives": 64,
            "rce_lr_end": 0.5,
            "candidate_answers": True,
            "dropout": 0.3,
            "attn_dropout": 0.3,
            "init": "a.pt",
            "warm_start": "beams.json",
            "warm_epochs": 2,
            "train_seed": 1,
        },
    }
    assert {table: set(values) for table, values in other.items()} == {
        # `online` needs `grpo_epochs`.
        table: set(TABLES[table].model_fields) - {*TABLES[table].MACHINE, "online"}
        for table in other
    }
    names = [
        run_name(settings_from({table: {name: value}})) for table, row in other.items() for name, value in row.items()
    ]
    names.append(run_name(settings_from({})))
    names.append(run_name(settings_from({"train": {"online": True, "grpo_epochs": 1}})))
    assert len(set(names)) == len(names)
