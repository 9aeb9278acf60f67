"""How the hub's library is called: quietly, and with errors that say what to do. Tokens are its own business."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from icdsel.artefacts.hub import HubName
from icdsel.errors import BundleError, HubError, UserError

TIMEOUT = 15.0
"""Seconds that the hub has for a reply to a question about a repository."""
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_SECRET = re.compile(r"\?\S*|\bhf_\w+|(?i:bearer) \S+")  # signed addresses, tokens
_LONGEST = 300  # characters of somebody else's message


def library() -> huggingface_hub.HfApi:
    """The hub's library, for the address that it is set to."""
    return huggingface_hub.HfApi(library_name="icdsel")


def is_offline() -> bool:
    """Whether the user wants no network (`HF_HUB_OFFLINE`)."""
    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def asking(name: HubName, error: type[UserError] = BundleError, bars: bool = False) -> Iterator[None]:
    """Turns the errors of the hub's library into those of users.

    Args:
        name: What is asked for.
        error: For mistakes, such as a repository that does not exist.
        bars: Whether the library's progress bars are shown.

    Raises:
        UserError: of the class `error` for mistakes; HubError if the hub cannot be reached, or fails.
    """
    hidden, logs = not (bars or are_progress_bars_disabled()), logging.getLogger("huggingface_hub")
    level = logs.level
    if hidden:
        disable_progress_bars()
    logs.setLevel(logging.CRITICAL)  # they have addresses that give access
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        if (explained := _explained(problem, name, error)) is None:
            raise
        raise explained from None
    finally:
        logs.setLevel(level)
        if hidden:
            enable_progress_bars()


def _explained(problem: BaseException, name: HubName, error: type[UserError]) -> UserError | None:
    """The error to report; None for one that is not the library's, such as a full disk."""
    causes = list(_causes(problem))
    if isinstance(problem, json.JSONDecodeError):
        return HubError(f"the hub fails at the moment: its reply for {name} cannot be read. {_AGAIN}")
    if isinstance(problem, ValueError) and not isinstance(problem, errors.HfHubHTTPError):
        return error(f"{name}: the hub, or its library, does not take it: {_reason(problem)}")
    for cause in causes:
        if (found := _of_reply(cause, name, error)) is not None:
            return found
    for cause in causes:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubError(f"{name} cannot be reached, as HF_HUB_OFFLINE is set: unset it")
        if type(cause).__module__.startswith("httpx") or isinstance(cause, ConnectionError):
            reason = f"{type(cause).__name__}: {_reason(cause)}"
            return HubError(f"the hub ({constants.ENDPOINT}) cannot be reached for {name} ({reason}). {_AGAIN}")
    last = causes[-1]
    if isinstance(last, OSError) and last.errno is not None:
        return None
    if isinstance(
        last, OSError | errors.EntryNotFoundError | errors.FileMetadataError
    ):  # sizes that differ, and the like
        return HubError(f"{name} was not transferred ({_reason(last)}). {_AGAIN}")
    return None


_AGAIN = "Run the command again later: it continues where it stopped."


def _of_reply(cause: BaseException, name: HubName, error: type[UserError]) -> UserError | None:
    """What a reply of the hub means; None if it is not about one."""
    if isinstance(cause, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{name.repository}"
        return error(f"{name} is only for those whom its owner has let in: ask for it at {page}, then {_LOG_IN}")
    if isinstance(cause, errors.RevisionNotFoundError):
        return error(
            f"{name.repository} has no revision {name.revision!r} on the hub: name a branch, a tag or a commit"
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return error(f"there is no {name} on the hub, or it is private: check the name. If it is private, {_LOG_IN}")
    if not isinstance(cause, errors.HfHubHTTPError):
        return None
    status = getattr(cause.response, "status_code", 0)
    if status == 401:
        return error(f"the hub does not know you, or not your token any more: {_LOG_IN}")
    if status == 403:
        return error(
            f"you may not do this with {name}: use a token that may write there, or another name ({_reason(cause)})"
        )
    if status == 404:
        return error(f"{name} lacks a file that it should have: {_reason(cause)}")
    if status == 412:
        return HubError(f"{name} was changed by somebody else in the meantime: run the command again")
    if 400 <= status < 500 and status not in (408, 429):
        return error(f"the hub does not accept this for {name}: {_reason(cause)}")
    return HubError(f"the hub fails at the moment, with status {status} for {name}. {_AGAIN}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _reason(error: Any) -> str:
    """What an error says, on one line, without what gives access."""
    text = str(getattr(error, "server_message", None) or error)
    return " ".join(_SECRET.sub("", text).split())[:_LONGEST].rstrip(".") or type(error).__name__
