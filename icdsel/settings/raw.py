"""Raw settings: the values that were given, by flags or callers, by `ICDSEL_*` variables and in `icdsel.toml`."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from icdsel.errors import SettingsError
from icdsel.settings.names import ENV_PREFIX, variable_names
from icdsel.settings.table import Table
from icdsel.settings.tables import TABLES
from icdsel.store.reading import read_whole

CONFIG_FILE = Path("icdsel.toml")
_LARGEST_FILE = 2**20  # bytes

Given = Mapping[str, Mapping[str, Any]]
"""Values by table and name, as flags, files or callers give them; None counts as not given."""


class RawSettings(BaseModel):
    """The values that were given, each valid by itself; None where nothing was given.

    Its fields are the tables of `TABLES` with every value optional.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def raw_settings(given: Given) -> RawSettings:
    """Raw settings with these values alone.

    Raises:
        pydantic.ValidationError: A setting is unknown, or a value is not allowed.
    """
    return _Given(**_without_none(given))


def read_sources(given: Given) -> RawSettings:
    """Raw settings from `given`, else from variables, else from `icdsel.toml` in the working directory.

    Raises:
        pydantic.ValidationError: A setting is unknown, or a value is not allowed.
        SettingsError: The file cannot be read.
    """
    try:
        if not CONFIG_FILE.is_file() and os.path.lexists(CONFIG_FILE):
            raise SettingsError(f"{CONFIG_FILE} cannot be read: it is not a file")
        return _FromSources(**_without_none(given))
    except ValidationError:
        raise
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{CONFIG_FILE} is not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{CONFIG_FILE} is not UTF-8: byte {error.start}") from None
    except OSError as error:
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error}") from None


class _KnownVariables(EnvSettingsSource):
    """The `ICDSEL_*` variables that are settings; others are warned about (`stray_variables`), not rejected."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        known = variable_names()
        return {name: value for name, value in super()._load_env_vars().items() if name.upper() in known}


class _ConfigFile(TomlConfigSettingsSource):
    """`icdsel.toml`, with or without the byte order mark that some editors write."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return tomllib.loads(read_whole(Path(file_path), _LARGEST_FILE).decode("utf-8-sig"))


class _Sources(RawSettings, BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        enable_decoding=False,  # a variable has the same text as a flag, not JSON
        toml_file=CONFIG_FILE,
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _KnownVariables(settings_cls), _ConfigFile(settings_cls)


def _optional(table: type[Table]) -> type[Table]:
    """The same table with every value optional."""
    fields: dict[str, Any] = {}
    for name, field in table.model_fields.items():
        kind: Any = field.annotation
        for constraint in field.metadata:
            kind = Annotated[kind, constraint]
        fields[name] = (kind | None, None)
    optional = create_model(f"Raw{table.__name__}", __base__=Table, **fields)
    optional.MAY_BE_EMPTY = table.MAY_BE_EMPTY
    return optional


_FIELDS: dict[str, Any] = {name: (kind, kind()) for name, kind in ((name, _optional(TABLES[name])) for name in TABLES)}
_Given = create_model("RawSettings", __base__=RawSettings, **_FIELDS)
_FromSources = create_model("RawSettings", __base__=_Sources, **_FIELDS)


def _without_none(given: Given) -> dict[str, Any]:
    return {
        table: {name: value for name, value in values.items() if value is not None}
        if isinstance(values, Mapping)
        else values
        for table, values in given.items()
    }
