"""Options made from settings: a flag for every setting of a command, and its mistakes told plainly. Loads no torch."""

import functools
import inspect
import signal
import threading
import typing
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from icdsel.cli.interruption import KEPT, raised
from icdsel.console import err, show_messages, tell_error, warn
from icdsel.errors import CallsError, UserError, is_mistake, lacks_memory, of_system
from icdsel.settings.hints import stray_variables, without_effect
from icdsel.settings.loading import load_settings
from icdsel.settings.names import flag
from icdsel.settings.tables import TABLES
from icdsel.store.files import require_replaceable
from icdsel.store.run_log import history

Command = Callable[..., None]


def with_settings(*tables: str, leave_out: Iterable[str] = ()) -> Callable[[Command], Command]:
    """Gives a command a flag for every setting of `tables`; it is called with the resolved `settings`.

    A flag that is not given is None and leaves the setting to `ICDSEL_*`, `icdsel.toml` or its default.
    """
    skipped = set(leave_out)
    fields = {
        f"{table}__{name}": field
        for table in tables
        for name, field in TABLES[table].model_fields.items()
        if f"{table}.{name}" not in skipped
    }

    def wrap(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]

        @functools.wraps(command)
        @_told_plainly
        def run(**values: Any) -> None:
            given: dict[str, dict[str, Any]] = {}
            for key in fields:
                table, name = key.split("__")
                given.setdefault(table, {})[name] = values.pop(key)
            settings = load_settings(given)
            for warning in (*stray_variables(), *without_effect(settings, tables)):
                warn(warning)
            command(settings=settings, **values)

        for parameter in own:
            _name_paths(parameter)
        added = [_option(key, field) for key, field in fields.items()]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return wrap


def _told_plainly(command: Command) -> Command:
    """A user's mistake becomes one message and exit code 2, an interruption 130 (Ctrl-C) or 143 (SIGTERM).

    It is 1 where the machine or the VLM fails.
    """

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> None:
        show_messages()
        try:
            main_thread = threading.current_thread() is threading.main_thread()  # which alone may handle signals
            with raised() if main_thread else nullcontext(), history():
                command(*args, **values)
        except UserError as error:
            tell_error(str(error))
            raise typer.Exit(1 if isinstance(error, CallsError) else 2) from None
        except KeyboardInterrupt as stopped:
            err.print(f"interrupted; {KEPT}")
            raise typer.Exit(128 + (stopped.args or (signal.SIGINT,))[0]) from None
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            less = "Ask for less (--batch-size, --hidden-dim, --tower; --batch-tokens of the VLM), or free some."
            tell_error(f"the memory does not suffice: {reason}. {less} {KEPT.capitalize()}")
            raise typer.Exit(1) from None
        except OSError as error:
            mistaken = is_mistake(error)
            with suppress(OSError):  # it may be stderr that cannot be written
                tell_error(of_system(error) if mistaken else f"{of_system(error)} {KEPT.capitalize()}")
            raise typer.Exit(2 if mistaken else 1) from None

    return run


def written_file(text: str) -> Path:
    """The `parser` of an option that names a file to write: what may not be replaced is told before any work."""
    path = _named_path(text)
    try:
        require_replaceable(path)
    except OSError as error:
        raise typer.BadParameter(of_system(error)) from None
    return path


def _named_path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("it is empty: name a file or folder")
    return Path(text)


def _name_paths(parameter: inspect.Parameter) -> None:
    """Has a parameter that takes paths refuse empty ones, which Python takes for the working directory."""
    if _kinds(parameter.annotation) == [Path]:
        for told in parameter.annotation.__metadata__:
            told.parser = told.parser or _named_path
            if isinstance(told, OptionInfo):
                told.metavar = "PATH"


def _option(key: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a setting: name, type, default and help all come from its field."""
    table, name = key.split("__")
    spelled = flag(name, field)
    kinds = _kinds(field.annotation)
    is_switch = bool in kinds
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = "" if default is None else f" [default: {str(default).lower() if is_switch else default}]"
    if default == "":
        shown = " [default: empty]"
    declared = f"{spelled}/--no-{spelled[2:]}" if is_switch else spelled
    option = typer.Option(
        declared,
        help=f"{field.description}{shown}".replace("\n", " "),
        metavar=None if is_switch else metavar(field),
        rich_help_panel=f"Settings: {table}",
        show_default=False,
    )
    annotation = Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The types in an annotation, unions and Annotated taken apart."""
    if typing.get_origin(annotation) in (tuple, Literal) or not typing.get_args(annotation):
        return [annotation]
    if typing.get_origin(annotation) is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return [kind for part in typing.get_args(annotation) if part is not type(None) for kind in _kinds(part)]


def metavar(field: FieldInfo) -> str:
    """What values a setting takes, in short: `INT`, `TEXT`, or the choices."""
    return _metavar(_kinds(field.annotation))


def _metavar(kinds: list[Any]) -> str:
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"{_metavar(_kinds(typing.get_args(kind)[0]))},…"
    return {bool: "true|false", int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")


def given_flags(context: typer.Context) -> dict[str, str]:
    """What stood on the command line: parameters by the flag (or name, of an argument) as it is spelled."""
    spelled = {str(parameter.name): parameter.opts[0] for parameter in context.command.params}
    return {
        words: name
        for name, words in spelled.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
