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
    ],
)
def test_given_settings_without_effect_are_named(given: dict[str, Any], warning: str) -> None:
    [found] = without_effect(settings_from(given), given)
    assert found.startswith(warning)
    assert without_effect(settings_from(given), ["infer"]) == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data": {"preset": "lever-plus"}, "vlm": {"num_beams": 1}},  # the preset's length penalty was not given
        {"data": {"preset": "lever-plus"}, "train": {"grpo_epochs": 3, "freeze_backbone": True}},
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
