"""Which device a setting names (`--device`, `--train-device`). Does not import torch."""

import re

from icdsel.errors import SettingsError


def resolve_device(name: str, gpus: int, flag: str = "--device") -> str:
    """The device that a setting names, as torch calls it, GPUs with their number; `auto` is the first GPU, if any.

    Args:
        name: `auto`, `cpu`, `cuda`, or a certain GPU such as `cuda:0`.
        gpus: How many GPUs this machine has (`torch.cuda.device_count()`).
        flag: The setting's flag, for messages.

    Raises:
        SettingsError: The device is unknown, or the machine has no such GPU.
    """
    if name == "auto":
        return "cuda:0" if gpus else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", name)
    if known is None:
        raise SettingsError(f"unknown device {name!r}: {flag} takes auto, cpu, cuda or cuda:0")
    if name != "cpu" and int(known[1] or 0) >= gpus:
        raise SettingsError(f"device {name!r} does not exist ({gpus} GPUs found): use {flag} cpu")
    return "cuda:0" if name == "cuda" else name
