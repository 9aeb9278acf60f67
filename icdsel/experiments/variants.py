"""What `compare --train` varies: named variants and free settings of the training, each with several seeds."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icdsel.artefacts.predictions import ALWAYS
from icdsel.artefacts.run_folder import run_name
from icdsel.console import warn
from icdsel.errors import SettingsError
from icdsel.settings.hints import without_effect
from icdsel.settings.loading import Settings, on_training_queries, with_values
from icdsel.settings.tables import Selector, TrainSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "rce": {},
    "rce-normalized": {"rce_normalized_reward": True},
    "grpo": {"grpo_epochs": 3},
    "grpo-frozen": {"grpo_epochs": 3, "freeze_backbone": True},
    "grpo-online": {"grpo_epochs": 3, "online": True},
}
"""What the named variants change of the training settings."""

RANDOM_SEEDS = 3
_VARIED = ("train", "reward")  # what else there is decides RL data or prompts, which all variants share
_OWN: tuple[Selector, ...] = ("policy", "random", *ALWAYS)


@dataclass(frozen=True)
class Experiment:
    """One run: a variant of the training, with a seed.

    Attributes:
        variant: The variant as it was asked for.
        seed: The seed of the training.
        settings: Those of the run.
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
    """The runs of `variants`, those of the first seed first.

    Args:
        settings: What every variant changes a part of.
        variants: Variants with commas; each is names and settings joined by `+`, as in `rce,grpo-frozen+rce_lr=1e-3`.
        seeds: How many seeds each is trained with, from the settings' own on.

    Raises:
        SettingsError: an unknown variant or setting, a value that is not allowed, or two variants that are the same.
    """
    settings = on_training_queries(settings)
    first = settings.data.seed if settings.train.train_seed is None else settings.train.train_seed
    by_variant: dict[str, Settings] = {}
    for variant in (text.strip() for text in variants.split(",")):
        changed = _changed(settings, variant)
        for other, same in by_variant.items():
            if same == changed:
                raise SettingsError(f"--train: {other!r} and {variant!r} are the same training: leave one of them out")
            if run_name(same) == run_name(changed):
                raise SettingsError(
                    f"--train: {other!r} and {variant!r} would be one run, {run_name(changed)}: its name tells of "
                    "files their names alone, of numbers six digits. Rename a file, or take another number"
                )
        by_variant[variant] = changed
    told = set(without_effect(settings, _VARIED))
    for variant, changed in by_variant.items():
        for warning in without_effect(changed, _VARIED):
            if warning not in told:
                warn(f"{variant}: {warning}")
    return [
        Experiment(variant, first + k, with_values(changed, {"train": {"train_seed": first + k}}) if k else changed)
        for k in range(seeds)
        for variant, changed in by_variant.items()
    ]


def _changed(settings: Settings, variant: str) -> Settings:
    """The settings of a variant: those of its names, then what it sets itself."""
    named: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for part in re.split(r"\+(?=\s*[A-Za-z])|\+$", variant):  # not the + of 1e+3
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            named |= _named(key)
            continue
        table, _, name = key.rpartition(".")
        table, name = table or "train", name.replace("-", "_")
        if table not in _VARIED or name in ("train_seed", "train_device", "tensorboard"):
            raise SettingsError(
                f"--train {variant}: {key} cannot differ between the variants of one comparison, which share data, "
                f"prompts, seeds (--seeds) and what is written. Settings of {' and '.join(_VARIED)} can"
            )
        if own.setdefault(table, {}).setdefault(name, value) != value:
            raise SettingsError(f"--train {variant}: {key} is set twice")
    try:
        return with_values(settings, own | {"train": named | own.get("train", {})})
    except SettingsError as error:
        raise SettingsError(f"--train {variant}: {error}") from None


def _named(name: str) -> Mapping[str, Any]:
    if name in VARIANTS:
        return VARIANTS[name]
    close = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if (setting := name.replace("-", "_").removeprefix("train.")) in TrainSettings.model_fields:
        hint = f"give the setting a value, as in {setting}={TrainSettings.model_fields[setting].default}; "
    raise SettingsError(
        f"--train: unknown variant {name!r} ({hint}there are: {', '.join(VARIANTS)}; settings of the training, such "
        f"as rce_lr=1e-3; and several of them joined by +)"
    )


def baselines(settings: Settings) -> list[Settings]:
    """What `infer` is asked for beside the runs: `random` by each seed, zero-shot, majority, who else is named."""
    first = settings.data.seed if settings.infer.random_seed is None else settings.infer.random_seed
    others = [selector for selector in settings.infer.selector if selector not in _OWN]
    asked: list[dict[str, Any]] = [{"selector": [*ALWAYS, *others]}]
    # The first seed is the settings' own, and is named by nothing.
    asked += [{"selector": ["random"], "random_seed": first + k} for k in range(RANDOM_SEEDS)]
    return [with_values(settings, {"infer": infer}) for infer in asked]


def answering(experiment: Experiment) -> Settings:
    """What `infer` is asked for with a run's policy."""
    return with_values(experiment.settings, {"infer": {"selector": ["policy"]}})
