"""The runs of an experiment: variants of the training, named or given by settings, each with several seeds."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icdsel.artefacts.run_folder import run_name
from icdsel.errors import SettingsError
from icdsel.selection import POLICY, RANDOM, always_shown, selectors_named
from icdsel.settings.loading import Settings, on_training_queries, with_values
from icdsel.settings.names import default_text
from icdsel.settings.tables import TrainSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "rce": {},
    "rce-normalized": {"rce_normalized_reward": True},
    "grpo": {"grpo_epochs": 3},
    "grpo-frozen": {"grpo_epochs": 3, "freeze_backbone": True},
    "grpo-online": {"grpo_epochs": 3, "online": True},
}
"""The training settings that each named variant changes. To add a variant, add an entry."""
VARIED = ("train", "reward")
"""The tables whose settings may vary; the others decide RL data and prompts, which all variants share."""

RANDOM_SEEDS = 3
_SHARED = ("train_seed", *TrainSettings.MACHINE)  # settings of training that may not vary


@dataclass(frozen=True)
class Experiment:
    """One run: a variant of the training with a seed.

    Attributes:
        variant: The variant, as the user wrote it.
        seed: The seed of the training.
        settings: The settings of the run.
    """

    variant: str
    seed: int
    settings: Settings

    @property
    def run(self) -> str:
        """The name of the run."""
        return run_name(self.settings)

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def plan_experiments(settings: Settings, variants: str, seeds: int) -> list[Experiment]:
    """The runs of `variants`, sorted by seed.

    Args:
        settings: The settings that each variant changes a part of.
        variants: Variants separated by commas; each consists of names and settings joined by `+`, as in
            `rce,grpo-frozen+rce_lr=1e-3`.
        seeds: The number of runs per variant; the first has the seed of `settings`, the others count up from it.

    Raises:
        SettingsError: A variant or setting is unknown, a value is not allowed, or two variants are the same.
    """
    settings = on_training_queries(settings)
    first = settings.data.seed if settings.train.train_seed is None else settings.train.train_seed
    by_variant: dict[str, Settings] = {}
    for variant in (text.strip() for text in variants.split(",")):
        changed = _changed(settings, variant)
        for other, same in by_variant.items():
            if same == changed:
                raise SettingsError(f"variants {other!r} and {variant!r} are the same training: leave one of them out")
            if run_name(same) == run_name(changed):
                raise SettingsError(
                    f"variants {other!r} and {variant!r} would have the same run name, {run_name(changed)}, which "
                    "contains only the names of files, and six digits of a number. Rename a file, or change a number"
                )
        by_variant[variant] = changed
    return [
        Experiment(variant, first + k, with_values(changed, {"train": {"train_seed": first + k}}) if k else changed)
        for k in range(seeds)
        for variant, changed in by_variant.items()
    ]


def _changed(settings: Settings, variant: str) -> Settings:
    """The settings of a variant. Its explicit settings override those of its named variants."""
    named: dict[str, Any] = {}
    explicit: dict[str, dict[str, Any]] = {}
    for part in re.split(r"\+(?=\s*[A-Za-z])|\+$", variant):  # does not split 1e+3
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            named |= _named(key)
            continue
        table, _, name = key.rpartition(".")
        table, name = table or "train", name.replace("-", "_")
        if table not in VARIED or (table, name) in (("train", shared) for shared in _SHARED):
            raise SettingsError(
                f"variant {variant}: {key} cannot differ between variants, which share data, prompts, seeds "
                f"(--seeds), device and outputs. Settings of {' and '.join(VARIED)} can"
            )
        if explicit.setdefault(table, {}).setdefault(name, value) != value:
            raise SettingsError(f"variant {variant}: {key} is set twice")
    try:
        return with_values(settings, explicit | {"train": named | explicit.get("train", {})})
    except SettingsError as error:
        raise SettingsError(f"variant {variant}: {error}") from None


def _named(name: str) -> Mapping[str, Any]:
    if name in VARIANTS:
        return VARIANTS[name]
    close = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if (setting := name.replace("-", "_").removeprefix("train.")) in TrainSettings.model_fields:
        default = default_text("train", setting).split(";")[0]
        hint = f"give the setting a value, as in {setting}={default}; "
    raise SettingsError(
        f"unknown variant {name!r} ({hint}choose {', '.join(VARIANTS)}, training settings such as rce_lr=1e-3, or "
        "several of them joined by +)"
    )


def baselines(settings: Settings) -> list[Settings]:
    """Settings of `infer` for the baselines: zero-shot, majority, `random`, and other named selectors.

    Those that draw at random, each with several seeds, have settings of their own.
    """
    pool_size = settings.data.pool_size
    named = selectors_named((*always_shown(), RANDOM.name, *settings.infer.selector), pool_size)
    seeds = {selector.name: selector.seed(settings) for selector in named if selector.name != POLICY.name}
    changes: list[dict[str, Any]] = [{"selector": [name for name, first in seeds.items() if first is None]}]
    # Predictions of the settings' own seed have no seed in their name.
    drawing = {name: first for name, first in seeds.items() if first is not None}
    changes += [
        {"selector": [name], "random_seed": first + k} for name, first in drawing.items() for k in range(RANDOM_SEEDS)
    ]
    return [with_values(settings, {"infer": change}) for change in changes]


def answering(experiment: Experiment) -> Settings:
    """Settings of `infer` for the policy of a run."""
    return with_values(experiment.settings, {"infer": {"selector": [POLICY.name]}})
