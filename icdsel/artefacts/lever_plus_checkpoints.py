"""The artefacts of Lever-Plus, the system that icdsel replaces: its checkpoints, read and written.

Its checkpoints come in three forms: ``.pt`` (its RCE and GRPO epochs), ``_v2format.ckpt`` (its conversion of
those for inference) and Lightning's ``.ckpt`` (its supervised training), the last with whole CLIP models and
OmegaConf objects beside the selector. Parameter names come with and without the prefixes of the modules
around the selector, and from two ages. `selector_weights` makes one thing of all of them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from icdsel.policy.network import PointerConfig

__all__ = [
    "ConversionWarning",
    "drop_neutral_gate",
    "infer_config",
    "selector_weights",
    "unknown_parts",
    "v2_format",
]

_WRAPPER, _SELECTOR = "lever_lm.", "pointer_selector."
_NEIGHBOURS = ("sen_model.", "img_model.", "sen_adapter.", "img_adapter.")  # CLIP, in Lightning's checkpoints
_OLD_NAMES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}  # before 2025-11-27
_GATE = "query_update_gate."
_OPEN_GATE = 30.0  # sigmoid(30) is 1 in float32: the state stays as it is


class ConversionWarning(UserWarning):
    """A converted checkpoint holds parts that Lever-Plus has no place for and would ignore."""


# --- names and shapes -------------------------------------------------------------------------------------


def selector_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The selector's weights, under today's names, from what any of its checkpoints holds.

    Args:
        checkpoint: A mapping with `model_state_dict` or `state_dict`, or a bare state_dict.

    Returns:
        Parameter name → value. Nothing is known yet about the values; what belongs to other modules is left
        out, names that are no selector's are kept, to be reported.

    Raises:
        ValueError: There is no pointer selector in it.
    """
    state = checkpoint.get("model_state_dict", checkpoint.get("state_dict", checkpoint))
    if not isinstance(state, Mapping):
        raise ValueError(f"its state_dict is a {type(state).__name__}, not a dict")
    named = [(str(name).removeprefix(_WRAPPER), value) for name, value in state.items()]
    if any(name.startswith(_SELECTOR) for name, _ in named):
        named = [(name.removeprefix(_SELECTOR), value) for name, value in named if name.startswith(_SELECTOR)]
    else:
        named = [(name, value) for name, value in named if not name.startswith(_NEIGHBOURS)]
    weights: dict[str, Any] = {}
    for name, value in named:
        for old, new in _OLD_NAMES.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if name in weights:
            raise ValueError(f"it holds {name[:80]} twice, under its old and its new name")
        weights[name] = value
    if "query_proj.weight" not in weights:
        found = ", ".join(str(name)[:80] for name in list(state)[:5]) or "nothing"
        raise ValueError(f"it holds no pointer selector (no query_proj.weight; it begins with: {found})")
    return weights


def infer_config(weights: Mapping[str, Any]) -> PointerConfig:
    """The sizes of a network, from the shapes of its weights, where the checkpoint does not tell them.

    The heads cannot be seen in the shapes: they are taken to be 1, as in every run of Lever-Plus. The
    dropouts, which matter for further training alone, are the defaults.

    Raises:
        ValueError: The shapes are no pointer network's.
    """
    width = _shape(weights, "query_proj.weight")[0]
    layers = {name.split(".")[1] for name in weights if name.startswith("cross_attn_layers.")}
    return PointerConfig(
        d_model=_shape(weights, "input_proj.weight")[1] if "input_proj.weight" in weights else width,
        hidden_dim=width,
        num_layers=len(layers),
        gate=any(name.startswith(_GATE) for name in weights),
        tower=_shape(weights, "tower.up.weight")[0] if "tower.up.weight" in weights else 0,
    )


def _shape(weights: Mapping[str, Any], name: str) -> tuple[int, int]:
    shape = tuple(getattr(weights[name], "shape", ()))
    if len(shape) != 2:
        raise ValueError(f"{name} is no matrix")
    return int(shape[0]), int(shape[1])


# --- the v2 format ----------------------------------------------------------------------------------------


def v2_format(weights: Mapping[str, Tensor], config: PointerConfig, epoch: int, legacy_names: bool) -> dict[str, Any]:
    """What a ``_v2format.ckpt`` holds, and our `config` beside it.

    Lever-Plus's own conversion writes the parameter names of November 2025, which its current classes do not
    find: they run with a random cross-attention. Here the current names are the default. Its classes always
    have a gate (a random one, where the file has none), so a policy without one is given a gate that keeps
    the state as it is.

    Raises:
        ValueError: `legacy_names` is asked for with more than one layer, which the old classes did not have.
    """
    if legacy_names and config.num_layers > 1:
        raise ValueError(
            f"the legacy names know one cross-attention layer, this policy has {config.num_layers}; "
            "convert it without them"
        )
    written = dict(weights)
    if not config.gate:
        h = config.hidden_dim
        written[f"{_GATE}weight"] = torch.zeros(h, 2 * h)
        written[f"{_GATE}bias"] = torch.full((h,), _OPEN_GATE)
    state: dict[str, Tensor] = {}
    for name, value in written.items():
        for old, new in _OLD_NAMES.items():
            if legacy_names and name.startswith(new):
                name = old + name.removeprefix(new)
        state[_WRAPPER + _SELECTOR + name] = value
    return {
        "epoch": epoch,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "hyper_parameters": {"lr": 1e-4, "weight_decay": 1e-3, "warm_steps": 0.05},
        "config": asdict(config),
    }


def drop_neutral_gate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network without a gate, where `v2_format` has added one; a real gate is left in."""
    weight, bias = weights.get(f"{_GATE}weight"), weights.get(f"{_GATE}bias")
    if weight is None or bias is None or weight.any() or not (bias == _OPEN_GATE).all():
        return dict(weights)
    return {name: value for name, value in weights.items() if not name.startswith(_GATE)}


def unknown_parts(config: PointerConfig) -> list[str]:
    """The parts of a policy that Lever-Plus has no place for, in words."""
    parts = []
    if config.tower:
        parts.append(f"shared tower ({config.tower} wide)")
    if config.num_heads > 1:
        parts.append(f"{config.num_heads} attention heads")
    return parts
