"""Backups: instead of being overwritten, a result is renamed to `NAME.old-1`, the next one to `NAME.old-2`."""

from pathlib import Path

from icdsel.store.files import move

BACKUP = ".old-"
"""Separates the name of a result from the number of its backup."""


def back_up(*paths: Path) -> list[Path]:
    """Renames those of `paths` that exist to `NAME.old-N`, with the same N for all; returns the new names.

    Called again after an interruption, it uses the number of the interrupted call for the remaining paths.
    """
    existing = [path for path in paths if path.exists()]
    number = 1
    while any(_backup(path, number).exists() for path in existing):
        number += 1
    for path in existing:
        move(path, _backup(path, number))
    return [_backup(path, number) for path in existing]


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}{BACKUP}{number}")
