"""The registries whose names settings hold: for `--help`, and to reject unknown names before any work."""

from typing import Any

from pydantic.fields import FieldInfo

from icdsel.errors import SettingsError
from icdsel.registry import Registry
from icdsel.retrieval.samplers import SAMPLERS
from icdsel.selection import SELECTORS
from icdsel.settings.loading import Settings
from icdsel.settings.names import every_setting, flag

REGISTRIES: dict[str, Registry[Any]] = {registry.kind: registry for registry in (SAMPLERS, SELECTORS)}
"""The registry of every kind, by the kind's name."""


def choices(field: FieldInfo) -> list[str]:
    """The names that a setting takes; empty for a setting that is not a choice."""
    registry = _registry(field)
    return [] if registry is None else list(registry)


def require_known(settings: Settings) -> None:
    """Checks the names of all choices.

    Raises:
        SettingsError: one of them is unknown; the message lists those that exist.
    """
    for table, name, field in every_setting():
        if registry := _registry(field):
            value = getattr(getattr(settings, table), name)
            for one in value if isinstance(value, tuple) else (value,):
                try:
                    registry.named(one)
                except SettingsError as error:
                    raise SettingsError(f"{flag(name, field)} ({table}.{name}): {error}") from None


def _registry(field: FieldInfo) -> Registry[Any] | None:
    extra = field.json_schema_extra
    return REGISTRIES.get(str(extra.get("choice"))) if isinstance(extra, dict) else None
