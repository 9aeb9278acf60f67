"""Types of values that several settings share."""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Choice:
    """Marks a setting that holds names of one kind of thing, as in `Annotated[str, Choice("sampler")]`.

    The registry of the kind is defined in a layer above the settings, so its names are not checked here:
    `icdsel.cli.choices` finds the registry, lists the names in `--help`, and rejects unknown ones before any work.

    Attributes:
        kind: What messages call such a thing, and the `kind` of its registry.
    """

    kind: str


def choice_of(field: FieldInfo) -> Choice | None:
    """The mark of a setting that takes such a name, or several of them; None for any other setting."""
    annotated = [arg for arg in typing.get_args(field.annotation) if typing.get_origin(arg) is Annotated]
    marks = [*field.metadata, *(mark for arg in annotated for mark in arg.__metadata__)]
    return next((mark for mark in marks if isinstance(mark, Choice)), None)


def alias(names: Mapping[str, str]) -> BeforeValidator:
    """Replaces aliases of a value, in upper or lower case, by its name."""
    return BeforeValidator(lambda value: names.get(value.lower(), value) if isinstance(value, str) else value)


def _split(value: object) -> object:
    """`1,2,3` and `[1, 2, 3]`, both as text, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return list(value) if isinstance(value, tuple | set) else value


def require_text(value: object) -> None:
    """Rejects text without a visible character, as an unset variable of the shell leaves it (`--model "$MODEL"`).

    Raises:
        ValueError: The text is empty or blank.
    """
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is empty (is a variable of the shell not set?): give a value, or leave it out")


def path_of(text: str) -> Path:
    """The path that a user means: `~` and `~name` are home folders, wherever the text comes from.

    Shells expand them only at the start of a word, so not in `--results-dir=~/x`.

    Raises:
        ValueError: The text is empty or blank, or there is no such user.
    """
    require_text(text)  # pathlib treats an empty path as the working directory
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"no home folder is known for {Path(text).parts[0]}: write ./{text} for a file here") from None


_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def unescaped(text: str) -> str:
    r"""Text with `\n`, `\t` and `\\`, as people type them, replaced by a line break, a tab and a backslash."""
    return re.sub(r"\\[nt\\]", lambda typed: _ESCAPES[typed[0]], text)


def _expanded(value: object) -> object:
    """Text that may be a path, such as `~/models/mine` among names of models."""
    return str(path_of(value)) if isinstance(value, str) and value.startswith("~") else value


def _pairs(value: object) -> object:
    """`a=b,c=d` as text, a list of such parts, or a table of names, as a list of such parts."""
    return [f"{name}={column}" for name, column in value.items()] if isinstance(value, Mapping) else _split(value)


Separated = BeforeValidator(_split)
"""For tuples, which may also be given as text with commas."""
Place = Annotated[Path, BeforeValidator(_expanded)]
NameOrPlace = Annotated[str, BeforeValidator(_expanded)]
"""A name, or the path of a file or folder."""
Pairs = BeforeValidator(_pairs)
"""For tuples of `name=value`, which may also be given as text with commas, or in TOML as a table."""
PositivePenalty = Annotated[float, Field(gt=0)] | typing.Literal["model"]
PoolSize = Annotated[int, Field(ge=1)] | typing.Literal["all"]
Floats = Annotated[tuple[float, ...], Separated]
