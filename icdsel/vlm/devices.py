"""Converts the names of devices and dtypes in settings to torch's."""

import torch

from icdsel.settings import devices
from icdsel.settings.tables import VlmSettings


def resolve_device(name: str, flag: str = "--device") -> torch.device:
    """Converts the name of a device, from the setting behind `flag`, to a device of this machine.

    Raises:
        SettingsError: The name is unknown, or this machine has no such GPU.
    """
    return torch.device(devices.resolve_device(name, torch.cuda.device_count(), flag))


def vlm_devices(settings: VlmSettings) -> tuple[str, ...]:
    """The device of each worker that runs the VLM; a single one runs in this process.

    Raises:
        SettingsError: A device is unknown or does not exist.
    """
    return devices.worker_devices(settings.device, settings.workers, torch.cuda.device_count())


def vlm_device(settings: VlmSettings) -> torch.device:
    """The device that runs models in this process; of several workers, the first one's."""
    return torch.device(resolve_device("auto") if settings.on_ray else vlm_devices(settings)[0])


def vlm_dtype(settings: VlmSettings) -> torch.dtype:
    """The dtype that the VLM computes in, in this process or in workers.

    Raises:
        SettingsError: The device is unknown or does not exist.
        VlmError: It is that of a Ray cluster that cannot be used.
    """
    if not settings.on_ray:
        return resolve_dtype(settings.dtype, vlm_device(settings))
    from icdsel.vlm.workers.ray import device_of

    return resolve_dtype(settings.dtype, torch.device(device_of(settings)))


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Converts the name of a dtype; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name, automatic)
