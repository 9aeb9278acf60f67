"""The engines by name, and the function that opens one. Does not import torch.

To add an engine, write a function that returns an `Engine` (`icdsel.vlm.engine`) and register it:

    ENGINES.add(EngineKind("my-engine", open_my_engine))

It is then chosen with `--engine my-engine`. Import heavy libraries inside the function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from icdsel.registry import Registry
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Engine
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

Opener = Callable[[VlmSettings, int, CallTimer], Engine]
"""Opens an engine.

It takes the settings, the largest number of pixels of an image that is read, and the timer of calls. `answer` is timed
by the supervision; other calls that may hang, such as encoding images, are made `with timer.call():`.
"""


class EngineIdentity(NamedTuple):
    """What the results of an engine depend on, besides its settings: `Engine.fingerprint` and `Engine.dtype`."""

    fingerprint: str
    dtype: str


@dataclass(frozen=True)
class EngineKind:
    """An entry of `ENGINES`.

    Attributes:
        name: What users type.
        open: Opens an engine.
        identify: Tells the identity of an engine without opening it, which may take minutes; None if it cannot.
    """

    name: str
    open: Opener
    identify: Callable[[VlmSettings], EngineIdentity] | None = None


def _automatic(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    from icdsel.vlm.local.loading import load_local

    return load_local(settings, max_image_pixels, timer)


def _identify(settings: VlmSettings) -> EngineIdentity:
    from icdsel.vlm.local.loading import identify_local

    return EngineIdentity(*identify_local(settings))


def _qwen_vl(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    from icdsel.vlm.local.loading import load_local
    from icdsel.vlm.local.qwen_vl import QwenVl

    return load_local(settings, max_image_pixels, timer, QwenVl)


def _transformers(settings: VlmSettings, max_image_pixels: int, timer: CallTimer) -> Engine:
    from icdsel.vlm.local.any_vlm import AnyVlm
    from icdsel.vlm.local.loading import load_local

    return load_local(settings, max_image_pixels, timer, AnyVlm)


ENGINES: Registry[EngineKind] = Registry(
    "engine",
    [
        EngineKind("auto", _automatic, _identify),  # by the model's class
        EngineKind("qwen-vl", _qwen_vl, _identify),  # Qwen2.5-VL: images and shared prefixes are computed once
        EngineKind("transformers", _transformers),  # any model, through its own processor and `generate`
    ],
)


def open_engine(settings: VlmSettings, max_image_pixels: int) -> SupervisedEngine:
    """Opens the engine that the settings name, under supervision.

    Args:
        settings: The model, and how it is run.
        max_image_pixels: Images with more pixels are rejected.

    Raises:
        SettingsError: There is no engine of this name.
        VlmError: The model does not exist or cannot be used.
    """
    timer = CallTimer(settings.call_timeout)
    engine = ENGINES.named(settings.engine).open(settings, max_image_pixels, timer)
    return SupervisedEngine(engine, timer, settings.max_failed)


def identify_engine(settings: VlmSettings) -> EngineIdentity | None:
    """The identity of the engine that `open_engine` would open; None if it has to be opened for that.

    Raises:
        SettingsError: There is no engine of this name.
        VlmError: The model does not exist, or its files cannot be read.
    """
    identify = ENGINES.named(settings.engine).identify
    return identify(settings) if identify else None
