"""Whether a result stands already, made of the same things; what was made of others is refused, or moved aside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icdsel.console import note
from icdsel.errors import RunError, UserError
from icdsel.store.files import move, remove_leftovers, require_replaceable, write_bytes
from icdsel.store.fingerprints import fingerprint_of, has_fingerprint
from icdsel.store.lock import waiting
from icdsel.store.metadata import Identity, differences, read_metadata

ASIDE = ".old-"
"""What the name of something that was moved aside has before its number."""


@dataclass(frozen=True)
class Result:
    """Something that icdsel makes, and what it is to be made of.

    Attributes:
        name: What it is called in messages.
        paths: Where it lies, finished or not: files, or a folder.
        metadata_file: What says how it was made; it may lie in the folder.
        inputs: Everything that decides its content now.
        error: What is raised where another one is in its place.
        remedy: What a user can do then.
    """

    name: str
    paths: tuple[Path, ...]
    metadata_file: Path
    inputs: Identity
    error: type[UserError]
    remedy: str

    def stands(self, overwrite: bool) -> bool:
        """Whether it is there, whole or in part; nothing is moved.

        Args:
            overwrite: Take for nothing what `claim` would move aside.

        Raises:
            UserError: of the class `error`; what is there was made of other things, each of which is named, or that
                cannot be told, and `overwrite` is False.
        """
        if not any(map(_is_there, self.paths)):
            return False
        try:
            self._require_same()
        except UserError:
            if not overwrite:
                raise
            return False
        return True

    def claim(self, overwrite: bool, along: Sequence[Path] = ()) -> bool:
        """Whether it is there, whole or in part; what stands in its place is moved aside where `overwrite` says so.

        Args:
            overwrite: Move it, its side file and what goes `along`.
            along: What belongs to the result and would be nothing without it, such as a log.

        Raises:
            UserError: As for `stands`.
        """
        if not any(map(_is_there, self.paths)):
            return False
        if self.stands(overwrite):
            return True
        # The side file goes first: without it nothing is taken for data of other settings, should this be cut short.
        in_it = self.metadata_file.parent in self.paths
        for moved in move_aside(*(self.paths if in_it else (self.metadata_file, *along, *self.paths))):
            note(f"moved what was there to {moved}")
        return False

    def _require_same(self) -> None:
        try:
            inputs = read_metadata(self.metadata_file)["identity"]
        except RunError as problem:
            raise self.error(f"what {self.name} was made of cannot be told: {problem}\n{self.remedy}") from None
        if told := differences(inputs, self.inputs):
            listed = "".join(f"\n  {difference}" for difference in told)
            raise self.error(f"{self.name} was made under other settings:{listed}\n{self.remedy}")


def refuse_own_conversion(target: Path, source: Path, error: type[UserError]) -> None:
    """Refuses to convert a file in its own place, before any work.

    Raises:
        UserError: of the class `error`; `target` is `source`.
    """
    if source.is_file() and target.exists() and target.samefile(source):
        raise error(f"{target} is the file to be converted: name another one with --output")


def write_conversion(target: Path, content: bytes, source: Path, error: type[UserError], overwrite: bool) -> None:
    """Writes what is made of a file and nothing else; a result of its own that stands in its place is not lost.

    Args:
        target: The file to write; one that holds `content` already stays.
        content: What it is to hold.
        source: The file that is converted.
        error: What is raised.
        overwrite: Move aside what else stands there.

    Raises:
        UserError: of the class `error`; `target` holds something else and `overwrite` is False.
    """
    with waiting(target, f"conversion of {source}"):
        remove_leftovers(target)
        if target.exists():
            require_replaceable(target)
            if has_fingerprint(target, fingerprint_of(content)):
                return
            if not overwrite:
                raise error(
                    f"{target} holds something else than the conversion of {source}: name another file with --output, "
                    "or use --overwrite to move it aside"
                )
            for moved in move_aside(target):
                note(f"moved what was there to {moved}")
        write_bytes(target, content)


def _is_there(path: Path) -> bool:
    """Whether something is at `path`; a folder is nothing where a killed process came no further than hidden files."""
    return any(inside.name[0] != "." for inside in path.iterdir()) if path.is_dir() else path.exists()


def move_aside(*paths: Path) -> list[Path]:
    """Renames what exists of `paths` to `NAME.old-1`, `.old-2`, …, one number for all; returns the new names.

    What a move that was cut short left behind goes where the rest of it is.
    """
    existing = [path for path in paths if path.exists()]
    number = 1
    while any(path.with_name(f"{path.name}{ASIDE}{number}").exists() for path in existing):
        number += 1
    moved = []
    for path in existing:
        if path.exists():  # a side file has gone with its folder
            moved.append(path.with_name(f"{path.name}{ASIDE}{number}"))
            move(path, moved[-1])
    return moved
