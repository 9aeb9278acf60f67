"""How many threads compute on the CPU. It decides the last digits of a training, so interrupted work keeps its number.

Sums are split among the threads, and the parts are rounded differently. Left to itself, MKL also uses fewer threads
than there are when it sees fit; setting their number in torch stops that.
"""

from typing import Any

import torch

from icdsel.console import note
from icdsel.settings.devices import MOST_THREADS, available_threads
from icdsel.settings.loading import Settings
from icdsel.settings.tables import VlmSettings
from icdsel.store.slot import Result


def use_threads(settings: Settings, unfinished: Result | None = None) -> int:
    """Sets the number of torch's threads, and returns it. Workers that run the VLM compute with the same number.

    Args:
        settings: The number, if it was given, and that of the workers, which share the CPUs.
        unfinished: The result that is about to be worked on: one that an interrupted process started keeps its number.

    Raises:
        UserError: of the class of the result's errors; it was started with another number than the one that was given.
    """
    threads = settings.data.threads or max(1, available_threads() // _sharing(settings.vlm))
    kept = _threads_of(unfinished) if unfinished else None
    if unfinished and kept not in (None, threads):
        name = unfinished.slot.name
        if settings.data.threads is not None:
            existing = (path for path in (unfinished.slot.path, unfinished.slot.unfinished_file) if path.exists())
            raise unfinished.slot.error(
                f"{name} was started with --threads {kept}, and their number decides the last digits: resume with "
                f"--threads {kept}, or move {next(existing, unfinished.slot.path)} away to start again."
            )
        note(f"{name}: resuming with --threads {kept}, as it was started (this machine would use {threads})")
        threads = kept
    torch.set_num_threads(threads)
    return threads


def _sharing(settings: VlmSettings) -> int:
    """How many workers share the CPUs of this machine."""
    if settings.ray_address is not None:
        return 1
    devices = torch.cuda.device_count() if settings.ray else len(settings.device.split(","))
    return settings.workers or max(1, devices)


def _threads_of(result: Result) -> Any:
    """The recorded number of threads; None if there is none, as in results of earlier versions."""
    recorded = result.metadata.environment.get("threads") if result.metadata else None
    return recorded if type(recorded) is int and 0 < recorded <= MOST_THREADS else None
