"""How settings are named on the command line, in variables and in file names, and how their defaults are described."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from icdsel.settings.presets import PRESETS, RECIPES, Recipe
from icdsel.settings.table import Table
from icdsel.settings.tables import TABLES

ENV_PREFIX = "ICDSEL_"
_STATED = re.compile(r"(.*\S)\s*\[(.*)\]", re.DOTALL)  # a default stated in brackets at the end of the help text
_LONGEST_DEFAULT = 30  # characters of a value that is quoted among the defaults of presets


def changed_settings(table: Table, default: Table, leave_out: Iterable[str] = ()) -> list[str]:
    """The settings of `table` that differ from `default`, as short parts of a file name such as `grpo-epochs-3`.

    Those of the machine are left out, as are those in `leave_out`.
    """
    parts, skipped = [], {*table.MACHINE, *leave_out}
    for name in type(table).model_fields:
        value = getattr(table, name)
        if name in skipped or value == getattr(default, name):
            continue
        text = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(text if value else f"no-{text}")
        else:
            shown = value.stem if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{text}-{shown}")
    return parts


def sampler_file_name(sampler: str) -> str:
    """A sampler's name in file names: `TextSimSampler` for `text-sim`."""
    return "".join(part.capitalize() for part in sampler.split("-")) + "Sampler"


def flag(name: str, field: FieldInfo) -> str:
    """The command-line flag of a setting: its name with dashes, unless the field names another."""
    extra = field.json_schema_extra
    named = extra.get("flag") if isinstance(extra, dict) else None
    return str(named) if named else "--" + name.replace("_", "-")


def every_setting() -> Iterator[tuple[str, str, FieldInfo]]:
    """(table, name, field) of every setting, in order."""
    for table, model in TABLES.items():
        for name, field in model.model_fields.items():
            yield table, name, field


def variable_names() -> set[str]:
    """`ICDSEL_<TABLE>_<NAME>` of every setting."""
    return {f"{ENV_PREFIX}{table}_{name}".upper() for table, name, _ in every_setting()}


def help_text(field: FieldInfo) -> str:
    """What a setting means, without its default."""
    text = " ".join((field.description or "").split())
    stated = _STATED.fullmatch(text)
    return stated[1] if stated else text


def default_text(table: str, name: str) -> str:
    """A setting's default in words, such as `1; 3 with preset lever-plus`; empty if there is nothing to say."""
    field = TABLES[table].model_fields[name]
    stated = _STATED.fullmatch(" ".join((field.description or "").split()))
    base = stated[2] if stated else "" if field.default_factory else _shown(field.default)
    parts = [base]
    if table == "train" and name in Recipe.model_fields:
        values = {recipe: _shown(getattr(rules, name)) for recipe, rules in RECIPES.items()}
        base = values.pop(TABLES["train"].model_fields["recipe"].default)
        parts = [base, *(f"{value} with recipe {recipe}" for recipe, value in values.items() if value != base)]
    for preset, tables in PRESETS.items():
        if name in tables.get(table, {}):
            value = _shown(tables[table][name])
            parts.append(f"{value if len(value) <= _LONGEST_DEFAULT else 'another'} with preset {preset}")
    return "; ".join(part for part in parts if part)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return (", " if any(isinstance(one, str) for one in value) else ",").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"
