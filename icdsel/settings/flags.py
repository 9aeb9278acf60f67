"""Writes settings as the command line that a user would type."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from icdsel.errors import SettingsError
from icdsel.records import Shots
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.names import flag
from icdsel.settings.presets import TINY_VLM, WORLD
from icdsel.settings.tables import TABLES, DataSettings
from icdsel.settings.worlds import is_world


def flags(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> list[str]:
    """The flags that result in these settings of `tables` on any machine; defaults are left out."""
    defaults = settings.defaults()
    # Settings that these defaults depend on, with their own defaults. The VLM is always named, except for the worlds.
    decisive = {
        "dataset": WORLD,
        "preset": DataSettings().preset,
        "model": TINY_VLM if is_world(settings.data.dataset) else None,
    }
    arguments: list[str] = []
    for table in tables:
        skipped = {*TABLES[table].MACHINE, *leave_out}
        for name, field in TABLES[table].model_fields.items():
            value: Any = getattr(getattr(settings, table), name)
            default = decisive.get(name, getattr(getattr(defaults, table), name))
            if name in skipped or value == default or value is None:
                continue
            arguments += _words(name, field, value)
    return arguments


def given_again(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> list[str]:
    """The flags of all settings of `tables` that were given, also of those that only concern this machine."""
    arguments: list[str] = []
    for table in tables:
        values = getattr(settings, table)
        for name, field in TABLES[table].model_fields.items():
            value: Any = getattr(values, name)
            if name in values.model_fields_set and name not in set(leave_out) and value not in (None, ()):
                arguments += _words(name, field, value)
    return arguments


def _words(name: str, field: FieldInfo, value: Any) -> list[str]:
    """A setting as a flag with its value."""
    switch = flag(name, field)
    if isinstance(value, bool):
        return [switch if value else f"--no-{switch[2:]}"]
    return [switch, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]


def infer_command(settings: Mapping[str, Mapping[str, Any]], selectors: Iterable[str], shots: Iterable[Shots]) -> str:
    """The `icdsel infer` that answers the same queries in the same way with other selectors.

    It never includes --trust-remote-code: the settings may be untrusted, and `infer` reports if it needs the flag.

    Args:
        settings: The resolved settings of an `infer`, by table, as its metadata file has them.
        selectors: The selectors to use.
        shots: The numbers of shots; empty if they do not matter.
    """
    arguments = ["icdsel", "infer"]
    try:
        recorded = settings_from({table: values for table, values in settings.items() if table in TABLES})
        arguments += flags(recorded, "data", "vlm", leave_out=["trust_remote_code"])
        arguments += flags(recorded, "infer", leave_out=["selector", "shots", "random_seed"])
    except SettingsError:  # written by another version: users can read its settings in the metadata file
        pass
    counts = [str(count) for count in shots]
    arguments += ["--selector", ",".join(selectors), *(["--shots", ",".join(counts)] if counts else [])]
    return shlex.join(arguments)
