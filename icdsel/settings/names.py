"""How settings are called on the command line, in variables and in names of files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from icdsel.settings.tables import TABLES, Table

ENV_PREFIX = "ICDSEL_"


def unusual(table: Table, default: Table, leave_out: Iterable[str] = ()) -> list[str]:
    """What of `table` differs from `default`, each in a few letters that a file name can hold."""
    parts = []
    for name in type(table).model_fields:
        value = getattr(table, name)
        if name in leave_out or value == getattr(default, name):
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
