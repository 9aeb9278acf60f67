"""Which device a setting names (`--device`, `--train-device`), and how many threads compute. Does not import torch."""

import os
import re
from collections.abc import Mapping

from icdsel.errors import SettingsError

MOST_THREADS = 1024
"""The maximum of `--threads`."""


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


def available_threads(environment: Mapping[str, str] = os.environ) -> int:
    """The number of threads to compute with: `OMP_NUM_THREADS`, else the CPUs that this process may use."""
    requested = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has one for each nested level
    if requested.isdecimal() and 0 < int(requested) <= MOST_THREADS:
        return int(requested)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)
