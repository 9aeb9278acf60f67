"""Command-line options made from settings: a flag for every setting of a command. Does not import torch."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from icdsel.cli.choices import choices, ignored_settings, require_known
from icdsel.cli.exits import Command, with_exit_codes
from icdsel.cli.help import HelpAll
from icdsel.cli.interruption import KEPT
from icdsel.console import warn
from icdsel.errors import of_system
from icdsel.settings import load_settings, with_values
from icdsel.settings.hints import stray_variables, without_effect
from icdsel.settings.names import default_text, flag, help_text
from icdsel.settings.tables import TABLES
from icdsel.settings.values import path_of, require_text
from icdsel.settings.worlds import is_world
from icdsel.store.files import require_replaceable
from icdsel.vlm.engines import require_possible

_SEVERAL = ",…"  # ends the metavar of a setting that takes several values
_LONGEST_METAVAR = 14  # characters

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Rename results that were created with different settings to a backup.")
]

RlData = Annotated[
    list[Path] | None,
    typer.Option("--rl-data", help="RL data to train on, a file or hub:owner/name; several are merged."),
]


def with_settings(
    *tables: str,
    leave_out: Iterable[str] = (),
    hidden: Iterable[str] = (),
    shown: Iterable[str] = (),
    varied: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    kept: str = KEPT,
    asks_model: bool = True,
) -> Callable[[Command], Command]:
    """Gives a command a flag for every setting of `tables`, and calls it with the resolved `settings`.

    A flag that is not given is None and leaves the setting to `ICDSEL_*`, `icdsel.toml` or its default. A parameter
    whose type is a dataclass becomes the options of its fields.

    Args:
        tables: The tables of settings.
        leave_out: Settings without a flag, as "table.name".
        hidden: Tables whose flags `--help` does not show.
        shown: Settings of those whose flag it shows all the same, as "table.name".
        varied: Tables whose settings the command changes itself, so that it also warns of those without effect.
        defaults: The command's own defaults, by "table.name".
        kept: What an interruption leaves, for the message.
        asks_model: Whether servers are asked for their model if none is named.
    """
    final = [table for table in tables if table not in set(varied)]
    skipped, unseen, seen, own = set(leave_out), set(hidden), set(shown), dict(defaults or {})
    fields = [
        (table, name) for table in tables for name in TABLES[table].model_fields if f"{table}.{name}" not in skipped
    ]

    def wrap(command: Command) -> Command:
        declared = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        groups: dict[str, Any] = {p.name: p.annotation for p in declared if dataclasses.is_dataclass(p.annotation)}

        @functools.wraps(command)
        @functools.partial(with_exit_codes, kept=kept)
        def run(**values: Any) -> None:
            del values["help_all"]  # it ended the command if it was given
            given: dict[str, dict[str, Any]] = {}
            for table, name in fields:
                value = values.pop(f"{table}__{name}")
                given.setdefault(table, {})[name] = ",".join(value) if isinstance(value, list | tuple) else value
            settings = load_settings(given)
            for place, value in own.items():
                table, name = place.split(".")
                if name not in getattr(settings, table).model_fields_set:
                    settings = with_values(settings, {table: {name: value}})
            require_known(settings)
            if not is_world(settings.data.dataset):
                from icdsel.data.implied_task import with_implied_task

                settings = with_implied_task(settings)
            if settings.vlm.url:
                from icdsel.vlm.server.naming import with_served_model

                if "vlm" in final:
                    require_possible(settings.vlm)
                settings = with_served_model(settings) if asks_model else settings
            for warning in (*stray_variables(), *without_effect(settings, final), *ignored_settings(settings, final)):
                warn(warning)
            for group, kind in groups.items():
                values[group] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            command(settings=settings, **values)

        parameters = []
        for parameter in declared:
            flat = _fields(parameter.annotation) if parameter.name in groups else [parameter]
            parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in flat]
        for parameter in parameters:
            _require_values(parameter)
        for table, name in fields:
            place = f"{table}.{name}"
            parameters.append(_option(table, name, table in unseen and place not in seen, own.get(place)))
        parameters.append(
            inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll)
        )
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return wrap


def written_file(text: str) -> Path:
    """The `parser` of an option that names a file to write: rejects what may not be replaced before any work."""
    path = _named_path(text)
    try:
        require_replaceable(path)
    except OSError as error:
        raise typer.BadParameter(of_system(error)) from None
    return path


def _named_path(text: str) -> Path:
    try:
        return path_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _text(text: str) -> str:
    try:
        require_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def _fields(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters."""
    kinds = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=kinds[f.name])
        for f in dataclasses.fields(group)
    ]


def _require_values(parameter: inspect.Parameter) -> None:
    """Makes a parameter that takes text or paths reject empty ones, and expands `~` in paths.

    That of a number is shown as such, without its bounds, which would take half of a narrow terminal.
    """
    for kind, parser, metavar in ((Path, _named_path, "PATH"), (str, _text, "TEXT"), (int, None, "INT")):
        if _kinds(parameter.annotation) == [kind]:
            for info in parameter.annotation.__metadata__:
                info.parser = info.parser or parser
                if isinstance(info, OptionInfo):
                    info.metavar = info.metavar or metavar


def _option(table: str, name: str, hidden: bool, own: Any) -> inspect.Parameter:
    """The option of a setting: name, type, default and help all come from its field. `own` is the command's default."""
    field = TABLES[table].model_fields[name]
    spelled, default = flag(name, field), str(own or default_text(table, name))
    is_switch = bool in _kinds(field.annotation)
    is_list = typing.get_origin(_kinds(field.annotation)[0]) is tuple  # which may also be given one by one
    values, names = _values(field)
    option = typer.Option(
        f"{spelled}/--no-{spelled[2:]}" if is_switch else spelled,
        help=help_text(field) + names + (f" [default: {default}]" if default else ""),
        metavar=None if is_switch else values,
        rich_help_panel=f"Settings: {table}",
        show_default=False,
        hidden=hidden,
        parser=_text if is_list else None,
    )
    kind: Any = bool if is_switch else list[str] if is_list else str
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(f"{table}__{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The types in an annotation, unions and Annotated taken apart."""
    if typing.get_origin(annotation) in (tuple, Literal) or not typing.get_args(annotation):
        return [annotation]
    if typing.get_origin(annotation) is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return [kind for part in typing.get_args(annotation) if part is not type(None) for kind in _kinds(part)]


def _values(field: FieldInfo) -> tuple[str, str]:
    """A setting's metavar, and what its help adds to it: the names that would be cut in a narrow column."""
    values = metavar(field)
    names = values.removesuffix(_SEVERAL)
    if len(values) <= _LONGEST_METAVAR or "|" not in names:
        return values, ""
    return f"NAME{_SEVERAL if values != names else ''}", f" Names: {names.replace('|', ', ')}."


def metavar(field: FieldInfo) -> str:
    """The values that a setting takes, in short: `INT`, `TEXT`, or the choices."""
    kinds = _kinds(field.annotation)
    if typing.get_origin(kinds[0]) is tuple:
        kinds = _kinds(typing.get_args(kinds[0])[0])
        return f"{'|'.join(choices(field) or map(_type_name, kinds))}{_SEVERAL}"
    return "|".join(choices(field) or map(_type_name, kinds))


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return {bool: "true|false", int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")


def given_flags(context: typer.Context) -> dict[str, str]:
    """The parameters given on the command line, by the flag (or an argument's name) as it is spelled."""
    spelled = {str(parameter.name): parameter.opts[0] for parameter in context.command.params}
    return {
        shown: name
        for name, shown in spelled.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
