"""Which engines `icdsel bench --engine …` measures, with the settings of each."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from icdsel.settings.hints import without_effect
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.devices import vlm_devices
from icdsel.vlm.engines import ENGINES

LOCAL, SERVER = "local scorer", "server"
NO_MODEL = "none"
"""In place of the model on this machine: servers are measured alone."""
_AUTOMATIC = VlmSettings.model_fields["engine"].default


class Way(NamedTuple):
    """An engine: its name for the table, and the settings that open it."""

    name: str
    settings: Settings


class Ways(NamedTuple):
    """What is measured.

    Attributes:
        local: Engines whose model is on this machine; the first one is `LOCAL`, in this process.
        servers: Engines that ask servers.
    """

    local: Sequence[Way]
    servers: Sequence[Way]


def named_engines(settings: Settings, flag: str | None) -> list[str]:
    """The engines that are named by a flag's names, separated by commas, or else by a setting.

    Raises:
        SettingsError: There is no engine of a name.
    """
    given = [settings.vlm.engine] if "engine" in settings.vlm.model_fields_set else []
    names = given if flag is None else [name.strip() for name in flag.split(",")]
    return [ENGINES.named(name).name for name in dict.fromkeys(names)]


def names_engines(settings: Settings, engines: Sequence[str]) -> bool:
    """Whether settings, or `engines`, name anything but the automatic engine in this process."""
    return bool(engines or settings.vlm.url or settings.vlm.on_ray) or len(vlm_devices(settings.vlm)) > 1


def ways_of(settings: Settings, engines: Sequence[str], local_model: str | None) -> Ways:
    """The automatic engine in this process, each of `engines`, and the workers and servers of the settings.

    Workers have the engines that are named, or the automatic one; they are in processes and, if they are to be, on Ray.

    Args:
        settings: The model, and what runs it.
        engines: Names of engines.
        local_model: The model on this machine, if servers call it by another name; `NO_MODEL` if it is not there.

    Raises:
        SettingsError: There is no such device.
    """
    vlm = settings.vlm
    devices = vlm_devices(vlm)
    named = [name for name in engines if name != _AUTOMATIC]
    asking = [name for name in named if vlm.url and ENGINES.named(name).asks_servers]
    own = [name for name in named if name not in asking]
    off_ray = {"ray": None, "ray_address": None, "ray_wait": None}
    here = {"device": devices[0], "workers": None} | off_ray
    shared = {"url": None, "model": local_model or vlm.model}

    def way(name: str, engine: str, values: Mapping[str, Any]) -> Way:
        return Way(name, with_values(settings, {"vlm": {**values, "engine": engine}}))

    local = [way(LOCAL, _AUTOMATIC, here | shared), *(way(name, name, here | shared) for name in own)]
    in_workers = [(name, name) for name in own] or [(LOCAL, _AUTOMATIC)]
    if len(devices) > 1:
        local += [way(name, engine, shared | off_ray) for name, engine in in_workers]
    if vlm.on_ray:
        local += [way(f"{name} on Ray", engine, shared) for name, engine in in_workers]
    servers = [way(SERVER, name, here) for name in asking or [_AUTOMATIC]] if vlm.url else []
    return Ways([] if local_model == NO_MODEL else local, servers)


def needless(ways: Ways) -> list[str]:
    """A warning for each setting of the VLM that was given and has no effect in any of the ways."""
    each = [without_effect(settings, ["vlm"]) for _, settings in (*ways.local, *ways.servers)]
    return [warning for warning in each[0] if all(warning in others for others in each)]
