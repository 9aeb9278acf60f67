"""The defaults of the library's functions are those of the settings."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from icdsel.cli.choices import REGISTRIES
from icdsel.policy.config import PointerConfig
from icdsel.policy.losses import grpo_loss, rce_loss, rce_temperature
from icdsel.policy.rewards import NORMALIZATIONS, REWARD_MODES, normalize_rewards, pointer_reward
from icdsel.settings import RewardSettings, TrainSettings
from icdsel.settings.presets import PRESETS, RECIPES
from icdsel.settings.tables import DataSettings
from icdsel.tasks.vqa_accuracy import vqa_accuracy


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def default(table: type[BaseModel], name: str) -> Any:
    return table.model_fields[name].default


def test_the_defaults_of_the_network_are_those_of_lever_plus_with_a_gate() -> None:
    lever_plus = RECIPES["lever-plus"]
    assert defaults_of(PointerConfig) == {
        "hidden_dim": default(TrainSettings, "hidden_dim"),
        "num_layers": default(TrainSettings, "num_layers"),
        "num_heads": lever_plus.num_heads,
        "gate": True,
        "dropout": lever_plus.dropout,
        "attn_dropout": lever_plus.attn_dropout,
        "tower": lever_plus.tower,
        "answer_dim": int(default(TrainSettings, "candidate_answers")),
        "query_tower": default(TrainSettings, "query_tower"),
        "update": default(TrainSettings, "update"),
        "question_gate": default(TrainSettings, "question_gate"),
        "stop": bool(default(TrainSettings, "stop")),
    }
    assert (lever_plus.gate, RECIPES["icdsel"].gate) == (False, True)


def test_the_defaults_of_the_losses_are_those_of_the_settings() -> None:
    assert defaults_of(rce_loss) == {
        "label_smoothing": default(TrainSettings, "label_smoothing"),
        "over": RECIPES["lever-plus"].rce_over,
        "pool_weight": RECIPES["lever-plus"].rce_pool_weight,
        "stop_logits": None,
    }
    assert defaults_of(grpo_loss) == {
        "clip_epsilon": default(TrainSettings, "clip_epsilon"),
        "top_k": None,
        "kl": RECIPES["lever-plus"].kl,
        "ref_log_prob": None,
        "raw_rewards": None,
        "by_old_policy": False,
    }
    assert defaults_of(rce_temperature) == {
        "start": default(TrainSettings, "rce_temp_start"),
        "end": default(TrainSettings, "rce_temp_end"),
    }


def test_the_defaults_of_the_rewards_are_those_of_the_settings() -> None:
    assert defaults_of(pointer_reward) == {
        name: default(RewardSettings, name) for name in ("hard_weight", "soft_weight", "rel_weight")
    }
    assert defaults_of(normalize_rewards) == {
        "method": default(RewardSettings, "normalization"),
        "clamp": default(RewardSettings, "clamp"),
        "mask": None,
        "std_floor": RECIPES["lever-plus"].std_floor,
    }
    assert defaults_of(vqa_accuracy) == {"variant": "official"}


def test_the_command_line_offers_what_the_library_has() -> None:
    assert REGISTRIES["reward mode"] is REWARD_MODES
    assert default(RewardSettings, "mode") == next(iter(REWARD_MODES))
    assert REGISTRIES["normalization"] is NORMALIZATIONS


def test_presets_and_recipes_are_the_ones_that_exist() -> None:
    assert set(RECIPES) == set(typing.get_args(TrainSettings.model_fields["recipe"].annotation))
    assert set(PRESETS) == set(typing.get_args(DataSettings.model_fields["preset"].annotation))
