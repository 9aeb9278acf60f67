"""The place of a result: the only module that decides in which order the files of a result are written.

A result is a file (`Slot`: RL data, predictions) or a folder (`FolderSlot`: a run). Beside or inside it there are a
metadata file, a log, and, while it is unfinished, what an interrupted process resumes from: a journal, `resume.pt`.

The order, which is safe whenever the process is killed or the power fails:

1. `peek` looks, without a lock and without writing. A result with other inputs is rejected, with every difference. A
   finished one with the same inputs is used as it is: it may be in a read-only folder, and have many readers.
2. `open` takes the lock. The second process to do so fails, with the name of the first.
3. It looks again: the previous owner of the lock may have finished the result meanwhile.
4. `begin` renames a result with other inputs to a backup (`--overwrite`). Metadata first: data without metadata are
   rejected, metadata without data are ignored, so the remains of an interrupted backup are never mistaken for a result.
5. Temporary files of killed processes are removed. Only now, because without the lock they may still be in use.
6. The metadata are written, before the first line of the journal: a journal whose inputs are unknown is worthless.
7. The log is opened.
8. The work is done, unit by unit; each is appended to the journal, and synced, before the next one begins.
9. `commit` updates the metadata with the fields that show whether the result is complete.
10. It renames the journal to the result, or replaces the result atomically. A result that is visible is therefore
    complete. A run is complete when its metadata have the number `finished`, written after the last checkpoint.
11. It removes what only an unfinished result needs. The lock is released; its file stays.

After an interruption all steps are repeated, except for the units in the journal.

Results that any process can create, because their name or content shows all of their inputs (embeddings, the bundled
world, conversions), have neither metadata nor logs: `find_or_make`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from icdsel.console import note
from icdsel.errors import RunError, UserError
from icdsel.store.backup import back_up
from icdsel.store.files import leftovers, remove_leftovers, write_bytes
from icdsel.store.journal import Journal, journal_of
from icdsel.store.lock import locked
from icdsel.store.metadata import Inputs, Metadata, differences, environment, read_metadata
from icdsel.store.run_log import logged_to

_Found = TypeVar("_Found")


class State(Enum):
    """How far a result is; a result with other inputs counts as missing."""

    MISSING = "missing"
    STARTED = "started"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Slot:
    """The place of a result that is a file, `NAME.SUFFIX`.

    Beside it there are `NAME.meta.json` and `NAME.log`, and `NAME.SUFFIX.part`, its journal.

    Attributes:
        path: The result.
        inputs: Everything that decides its content.
        is_complete: Whether a result with these inputs is complete.
        error: The class of the error to raise if it cannot be used or written.
        remedy: What the user can do about a result with other inputs.
    """

    path: Path
    inputs: Inputs
    is_complete: Callable[[], bool]
    error: type[UserError]
    remedy: str

    @property
    def name(self) -> str:
        """What the result is called in messages."""
        return str(self.path)

    @property
    def metadata_file(self) -> Path:
        """Where its metadata are."""
        return self.path.with_suffix(".meta.json")

    @property
    def log_file(self) -> Path:
        """Where its log is."""
        return self.path.with_suffix(".log")

    @property
    def unfinished_file(self) -> Path:
        """What an interrupted process resumes from."""
        return journal_of(self.path)

    def journal(self) -> Journal:
        """Its journal."""
        return Journal(self.unfinished_file, self.error)

    @property
    def files(self) -> Sequence[Path]:
        """All files of a backup, in the order in which they are renamed."""
        return self.metadata_file, self.log_file, self.path, self.unfinished_file

    def exists(self) -> bool:
        """Whether a result exists, complete or not, whatever its inputs."""
        return self.path.exists() or self.unfinished_file.exists()

    def leftovers(self) -> list[Path]:
        """Temporary files of processes that were killed."""
        return leftovers(self.path) + leftovers(self.metadata_file)

    def peek(self, overwrite: bool = False) -> State:
        """The state of the result. Writes nothing and takes no lock.

        Args:
            overwrite: Treat a result with other inputs as missing, because `begin` would rename it to a backup.

        Raises:
            UserError: of the class `error`; a result with other or unknown inputs exists, and `overwrite` is False.
        """
        if not self.exists():
            return State.MISSING
        try:
            self._require_same_inputs()
        except UserError:
            if overwrite:
                return State.MISSING
            raise
        return State.COMPLETE if self.is_complete() else State.STARTED

    @contextmanager
    def open(self, overwrite: bool = False) -> Iterator["Result"]:
        """The result, locked for this process unless it is complete.

        Raises:
            UserError: of the class `error`; as for `peek`, or another process is writing it.
        """
        if self.peek(overwrite) is State.COMPLETE and not (self.unfinished_file.exists() or self.leftovers()):
            yield Result(self, State.COMPLETE, ExitStack())
            return
        with locked(self.path, self.name, self.error), ExitStack() as log:
            state = self.peek(overwrite)
            if state is State.COMPLETE:  # the process that completed it may have been killed before this
                self.clean_up()
            yield Result(self, state, log)

    def finish(self, journal: Journal) -> None:
        """Turns the journal of the finished work into the result."""
        journal.rename(self.path)

    def clean_up(self) -> None:
        """Removes what a complete result does not need, but no journal: the caller may still need its other lines."""
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Removes temporary files of processes that were killed."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)

    def _require_same_inputs(self) -> None:
        try:
            inputs = read_metadata(self.metadata_file).inputs
        except RunError as problem:
            raise self.error(f"the inputs of {self.name} are unknown: {problem}\n{self.remedy}") from None
        if different := differences(inputs, self.inputs):
            lines = "".join(f"\n  {difference}" for difference in different)
            raise self.error(f"{self.name} was created with different settings:{lines}\n{self.remedy}")


@dataclass(frozen=True)
class FolderSlot(Slot):
    """The place of a result that is a folder; it contains its metadata, log and so on.

    Attributes:
        metadata_name, log_name, unfinished_name: The names of these files in it.
    """

    metadata_name: str
    log_name: str
    unfinished_name: str

    @property
    def name(self) -> str:
        """What the result is called in messages."""
        return f"run {self.path.name}"

    @property
    def metadata_file(self) -> Path:
        """Where its metadata are."""
        return self.path / self.metadata_name

    @property
    def log_file(self) -> Path:
        """Where its log is."""
        return self.path / self.log_name

    @property
    def unfinished_file(self) -> Path:
        """What an interrupted process resumes from."""
        return self.path / self.unfinished_name

    @property
    def files(self) -> Sequence[Path]:
        """All files of a backup."""
        return (self.path,)

    def exists(self) -> bool:
        """Whether a result exists; False if a process was killed while it wrote the first file."""
        return self.path.exists() and (not self.path.is_dir() or any(f.name[0] != "." for f in self.path.iterdir()))

    def leftovers(self) -> list[Path]:
        """Temporary files of processes that were killed; not those of conversions, which have their own locks."""
        return [path for path in self.path.glob(".*.part") if ".ckpt." not in path.name]

    def finish(self, journal: Journal) -> None:  # noqa: ARG002 - the work has written the files of a folder itself
        """Removes what is not part of the result."""
        self.clean_up()

    def clean_up(self) -> None:
        """Removes what a complete result does not need; the file from which work resumes goes last."""
        self.remove_leftovers()
        self.unfinished_file.unlink(missing_ok=True)


class Result:
    """A result that is being created, or is complete.

    Attributes:
        slot: Its place.
        state: Its state when it was opened.
        metadata: Those of an earlier process, then those that `begin` and `commit` write; None if there are none.
        journal: The journal of a file.
    """

    def __init__(self, slot: Slot, state: State, log: ExitStack) -> None:
        self.slot, self.state = slot, state
        self.metadata = None if state is State.MISSING else read_metadata(slot.metadata_file)
        self.journal = slot.journal()
        self._log = log

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do; otherwise the caller calls `begin`, does the work, and calls `commit`."""
        return self.state is State.COMPLETE

    def begin(self, settings: Mapping[str, Any], device: str, threads: int, **metadata: Any) -> None:
        """Prepares the place for the work, and starts the log.

        Args:
            settings: All settings by table.
            device: What the work is done on.
            threads: How many threads compute on the CPU.
            metadata: Further fields of `Metadata`.
        """
        if self.state is State.MISSING and self.slot.exists():  # it has other inputs
            for backup in back_up(*self.slot.files):
                note(f"renamed the previous result to {backup}")
        self.slot.remove_leftovers()
        here = environment(device, threads)
        if self.metadata:  # a resumed result keeps the time of its first start
            here["written"] = self.metadata.environment.get("written", here["written"])
        self.metadata = Metadata(inputs=self.slot.inputs, settings=settings, environment=here, **metadata)
        self.metadata.write(self.slot.metadata_file)
        self._log.enter_context(logged_to(self.slot.log_file, here))

    def commit(self, content: bytes | None = None, **metadata: Any) -> None:
        """Makes the result complete.

        Args:
            content: The content of a file whose journal is removed by the caller. None makes the journal the file; a
                folder has all of its files by now.
            metadata: Fields of `Metadata` that are known only at the end, if they are not None.
        """
        known = {name: value for name, value in metadata.items() if value is not None}
        if known and self.metadata:
            self.metadata = self.metadata.updated(**known)
            self.metadata.write(self.slot.metadata_file)
        if content is None:
            self.slot.finish(self.journal)
        else:
            write_bytes(self.slot.path, content)


def find_or_make(path: Path, name: str, find: Callable[[], _Found | None], make: Callable[[], _Found]) -> _Found:
    """Returns the result of `find`, else of `make`. If several processes call this, one makes it and the others wait.

    Args:
        path: The file or folder that `make` writes.
        name: What it is called in messages.
        find: Returns None if it does not exist.
        make: Writes it atomically.
    """
    if (found := find()) is None:
        with locked(path, name):
            if (found := find()) is None:
                remove_leftovers(path)
                found = make()
    return found
