"""Which device a setting names (`--device`, `--train-device`), and how many threads compute. Does not import torch."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

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


def worker_devices(names: str, workers: int | None, gpus: int) -> tuple[str, ...]:
    """The device of each worker that runs the VLM, as torch calls it.

    Args:
        names: One or more devices, separated by commas, as in `cuda:0,cuda:1`; `auto` is every GPU, if there are any.
        workers: The number of workers, which share the devices; None for one per device that is named.
        gpus: How many GPUs this machine has.

    Raises:
        SettingsError: A device is unknown or does not exist, they differ in kind, or there are more than workers.
    """
    if names == "auto" and workers is not None and gpus:
        devices = [f"cuda:{gpu}" for gpu in range(min(gpus, workers))]
    else:
        devices = [resolve_device(name.strip(), gpus) for name in names.split(",")]
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise SettingsError(
            f"--device {names} mixes CPU and GPU, whose results differ in the last digits: use one kind"
        )
    if workers is not None and workers < len(devices):
        raise SettingsError(f"--workers {workers} cannot use the {len(devices)} devices of --device {names}")
    return tuple(devices[n % len(devices)] for n in range(workers or len(devices)))


def label(devices: Sequence[str]) -> str:
    """The devices of all workers in a few words, as in `cuda:0, cuda:1` or `cpu (2 workers)`."""
    counts = Counter(devices)
    return ", ".join(f"{device} ({count} workers)" if count > 1 else device for device, count in counts.items())


def available_threads(environment: Mapping[str, str] = os.environ) -> int:
    """The number of threads to compute with: `OMP_NUM_THREADS`, else the CPUs that this process may use."""
    requested = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has one for each nested level
    if requested.isdecimal() and 0 < int(requested) <= MOST_THREADS:
        return int(requested)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)
