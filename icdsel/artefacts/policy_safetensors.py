"""A policy as a file of safetensors, which any program may open: weights, and in the header what else is needed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from icdsel.policy.network import PointerNetwork
from icdsel.store.files import write_bytes
from icdsel.store.json_reading import parsed
from icdsel.store.reading import in_utf_8

__all__ = ["SUFFIX", "read_policy_file", "write_policy_file"]

SUFFIX = ".safetensors"
_HEADER = "icdsel"
_LARGEST_HEADER = 2**20  # characters


def write_policy_file(
    path: Path, network: PointerNetwork, *, epoch: int | None, phase: str | None, trained_for: Mapping[str, Any]
) -> None:
    """Writes a policy atomically.

    Args:
        path: The file.
        network: The policy.
        epoch: The epoch after which its checkpoint was written, counted from 0.
        phase: The phase of that epoch.
        trained_for: What it was trained for, as in its checkpoint.
    """
    header = {"config": asdict(network.config), "epoch": epoch, "phase": phase, "trained_for": dict(trained_for)}
    # A weight that two layers share is one tensor in memory, which the format forbids.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    write_bytes(path, save(weights, {_HEADER: json.dumps(header, sort_keys=True)}))


def read_policy_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the weights of a policy, in float32 and finite, and its header.

    Raises:
        ValueError: It is not a file of this format, or damaged.
    """
    try:
        with in_utf_8(path) as name, safe_open(name, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER, "")
            if not header or len(header) > _LARGEST_HEADER:
                raise ValueError("its header does not describe a policy")
            content = parsed(header)
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
    except SafetensorError as error:
        raise ValueError(str(error)[:200]) from None
    if not isinstance(content, dict):
        raise ValueError("its header does not describe a policy")
    for key, value in weights.items():
        if not value.is_floating_point():
            raise ValueError(f"{key[:80]} is not a tensor of floats")
        if not value.isfinite().all():
            raise ValueError(f"{key[:80]} has NaN or infinite values: its training went wrong")
    return {key: value.float() for key, value in weights.items()}, content
