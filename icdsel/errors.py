"""Errors that a user can cause: one class per kind of mistake, with the remedy in the message."""

import errno
import os
from collections.abc import Callable

_LONGEST = 3000  # characters


class UserError(Exception):
    """The base class; the command line prints the message alone, and treats every other exception as a bug.

    A long message (it may quote a file) is shortened in its middle, as the remedy is at its end.
    """

    def __str__(self) -> str:
        message = super().__str__()
        return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or holds something other than the requested selector."""


class BundleError(UserError):
    """A bundle is missing, damaged, or does not fit what it is used with."""


class HubError(BundleError):
    """The hub cannot be reached, or fails; the user's input is valid."""


class SettingsError(UserError):
    """A setting is unknown or its value is not allowed."""


class DataError(UserError):
    """A dataset is missing or damaged, or lacks what was requested."""


class RlDataError(UserError):
    """RL data are missing, damaged, empty, or were created with different settings."""


class NoSignalError(RlDataError):
    """Nothing can be learnt from RL data: the pointers of a query earned the same reward. The user's input is valid."""


class RunError(UserError):
    """A run or its results are missing, or were created with different settings."""


class VlmError(UserError):
    """A vision-language model cannot be found or used."""


class CallsError(VlmError):
    """Too many calls of a vision-language model fail or hang; the user's input is valid."""


_FILE_IN_THE_WAY = "A file is where a folder should be: name another place (--results-dir, --data-dir, --output)."
_NO_ROOM = "Make room, or write elsewhere (--results-dir, --output)."
_NO_RIGHTS = "Change its permissions, or name another place (--results-dir, --output)."
_MISTAKES = {
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EISDIR: "Name a file in it.",
    errno.ENAMETOOLONG: "Use shorter names: most file systems allow 255 bytes for each.",
}
_REMEDIES = _MISTAKES | {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EROFS: "Write elsewhere (--results-dir, --output).",
    errno.EACCES: _NO_RIGHTS,
    errno.EPERM: _NO_RIGHTS,
}


def of_system(error: OSError) -> str:
    """A message for an error of the system, such as a full disk or a read-only folder: the file, and what to do."""
    reason = f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)
    number = error.errno or 0
    has_remedy = error.strerror != os.strerror(number)  # a message of icdsel's own
    return f"{reason}. {'' if has_remedy else _REMEDIES.get(number, '')}".strip()


def is_mistake(error: OSError) -> bool:
    """Whether the path itself is wrong, so that running the command again would not help."""
    return error.errno in _MISTAKES


def lacks_memory(error: BaseException) -> bool:
    """Whether the error means out of memory; torch has no separate error class for it on the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def reason_of(error: BaseException) -> str:
    """Why something failed, for use in a sentence: the first line of the message, or the error's class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


Refuse = Callable[[UserError], None]
"""What a reader does with an error in a record: raise it, or keep it and continue without the record."""


def stop(error: UserError) -> None:
    """Raises `error`: the default of readers."""
    raise error
