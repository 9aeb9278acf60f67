"""Registries: objects of one kind (selectors, samplers, tasks, engines …), found by name."""

import difflib
from collections.abc import Iterable
from typing import Protocol, TypeVar

from icdsel.errors import SettingsError


class Named(Protocol):
    """An object with a name."""

    @property
    def name(self) -> str:
        """The name that users type."""


_Entry = TypeVar("_Entry", bound=Named)


class Registry(dict[str, _Entry]):
    """A dictionary of the entries of one kind, by name, in the order in which `--help` shows them.

    To add an entry, put an object into the dictionary: `SELECTORS.add(MySelector())`.

    Args:
        kind: What an entry is called in messages, such as "selector".
        entries: The initial entries.
    """

    def __init__(self, kind: str, entries: Iterable[_Entry] = ()) -> None:
        super().__init__({entry.name: entry for entry in entries})
        self.kind = kind

    def add(self, entry: _Entry) -> _Entry:
        """Adds an entry, or replaces the one of the same name; returns it."""
        self[entry.name] = entry
        return entry

    def named(self, name: str) -> _Entry:
        """The entry of this name.

        Raises:
            SettingsError: There is none; the message lists those that exist.
        """
        if name in self:
            return self[name]
        close = difflib.get_close_matches(name, self, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingsError(f"unknown {self.kind} {name!r}: {hint}choose one of {', '.join(self)}")
