"""Names of bundles and RL data on the Hugging Face hub: `hub:owner/name`, or `hub:owner/name@revision`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from icdsel.errors import BundleError

PREFIX = "hub:"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w-][\w./-]{0,254}", re.ASCII)
_LONGEST = 96  # characters of `owner/name`, on the hub


class HubName(NamedTuple):
    """A repository on the hub.

    Attributes:
        repository: `owner/name`.
        revision: A branch, a tag or a commit; None for the newest commit.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        """As it is typed."""
        return f"{PREFIX}{self.repository}{f'@{self.revision}' if self.revision else ''}"


def is_repository(name: str) -> bool:
    """Whether a text has the form `owner/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def is_on_hub(path: str | Path) -> bool:
    """Whether a path names something on the hub."""
    return str(path).startswith(PREFIX)


def hub_name(text: str) -> HubName:
    """The repository that a text names, with or without `hub:`.

    Raises:
        BundleError: It cannot be a name.
    """
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    possible = is_repository(repository) and len(repository) <= _LONGEST
    if not possible or ".." in text or "--" in repository or repository.endswith(".git"):
        raise BundleError(
            f"{text[:200]!r} is no name on the hub: write {PREFIX}owner/name, or {PREFIX}owner/name@revision"
        )
    if at and not _REVISION.fullmatch(revision):
        raise BundleError(
            f"{text[:200]!r} names no revision behind @: write a branch, a tag or a commit, or leave @ out"
        )
    return HubName(repository, revision or None)


def local_bundle(name: str) -> Path:
    """The folder of a bundle on the hub, which is downloaded unless it is there already.

    Args:
        name: `hub:owner/name`, or `hub:owner/name@revision`.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        HubError: The hub cannot be reached, and no copy is there.
    """
    from icdsel.artefacts.hub_copies import BUNDLE, local_copy

    return local_copy(hub_name(name), BUNDLE)


def local_rl_data(paths: Iterable[Path]) -> list[Path]:
    """Files of RL data, those on the hub as local copies of them.

    Raises:
        RlDataError: There are no such RL data, or they are damaged.
        HubError: The hub cannot be reached, and no copy is there.
    """
    from icdsel.artefacts.hub_copies import RL_DATA, local_copy
    from icdsel.artefacts.rl_data_sharing import FILE

    return [local_copy(hub_name(str(path)), RL_DATA) / FILE if is_on_hub(path) else path for path in paths]
