"""What a user can cause: one class per kind of mistake, with the remedy in the message."""

import errno
import os
from collections.abc import Callable

_LONGEST = 3000  # characters


class UserError(Exception):
    """What a user can cause: one class per kind, with the remedy in the message.

    The command line prints the message alone and exits; anything that is not a `UserError` is a bug. A message that
    quotes a file is shortened in its middle: the remedy stands at its end.
    """

    def __str__(self) -> str:
        message = super().__str__()
        return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or holds something other than the selector that was asked for."""


class SettingsError(UserError):
    """A setting is unknown or its value is not allowed."""


class DataError(UserError):
    """A dataset is missing, damaged or does not hold what was asked for."""


class RlDataError(UserError):
    """RL data are missing, damaged, empty, or were made under other settings."""


class RunError(UserError):
    """A run or its results are missing, or belong to other settings."""


class VlmError(UserError):
    """A vision-language model cannot be found or used."""


class CallsError(VlmError):
    """Calls of a vision-language model fail, or hang, too often to go on: nothing wrong was asked for."""


_FILE_IN_THE_WAY = "A file is where a folder should be: name another place (--results-dir, --data-dir, --output)."
_MISTAKES = {
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EISDIR: "Name a file in it.",
    errno.ENAMETOOLONG: "Take shorter names: most disks hold 255 bytes of each at most.",
}
_REMEDIES = _MISTAKES | {
    errno.ENOSPC: "Make room, or write elsewhere (--results-dir, --output).",
    errno.EDQUOT: "Make room, or write elsewhere (--results-dir, --output).",
    errno.EROFS: "Write elsewhere (--results-dir, --output).",
    errno.EACCES: "Have the rights to it, or name another place (--results-dir, --output).",
    errno.EPERM: "Have the rights to it, or name another place (--results-dir, --output).",
}


def of_system(error: OSError) -> str:
    """What the system refused, about which file, and what to do: a full disk, a folder that is read-only."""
    reason = f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)
    number = error.errno or 0
    own_words = error.strerror != os.strerror(number)  # which say what to do
    return f"{reason}. {'' if own_words else _REMEDIES.get(number, '')}".strip()


def is_mistake(error: OSError) -> bool:
    """Whether the system refused a path that cannot be meant: giving the command again would not help."""
    return error.errno in _MISTAKES


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that the memory did not suffice; of torch's, that of the CPU has no class of its own."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def reason_of(error: BaseException) -> str:
    """Why something failed, for use in a sentence: the first line of the message, or the error's class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


Refuse = Callable[[UserError], None]
"""What a reader does with an error: raise it, or note it and go on without what it is about."""


def stop(error: UserError) -> None:
    """Raises `error`: what readers do unless told otherwise."""
    raise error
