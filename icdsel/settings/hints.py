"""Warnings about settings and variables that have no effect."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping

from icdsel.settings.kinds import API_KEY_VARIABLE, SERVE_KEY_VARIABLE
from icdsel.settings.loading import Settings
from icdsel.settings.names import ENV_PREFIX, flag, variable_names
from icdsel.settings.tables import TABLES


def _idle(settings: Settings) -> Iterator[tuple[bool, str, str]]:
    """Every setting that another one makes ineffective: whether it does now, `table.names`, and why.

    What an entry of a registry ignores (a layout, a reward mode) is named there, as `ignores`; together they are all.
    """
    data, vlm, proposals, train = settings.data, settings.vlm, settings.proposals, settings.train
    raw = not train.grpo_epochs and not train.rce_normalized_reward
    yield data.pool_size == "all", "data.sampler", "with --pool-size all, except on file names"
    yield data.pool_size == "all", "data.pool_rules", "with --pool-size all"
    yield bool(vlm.url), "vlm.dtype vlm.trust_remote_code vlm.batch_tokens", "with --vlm-url: the server decides"
    yield not vlm.url, "vlm.concurrency vlm.file_urls vlm.request_timeout vlm.retries", "without --vlm-url"
    yield not vlm.on_ray, "vlm.ray_wait", "without --ray or --ray-address"
    yield vlm.num_beams == 1, "vlm.length_penalty", "with one beam (--num-beams)"
    yield vlm.image_cache_dir is None, "vlm.image_cache_disk_mb", "without --image-cache-dir"
    yield not proposals.samples, "proposals.temperatures", "with --samples 0"
    yield not proposals.temperatures, "proposals.samples", "without --temperatures"
    yield raw, "reward.normalization reward.clamp", "on RCE with raw rewards: add --rce-normalized-reward or GRPO"
    yield not train.gate, "train.update", "with --no-gate"
    yield train.warm_start is None, "train.warm_epochs", "without --warm-start"
    yield not train.rce_epochs, "train.rce_normalized_reward train.rce_over", "with --rce-epochs 0"
    yield not train.rce_epochs, "train.rce_temp_start train.rce_temp_end train.label_smoothing", "with --rce-epochs 0"
    yield not train.rce_epochs and train.warm_start is None, "train.rce_lr", "with --rce-epochs 0"
    grpo = "train.freeze_backbone train.grpo_lr train.kl_beta train.clip_epsilon"
    yield not train.grpo_epochs, grpo, "without GRPO, such as --grpo-epochs 3"
    yield not train.online, "train.online_samples train.vlm_budget", "without --online"
    yield settings.infer.n == -1, "infer.subset", "with --n -1, which takes all queries"


def without_effect(settings: Settings, tables: Iterable[str]) -> list[str]:
    """A warning for each given setting of `tables` that has no effect because of another setting."""
    idle = [(*place.split("."), why) for does, places, why in _idle(settings) if does for place in places.split()]
    return [
        f"{flag(name, TABLES[table].model_fields[name])} has no effect {why}"
        for table, name, why in idle
        if table in tables and name in getattr(settings, table).model_fields_set
    ]


# Variables of Lever-Plus's scripts, and the flags that replace them.
OLD_VARIABLES = {
    "RCE_EPOCHS": "--rce-epochs",
    "GRPO_EPOCHS": "--grpo-epochs",
    "BATCH_SIZE": "--batch-size",
    "RCE_LR": "--rce-lr",
    "GRPO_LR": "--grpo-lr",
    "KL_BETA": "--kl-beta",
    "NUM_LAYERS": "--num-layers",
    "REWARD_MODE": "--reward-mode",
    "HARD_WEIGHT": "--hard-weight",
    "SOFT_WEIGHT": "--soft-weight",
    "REL_WEIGHT": "--rel-weight",
    "RCE_USE_NORMALIZED_REWARD": "--rce-normalized-reward",
    "RCE_USE_RAW_REWARD": "--no-rce-normalized-reward",
    "FREEZE_BACKBONE_IN_GRPO": "--freeze-backbone",
    "SKIP_FALLBACK_REWARD": "--skip-fallback",
    "REQUIRE_POSITIVE_QUERY": "--require-correct",
    "RL_DATA_PATH": "--rl-data",
    "LEVER_LM_CHECKPOINT_PATH": "--checkpoint",
    "RESULT_DIR": "--results-dir",
    "OKVQA_PATH": "--data-dir",
    "VQAV2_PATH": "--data-dir",
    "COCO_PATH": "--image-dir",
    "COCO_TRAIN_ROOT": "--image-dir",
    "COCO_VAL_ROOT": "--image-dir",
    "OKVQA_TRAIN_PATH": "--data-dir",
    "OKVQA_VAL_PATH": "--data-dir",
    "VQAV2_TRAIN_PATH": "--data-dir",
    "VQAV2_VAL_PATH": "--data-dir",
}


def stray_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A warning for each variable that seems to be meant for icdsel and has no effect."""
    known, warnings = variable_names() | {API_KEY_VARIABLE, SERVE_KEY_VARIABLE}, []
    for name in sorted(environment):
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            warnings.append(f"{name} is not a setting and is ignored{hint}")
        elif name in OLD_VARIABLES:
            warnings.append(f"{name}={environment[name]} is ignored; use {OLD_VARIABLES[name]} instead")
    return warnings
