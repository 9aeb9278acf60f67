"""Writes files converted from other files. Whether one is up to date is decided by its content alone."""

from pathlib import Path

from icdsel.console import note
from icdsel.errors import UserError
from icdsel.store.backup import back_up
from icdsel.store.files import require_replaceable, write_bytes
from icdsel.store.fingerprints import fingerprint_of, has_fingerprint
from icdsel.store.slot import find_or_make


def refuse_own_conversion(target: Path, source: Path, error: type[UserError]) -> None:
    """Rejects a conversion of a file to itself, before any work.

    Raises:
        UserError: of the class `error`; `target` is `source`.
    """
    if source.is_file() and target.exists() and target.samefile(source):
        raise error(f"{target} is the file to be converted: name another one with --output")


def write_conversion(target: Path, content: bytes, source: Path, error: type[UserError], overwrite: bool) -> None:
    """Writes a converted file, unless it exists with the same content.

    Args:
        target: The file to write.
        content: Its content.
        source: The file that was converted.
        error: The class of the error to raise.
        overwrite: Rename a file with another content to a backup.

    Raises:
        UserError: of the class `error`; `target` has another content and `overwrite` is False.
    """
    fingerprint = fingerprint_of(content)

    def make() -> bool:
        require_replaceable(target)
        if target.exists() and not overwrite:
            raise error(
                f"{target} exists and is not the conversion of {source}: name another file with --output, or use "
                "--overwrite to rename it to a backup"
            )
        for backup in back_up(target):
            note(f"renamed the previous file to {backup}")
        write_bytes(target, content)
        return True

    find_or_make(target, f"conversion of {source}", lambda: has_fingerprint(target, fingerprint) or None, make)
