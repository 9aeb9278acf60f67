"""Devices and dtypes by the names that settings have for them."""

import torch

from icdsel.errors import VlmError


def resolve_device(name: str) -> torch.device:
    """The device of this name; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        VlmError: The name is unknown, or this machine has no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise VlmError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count()
        raise VlmError(f"device {name!r} does not exist ({found} GPUs found): use --device cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name, automatic)
