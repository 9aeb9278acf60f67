"""The registries whose names settings hold: for `--help`, and to reject unknown names before any work.

A setting that is marked with `Choice("sampler")` takes the names of the registry whose kind is "sampler". To make
another setting such a choice, mark it (`icdsel.settings.tables`) and add its registry to `REGISTRIES`. An entry may
have an attribute `ignores`, a tuple of settings such as "reward.rel_weight": a warning is shown if one of them is
given together with the entry. Importing a registry must not import torch.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic.fields import FieldInfo

from icdsel.errors import SettingsError
from icdsel.policy.rewards import NORMALIZATIONS, REWARD_MODES
from icdsel.registry import Registry
from icdsel.retrieval.pool_rules import POOL_RULES
from icdsel.retrieval.samplers import SAMPLERS
from icdsel.selection import SELECTORS
from icdsel.settings import Settings
from icdsel.settings.names import every_setting, flag
from icdsel.settings.tables import TABLES
from icdsel.settings.values import choice_of
from icdsel.tasks import TASKS
from icdsel.tasks.cleaners import CLEANERS
from icdsel.trackers import TRACKERS
from icdsel.vlm.engines import ENGINES
from icdsel.vlm.prompts import LAYOUTS

REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry
    for registry in (
        TASKS,
        CLEANERS,
        SAMPLERS,
        POOL_RULES,
        SELECTORS,
        REWARD_MODES,
        NORMALIZATIONS,
        ENGINES,
        LAYOUTS,
        TRACKERS,
    )
}
"""The registry of every kind, by the kind's name."""


def choices(field: FieldInfo) -> list[str]:
    """The names that a setting takes now; empty for a setting that is not a choice."""
    mark = choice_of(field)
    return list(REGISTRIES[mark.kind]) if mark else []


def require_known(settings: Settings) -> None:
    """Checks the names of all choices.

    Raises:
        SettingsError: Some are unknown; a line for each, with the names that exist.
    """
    unknown = []
    for table, name, field, value in _chosen(settings):
        try:
            _registry(field).named(value)
        except SettingsError as error:
            unknown.append(f"{flag(name, field)} ({table}.{name}): {error}")
    if unknown:
        raise SettingsError("\n".join(unknown))


def ignored_settings(settings: Settings, tables: Iterable[str]) -> list[str]:
    """A warning for each setting of `tables` that was given and that a chosen entry ignores."""
    warnings = []
    for _, _, field, value in _chosen(settings):
        registry = _registry(field)
        for place in getattr(registry.named(value), "ignores", ()):
            table, name = place.split(".")
            if table in tables and name in getattr(settings, table).model_fields_set:
                spelled = flag(name, TABLES[table].model_fields[name])
                warnings.append(f"{spelled} has no effect with the {registry.kind} {value}")
    return warnings


def _chosen(settings: Settings) -> Iterator[tuple[str, str, FieldInfo, str]]:
    """(table, name, field, value) of every name that a choice holds."""
    for table, name, field in every_setting():
        if choice_of(field):
            value = getattr(getattr(settings, table), name)
            for one in value if isinstance(value, tuple) else (value,):
                yield table, name, field, one


def _registry(field: FieldInfo) -> Registry[Any]:
    mark = choice_of(field)
    assert mark is not None
    return REGISTRIES[mark.kind]
