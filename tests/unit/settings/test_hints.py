from typing import Any

import pytest

from icdsel.settings import settings_from
from icdsel.settings.hints import stray_variables, without_effect
from icdsel.settings.tables import TABLES


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"train": {"warm_epochs": 9}}, "--warm-epochs has no effect without --warm-start"),
        ({"train": {"warm_epochs": 5}}, "--warm-epochs has no effect without --warm-start"),  # the default, but given
        ({"train": {"freeze_backbone": True}}, "--freeze-backbone has no effect without GRPO"),
        ({"vlm": {"length_penalty": 0.5}}, "--length-penalty has no effect with one beam"),
        ({"data": {"sampler": "mix", "pool_size": "all"}}, "--sampler has no effect with --pool-size all"),
        ({"data": {"pool_rules": "lever-plus", "pool_size": "all"}}, "--pool-rules has no effect with --pool-size all"),
        ({"vlm": {"image_cache_disk_mb": 5}}, "--image-cache-disk-mb has no effect without --image-cache-dir"),
        ({"proposals": {"temperatures": "2", "samples": 0}}, "--temperatures has no effect with --samples 0"),
        ({"proposals": {"temperatures": (), "samples": 3}}, "--samples has no effect without --temperatures"),
        ({"reward": {"normalization": "rank"}}, "--reward-normalization has no effect on RCE with raw rewards"),
        ({"reward": {"clamp": 2}}, "--reward-clamp has no effect on RCE with raw rewards"),
        ({"train": {"rce_epochs": 0, "grpo_epochs": 1, "rce_lr": 1}}, "--rce-lr has no effect with --rce-epochs 0"),
        ({"train": {"rce_epochs": 0, "grpo_epochs": 1, "rce_over": "pool"}}, "--rce-over has no effect with"),
        ({"train": {"kl_beta": 0.1}}, "--kl-beta has no effect without GRPO"),
        ({"train": {"grpo_lr": 0.1}}, "--grpo-lr has no effect without GRPO"),
        ({"train": {"vlm_budget": 9}}, "--vlm-budget has no effect without --online"),
        ({"train": {"grpo_epochs": 1, "online_samples": 9}}, "--online-samples has no effect without --online"),
        ({"infer": {"n": -1, "subset": "random"}}, "--subset has no effect with --n -1"),
    ],
)
def test_given_settings_without_effect_are_named(given: dict[str, Any], warning: str) -> None:
    [found] = without_effect(settings_from(given), given)
    assert found.startswith(warning)
    others = [table for table in TABLES if table not in given]
    assert without_effect(settings_from(given), others) == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data": {"preset": "lever-plus"}, "vlm": {"num_beams": 1}},  # the preset's length penalty was not given
        {"data": {"preset": "lever-plus"}, "train": {"grpo_epochs": 3, "freeze_backbone": True}},
        {"train": {"rce_normalized_reward": True}, "reward": {"normalization": "rank"}},
        {"train": {"grpo_epochs": 1}, "reward": {"clamp": 2}},
        {"train": {"rce_epochs": 0, "grpo_epochs": 1, "warm_start": "a.pt", "rce_lr": 1}},
    ],
)
def test_values_that_were_not_given_are_not_warned_about(given: dict[str, Any]) -> None:
    assert without_effect(settings_from(given), TABLES) == []


def test_stray_variables_are_named_with_the_flag_to_use() -> None:
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
        "FREEZE_BACKBONE_IN_GRPO=true is ignored; use --freeze-backbone instead",
        "GRPO_EPOCHS=3 is ignored; use --grpo-epochs instead",
        "ICDSEL_QQQ is not a setting and is ignored",
        "ICDSEL_TRAIN_BATCHSIZE is not a setting and is ignored; did you mean ICDSEL_TRAIN_BATCH_SIZE?",
    ]
