"""The engines by name, and the function that opens one. Does not import torch.

To add an engine, write a function that returns an `Engine` (`icdsel.vlm.engine`) and register it:

    ENGINES.add(EngineKind("my-engine", open_my_engine))

It is then chosen with `--engine my-engine`. Import heavy libraries inside the function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from icdsel.errors import SettingsError
from icdsel.registry import Registry
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Engine
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
from icdsel.vlm.workers.pool import EnginePool

Opener = Callable[[VlmSettings, int, CallTimer], Engine]
"""Opens an engine.

It takes the settings, the maximum number of pixels per image, and the timer of calls. The supervision limits the time
of `answer`; the engine must wrap other calls that may hang, such as encoding images, in `with timer.call():`.
"""


Vlm = SupervisedEngine | EnginePool
"""What stages query: one engine in this process, or several in workers."""


class EngineIdentity(NamedTuple):
    """What an engine's results depend on besides the settings: `Engine.fingerprint` and `Engine.dtype`."""

    fingerprint: str
    dtype: str


@dataclass(frozen=True)
class EngineKind:
    """An entry of `ENGINES`.

    Attributes:
        name: The name that users type.
        open: Opens the engine, which may take minutes.
        identify: Returns the engine's identity without opening it; None if this is impossible.
        recall: Returns the identity that the engine had in earlier commands, by the folder of their results; for
            engines that cannot be identified by files, and used only until they are opened.
        asks_servers: Whether it can ask the servers of `--vlm-url`.
        needs_servers: Whether it can do nothing else.
    """

    name: str
    open: Opener
    identify: Callable[[VlmSettings], EngineIdentity | None] | None = None
    recall: Callable[[VlmSettings, Path], EngineIdentity | None] | None = None
    asks_servers: bool = False
    needs_servers: bool = False


def _automatic(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    if settings.url:
        return _server(settings, max_image_pixels, timer)
    from icdsel.vlm.local.loading import load_local

    return load_local(settings, max_image_pixels, timer)


def _server(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    from icdsel.vlm.server.engine import open_server

    del timer  # each request has a time limit of its own
    return open_server(settings, max_image_pixels)


def _identify(settings: VlmSettings) -> EngineIdentity | None:
    if settings.url:
        return None
    from icdsel.vlm.local.loading import identify_local

    return EngineIdentity(*identify_local(settings))


def _recall(settings: VlmSettings, folder: Path) -> EngineIdentity | None:
    from icdsel.vlm.server.engine import recalled

    found = recalled(settings, folder) if settings.url else None
    return None if found is None else EngineIdentity(*found)


def _shared_prefix(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    from icdsel.vlm.local.loading import load_local
    from icdsel.vlm.local.shared_prefix import SharedPrefix

    return load_local(settings, max_image_pixels, timer, SharedPrefix)


def _transformers(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    from icdsel.vlm.local.any_vlm import AnyVlm
    from icdsel.vlm.local.loading import load_local

    return load_local(settings, max_image_pixels, timer, AnyVlm)


ENGINES: Registry[EngineKind] = Registry(
    "engine",
    [
        EngineKind("auto", _automatic, _identify, _recall, True),  # servers if any are named, else by the model
        EngineKind("shared-prefix", _shared_prefix, _identify),  # images and common prefixes are computed once
        EngineKind("qwen-vl", _shared_prefix, _identify),  # its name while it ran Qwen2.5-VL only
        EngineKind("transformers", _transformers),  # any model, through its own processor and `generate`
        EngineKind("server", _server, recall=_recall, asks_servers=True, needs_servers=True),  # over HTTP
    ],
)


def require_possible(settings: VlmSettings) -> None:
    """Checks that the engine can do what else is set.

    Raises:
        SettingsError: There is no engine of this name, or it cannot ask the servers, or it needs some, or workers too
            are to run the model.
    """
    kind = ENGINES.named(settings.engine)
    if settings.url and not kind.asks_servers:
        raise SettingsError(f"--engine {kind.name} does not ask servers: leave it out, or leave out --vlm-url")
    workers = {
        "--workers": settings.workers is not None,
        "--ray": settings.ray,
        "--ray-address": settings.ray_address is not None,
        "all but one --device": "," in settings.device,
    }
    if settings.url and (needless := [flag for flag, given in workers.items() if given]):
        raise SettingsError(
            f"servers (--vlm-url) run the model themselves: leave out {' and '.join(needless)} (see --concurrency)"
        )
    if kind.needs_servers and not settings.url:
        raise SettingsError(
            f"--engine {kind.name} asks servers: name them, as in --vlm-url http://localhost:8000/v1, or leave it out"
        )


def open_engine(settings: VlmSettings, max_image_pixels: int) -> Vlm:
    """Opens the engine selected by the settings, with supervision; one in each worker if there are several.

    Args:
        settings: The model, and how it is run.
        max_image_pixels: Images with more pixels are rejected.

    Raises:
        SettingsError: There is no engine of this name.
        VlmError: The model does not exist or cannot be used.
    """
    require_possible(settings)
    if not settings.url:
        from icdsel.vlm.devices import vlm_devices
        from icdsel.vlm.workers.processes import open_processes

        if settings.on_ray:
            from icdsel.vlm.workers.ray import open_ray

            return open_ray(settings, max_image_pixels)
        if len(devices := vlm_devices(settings)) > 1:
            return open_processes(settings, max_image_pixels, devices)
    timer = CallTimer(settings.call_timeout)
    engine = ENGINES.named(settings.engine).open(settings, max_image_pixels, timer)
    return SupervisedEngine(engine, timer, settings.max_failed)


def identify_engine(settings: VlmSettings) -> EngineIdentity | None:
    """The identity of the engine that `open_engine` would open; None if it is known only after opening.

    Raises:
        SettingsError: There is no engine of this name.
        VlmError: The model does not exist, or its files cannot be read.
    """
    identify = ENGINES.named(settings.engine).identify
    return identify(settings) if identify else None


def recall_engine(settings: VlmSettings, folder: Path) -> EngineIdentity | None:
    """The identity that an engine without files had in earlier commands, by a folder of theirs; None if it is unknown.

    Raises:
        SettingsError: There is no engine of this name.
    """
    recall = ENGINES.named(settings.engine).recall
    return recall(settings, folder) if recall else None
