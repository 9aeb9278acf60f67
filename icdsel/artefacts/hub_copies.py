"""Copies of what is on the hub: real files in folders of icdsel's own, one for each commit.

    <HF_HOME>/icdsel/bundles/<owner>--<name>@<commit>/        complete, and never changed
    <HF_HOME>/icdsel/bundles/.<owner>--<name>@<commit>.part/  what an interrupted download left; it is resumed
    <HF_HOME>/icdsel/bundles/.commits/<digest>.json           the commit that a name meant last, for use without network

Only files that a bundle, or RL data, consist of are downloaded, by names that are compared with patterns first: a
repository may hold anything.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants
from huggingface_hub.hf_api import RepoFile

from icdsel.artefacts import rl_data_sharing
from icdsel.artefacts.bundle.candidate_lines import CANDIDATES, IMAGES, PLACE
from icdsel.artefacts.bundle.manifest import CARD, MANIFEST, POLICY, TABLES
from icdsel.artefacts.bundle.reading import require_intact
from icdsel.artefacts.hub import HubName
from icdsel.artefacts.hub_library import TIMEOUT, asking, is_offline, library
from icdsel.artefacts.rl_data import summary_of
from icdsel.console import note, progress, warn
from icdsel.errors import BundleError, HubError, RlDataError, UserError
from icdsel.store.files import digest_of, make_folder, sync_folder, write_json
from icdsel.store.json_reading import parsed
from icdsel.store.lock import locked
from icdsel.store.reading import read_whole

_COMMIT = re.compile("[0-9a-f]{40}")
_SHOWN = 12  # digits of a commit in a folder's name
_THREADS = 8
_KEPT_FREE = 2**26  # bytes


class Kind(NamedTuple):
    """What can be shared.

    Attributes:
        name: What it is called in messages.
        repo_type: What its repositories are for the hub.
        folder: Of the copies.
        needed: The files that it cannot do without; the first one marks a repository as one of this kind.
        others: The names of the other files that belong to it, as a pattern.
        below: The folder in which every file has to be one of those.
        error: For repositories that hold something else.
        require_intact: Checks a folder.
    """

    name: str
    repo_type: str
    folder: str
    needed: tuple[str, ...]
    others: re.Pattern[str]
    below: str | None
    error: type[UserError]
    require_intact: Callable[[Path], object]

    def has(self, path: str) -> bool:
        """Whether a file belongs to it, by its name."""
        return path in self.needed or self.others.fullmatch(path) is not None


BUNDLE = Kind(
    name="bundle",
    repo_type="model",
    folder="bundles",
    needed=(MANIFEST, POLICY, CANDIDATES, TABLES),
    others=re.compile(f"{re.escape(CARD)}|{PLACE.pattern}"),
    below=IMAGES,
    error=BundleError,
    require_intact=require_intact,
)
RL_DATA = Kind(
    name="RL data",
    repo_type="dataset",
    folder="rl_data",
    needed=(rl_data_sharing.FILE, rl_data_sharing.METADATA),
    others=re.compile(re.escape(CARD)),
    below=None,
    error=RlDataError,
    require_intact=lambda folder: summary_of(folder / rl_data_sharing.FILE),
)


def copies_folder() -> Path:
    """Where copies are."""
    return Path(constants.HF_HOME) / "icdsel"


def local_copy(name: HubName, kind: Kind) -> Path:
    """The folder with a copy of a repository, which is downloaded unless it is there already.

    Without network, or if the hub fails, it is the copy that the name meant last.

    Raises:
        UserError: of the kind's class: there is no such repository, or it holds something else, or is damaged.
        HubError: The hub cannot be reached, and no copy is there.
    """
    root = copies_folder() / kind.folder
    if name.revision and _COMMIT.fullmatch(name.revision) and (folder := _folder(root, name, name.revision)).is_dir():
        return folder
    known = _known(root, name)
    if is_offline():
        if known is None:
            raise HubError(f"no copy of {name} is in {root}, and HF_HUB_OFFLINE is set: unset it to download {name}")
        return known
    try:
        with asking(name, kind.error):
            info = library().repo_info(
                name.repository, revision=name.revision, repo_type=kind.repo_type, timeout=TIMEOUT
            )
    except HubError as error:
        if known is None:
            raise
        warn(f"{error} The copy in {known} is used, which may be older")
        return known
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"the hub names no commit for {name}")
    folder = _folder(root, name, commit)
    if not folder.is_dir():
        _download(name, kind, commit, folder)
    if folder != known:
        record = _record(root, name)
        with locked(record, f"the commit of {name}", quiet=True):
            write_json(record, {"name": str(name), "commit": commit})
    return folder


def _folder(root: Path, name: HubName, commit: str) -> Path:
    return root / f"{name.repository.replace('/', '--')}@{commit[:_SHOWN]}"


def _record(root: Path, name: HubName) -> Path:
    folder = root / ".commits"
    make_folder(folder)
    return folder / f"{digest_of(str(name))[:32]}.json"


def _known(root: Path, name: HubName) -> Path | None:
    """The copy of the commit that a name meant last; None if there is none."""
    path = _record(root, name)
    if not path.is_file():
        return None
    try:
        content = parsed(read_whole(path, 2**16))
    except (OSError, ValueError):  # it is only a memory
        return None
    commit = content.get("commit") if isinstance(content, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        return None
    folder = _folder(root, name, commit)
    return folder if folder.is_dir() else None


def _download(name: HubName, kind: Kind, commit: str, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.part")
    with locked(part, f"the copy of {name}"):  # another process that downloads it is waited for
        if folder.is_dir():
            return
        with asking(name, kind.error):
            tree = library().list_repo_tree(name.repository, recursive=True, revision=commit, repo_type=kind.repo_type)
            sizes = {entry.path: entry.size or 0 for entry in tree if isinstance(entry, RepoFile)}
        wanted = _wanted(name, kind, sizes)
        total = sum(wanted.values())
        make_folder(part)
        free = shutil.disk_usage(part).free
        if total + _KEPT_FREE > free:
            raise kind.error(
                f"{name} has {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder.parent}: make room, or "
                "set HF_HOME to another folder"
            )
        note(f"Downloading {name} ({len(wanted)} files, {total / 1e6:.1f} MB), once, to {folder}")
        _fetch(name, kind, commit, wanted, part)
        shutil.rmtree(part / ".cache", ignore_errors=True)  # what the library knew of unfinished files
        try:
            kind.require_intact(part)
        except UserError as error:
            shutil.rmtree(part, ignore_errors=True)  # so that the next attempt does not resume with it
            raise kind.error(
                f"{name} is damaged, or not what it says it is: {error}. Nothing of it is kept; whoever owns it has to "
                "push it again"
            ) from None
        part.rename(folder)
        sync_folder(folder.parent)


def _wanted(name: HubName, kind: Kind, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the files to download.

    Raises:
        UserError: of the kind's class: files are missing, or do not belong where they are.
    """
    if missing := [needed for needed in kind.needed if needed not in sizes]:
        raise kind.error(f"{name} is no {kind.name} of icdsel: it has no {missing[0]}. `icdsel push` writes such ones")
    strange = [path for path in sizes if kind.below and path.startswith(f"{kind.below}/") and not kind.has(path)]
    if strange:
        raise kind.error(f"{name} holds a file that no {kind.name} of icdsel has, {strange[0][:200]!a}: it is not used")
    return {path: size for path, size in sizes.items() if kind.has(path)}


def _fetch(name: HubName, kind: Kind, commit: str, wanted: Mapping[str, int], part: Path) -> None:
    """Downloads files. One that is there already is not downloaded again, a part of one is completed."""

    def fetch(path: str) -> int:
        target = part / path
        if not target.is_file() or target.stat().st_size != wanted[path]:
            library().hf_hub_download(
                name.repository, path, repo_type=kind.repo_type, revision=commit, local_dir=part, etag_timeout=TIMEOUT
            )
        if not target.is_file() or target.is_symlink() or target.stat().st_size != wanted[path]:
            raise HubError(f"{path} of {name} was not downloaded completely. Run the command again: it continues there")
        return wanted[path]

    single: Sequence[str] = [path for path in wanted if "/" not in path]  # the large ones; Ctrl-C ends these at once
    many = [path for path in wanted if "/" in path]
    with asking(name, kind.error), progress("Downloading", len(wanted)) as advance:
        for path in single:
            fetch(path)
            advance(1)
        with ThreadPoolExecutor(_THREADS) as threads:
            try:
                for _ in threads.map(fetch, many):
                    advance(1)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
