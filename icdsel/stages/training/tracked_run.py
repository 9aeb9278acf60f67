"""A training as trackers know it: by its name, its settings, and an id that a resumed training keeps."""

import re
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from icdsel.console import warn
from icdsel.settings.loading import Settings
from icdsel.store.files import write_text
from icdsel.store.reading import read_whole
from icdsel.trackers import TRACKERS, Subject, Tracking, track

ID_FILE = "tracker-id.txt"


def tracked_run(settings: Settings, folder: Path) -> AbstractContextManager[Tracking]:
    """The trackers of the training in this folder.

    Raises:
        SettingsError: One cannot be started.
    """
    names = settings.train.trackers
    recorded, results = settings.model_dump(mode="json"), settings.dataset_dir
    subject = Subject("training", folder.name, results.name, folder, results, recorded, _id(folder, names))
    return track(names, subject)


def _id(folder: Path, trackers: Sequence[str]) -> str:
    """The id of the training in this folder; empty if no tracker needs one."""
    if not any(TRACKERS[name].needs_id for name in trackers):
        return ""
    path = folder / ID_FILE
    if path.exists():
        found = read_whole(path, 100).decode(errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{16}", found):
            return found
        warn(f"{path} is damaged: trackers show what follows as a training of its own")
    made = secrets.token_hex(8)
    write_text(path, f"{made}\n")
    return made
