"""Writes checkpoints of the policy. The same content always results in the same bytes, whatever the file name."""

import io
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icdsel.policy.network import PointerNetwork
from icdsel.store.files import write_bytes

__all__ = ["save_policy", "torch_bytes"]


def save_policy(
    path: str | Path,
    network: PointerNetwork,
    *,
    epoch: int,
    phase: str,
    metrics: Mapping[str, Any],
    kl_beta: float,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
    trained_for: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint atomically: a reader sees the old file or the new one, never a part.

    Args:
        path: The file; missing folders are created.
        network: The policy, in training mode or not.
        epoch: The epoch that was just trained, counted from 0.
        phase: One of `icdsel.policy.loop.PHASES`.
        metrics: What was measured: plain values and containers.
        kl_beta: The current weight of the KL term.
        optimizer: For checkpoints from which training resumes.
        extra: Anything else, read again as `Checkpoint.extra`: plain values, containers, tensors.
        trained_for: What the policy was trained for: plain values and lists of texts, by name.

    Raises:
        TypeError: `metrics` or `extra` holds something else.
    """
    content: dict[str, Any] = {
        "epoch": epoch,
        "phase": phase,
        "model_state_dict": network.state_dict(),
        "kl_beta": float(kl_beta),
        "metrics": metrics,
        "config": asdict(network.config),
    }
    if optimizer is not None:
        content["optimizer_state_dict"] = optimizer.state_dict()
    if extra is not None:
        content["extra"] = extra
    if trained_for:
        content["trained_for"] = trained_for
    write_bytes(Path(path), torch_bytes(content))


def torch_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes of `torch.save`, the same for equal content.

    Raises:
        TypeError: `content` holds something other than plain values, containers and tensors.
    """
    buffer = io.BytesIO()  # torch would store the name of a file in the archive
    torch.save(_plain(content), buffer)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """A copy in built-in types, whose object identities depend only on the content.

    Pickle writes an object that occurs again as a reference, so the bytes of equal content would depend on what happens
    to be shared. Containers and tensors are copied, and strings are interned, so that equal ones are always one object.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return sys.intern(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    raise TypeError(f"a checkpoint holds plain values and tensors, not {type(value).__name__}")
