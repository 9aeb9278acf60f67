"""The formats of Lever-Plus's checkpoints: which parameters they hold, under which names.

There are three: ``.pt`` (its RCE and GRPO epochs), ``_v2format.ckpt`` (these, converted for inference) and Lightning's
``.ckpt`` (its supervised training, with whole CLIP models and OmegaConf objects beside the selector). Parameter names
come with and without the prefixes of the modules around the selector, and changed once. `selector_weights` reads them
all.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from icdsel.policy.config import PointerConfig

__all__ = ["V2_SUFFIX", "drop_neutral_gate", "infer_config", "selector_weights", "unknown_parts", "v2_format"]

V2_SUFFIX = "_v2format.ckpt"
_WRAPPER, _SELECTOR = "lever_lm.", "pointer_selector."
_NEIGHBOURS = ("sen_model.", "img_model.", "sen_adapter.", "img_adapter.")  # CLIP, in Lightning's checkpoints
_OLD_NAMES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}  # before 2025-11-27
_GATE = "query_update_gate."
_OPEN_GATE = 30.0  # sigmoid(30) is 1 in float32: the state does not change


# --- reading ----------------------------------------------------------------------------------------------


def selector_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Finds the selector's weights in the content of any checkpoint.

    Args:
        checkpoint: A mapping with `model_state_dict` or `state_dict`, or a bare state_dict.

    Returns:
        Current parameter name → value. The values are not checked. Parameters of other modules are left out; unknown
        names are kept, for the caller to report.

    Raises:
        ValueError: It holds no pointer selector.
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
    """Infers the sizes of a network from the shapes of its weights, for a checkpoint without `config`.

    The shapes do not show the number of heads: it is 1, as in every run of Lever-Plus. The dropouts, which matter for
    further training only, are the defaults.

    Raises:
        ValueError: The shapes are not those of a pointer network.
    """
    width = _shape(weights, "query_proj.weight")[0]
    layers = {name.split(".")[1] for name in weights if name.startswith("cross_attn_layers.")}
    if not layers:
        raise ValueError("it has no cross-attention layer")
    return PointerConfig(
        d_model=_shape(weights, "input_proj.weight")[1] if "input_proj.weight" in weights else width,
        hidden_dim=width,
        num_layers=len(layers),
        gate=any(name.startswith(_GATE) for name in weights),
        tower=_shape(weights, "tower.up.weight")[0] if "tower.up.weight" in weights else 0,
        answer_dim=_shape(weights, "answer_proj")[1] if "answer_proj" in weights else 0,
    )


def drop_neutral_gate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the neutral gate that `v2_format` adds to a network without one; any other gate stays."""
    weight, bias = weights.get(f"{_GATE}weight"), weights.get(f"{_GATE}bias")
    if weight is None or bias is None or weight.any() or not (bias == _OPEN_GATE).all():
        return dict(weights)
    return {name: value for name, value in weights.items() if not name.startswith(_GATE)}


def _shape(weights: Mapping[str, Any], name: str) -> tuple[int, int]:
    shape = tuple(getattr(weights[name], "shape", ()))
    if len(shape) != 2:
        raise ValueError(f"{name} is not a matrix")
    return int(shape[0]), int(shape[1])


# --- writing ----------------------------------------------------------------------------------------------


def v2_format(weights: Mapping[str, Tensor], config: PointerConfig, epoch: int, legacy_names: bool) -> dict[str, Any]:
    """The content of a ``_v2format.ckpt``, with icdsel's `config` added.

    Lever-Plus's own converter writes the parameter names of November 2025. Its current classes do not find them and run
    with a random cross-attention, so the current names are the default here. Its classes always have a gate (a random
    one if the file has none), so a policy without a gate gets a neutral one, which does not change the state.

    Raises:
        ValueError: The policy has no cross-attention layer, or another update of the state than a gate, which
            Lever-Plus's classes always have; or `legacy_names` with more than one layer, which the old classes did not
            have.
    """
    if config.gate and config.update != "gate":
        raise ValueError(f"Lever-Plus's networks update their state by a gate, this policy by --update {config.update}")
    if not config.num_layers:
        raise ValueError("Lever-Plus's networks have a cross-attention layer, this policy has none (--num-layers 0)")
    if legacy_names and config.num_layers > 1:
        raise ValueError(
            f"the legacy names allow one cross-attention layer, this policy has {config.num_layers}; "
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


def unknown_parts(config: PointerConfig) -> list[str]:
    """The parts of a policy that Lever-Plus does not know, for a message."""
    parts = []
    if config.tower:
        parts.append(f"shared encoder ({config.tower} wide)")
    if config.query_tower:
        parts.append(f"encoder of queries ({config.query_tower} wide)")
    if config.question_gate:
        parts.append("gate by the question")
    if config.stop:
        parts.append("STOP")
    if config.num_heads > 1:
        parts.append(f"{config.num_heads} attention heads")
    if config.answer_dim:
        parts.append("view of the candidates' answers")
    return parts
