"""Commands as a person would type them: the flags that give certain settings."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from icdsel.errors import SettingsError
from icdsel.settings.loading import Settings, load_settings
from icdsel.settings.names import flag
from icdsel.settings.presets import TINY_VLM, WORLD
from icdsel.settings.tables import TABLES, DataSettings, VlmSettings


def flags(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> list[str]:
    """The flags that give the settings of `tables`, without those that are so anyway."""
    usual = settings.usual()
    skipped = {*VlmSettings.MACHINE, *leave_out}  # which nobody else's machine needs
    words: list[str] = []
    for table in tables:
        for name, field in TABLES[table].model_fields.items():
            value: Any = getattr(getattr(settings, table), name)
            # What the usual settings depend on is never unusual among them.
            plain = {"dataset": WORLD, "preset": DataSettings().preset}.get(name, getattr(usual[table], name))
            if name == "model":
                plain = TINY_VLM if settings.data.dataset == WORLD else None
            if name in skipped or value == plain or value is None:
                continue
            switch = flag(name, field)
            if isinstance(value, bool):
                words.append(switch if value else f"--no-{switch[2:]}")
            else:
                words += [switch, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def infer_command(settings: Mapping[str, Mapping[str, Any]], selectors: Iterable[str], shots: Iterable[int]) -> str:
    """The `icdsel infer` that answers the same queries in the same way by other selectors.

    It never trusts a model's code: the settings may be anybody's, and `infer` says what it needs.

    Args:
        settings: The resolved settings of an `infer`, by table, as its side file holds them.
        selectors: Who is to choose.
        shots: At which numbers of shots; none where they play no part.
    """
    words = ["icdsel", "infer"]
    try:
        asked = load_settings({table: values for table, values in settings.items() if table in TABLES})
        words += flags(asked, "data", "vlm", leave_out=["trust_remote_code"])
        words += flags(asked, "infer", leave_out=["selector", "shots", "random_seed"])
    except SettingsError:  # written by another version: what it has in common is in the side file for people to read
        pass
    counts = [str(count) for count in shots]
    words += ["--selector", ",".join(selectors), *(["--shots", ",".join(counts)] if counts else [])]
    return shlex.join(words)
