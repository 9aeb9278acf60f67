"""Uploads bundles and RL data to the hub: each push is one commit, so nobody ever downloads half of one.

An interrupted push can be repeated: large files that have arrived are known by their digests and are not sent again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, errors
from huggingface_hub.hf_api import RepoFile

from icdsel.artefacts import rl_data_sharing
from icdsel.artefacts.bundle.card import card as bundle_card
from icdsel.artefacts.bundle.manifest import CARD, MANIFEST, Images
from icdsel.artefacts.bundle.reading import read_bundle
from icdsel.artefacts.hub import HubName
from icdsel.artefacts.hub_copies import BUNDLE, RL_DATA, Kind
from icdsel.artefacts.hub_library import TIMEOUT, asking, is_offline, library
from icdsel.console import err
from icdsel.errors import HubError, UserError
from icdsel.store.files import json_bytes

_USUAL = {".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt", CARD}
"""Files that any repository may have. The card is replaced, the others stay."""


class Parcel(NamedTuple):
    """What is uploaded.

    Attributes:
        kind: What it is.
        files: The content of each file by its path in the repository, or where that is on this machine.
        licence: Under which it may be used; empty if that is not said.
        images: Which images are in it; None for RL data.
        about: What it is, in a few words.
    """

    kind: Kind
    files: Mapping[str, Path | bytes]
    licence: str
    images: Images | None
    about: str

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.files.values())


def parcel_of(source: Path, name: HubName, licence: str | None) -> Parcel:
    """What is uploaded of a bundle's folder, or of a file of RL data: what belongs to it, and nothing beside it.

    Everything is checked first, with all digests.

    Args:
        source: The folder or file.
        name: Where it goes; the card of RL data says it.
        licence: The licence; None for the one that the bundle was exported with.

    Raises:
        UserError: It is neither, or it is damaged.
    """
    if source.is_dir() or source.name == MANIFEST:
        return _of_bundle(source.parent if source.name == MANIFEST else source, licence)
    data = rl_data_sharing.shared(source)
    files: dict[str, Path | bytes] = {
        CARD: rl_data_sharing.card(data, name.repository, licence or "").encode(),
        rl_data_sharing.FILE: data.lines,
        rl_data_sharing.METADATA: data.metadata,
    }
    about = f"RL data, {data.pointers:,} scored pointers of {data.queries:,} queries"
    return Parcel(RL_DATA, files, licence or "", None, about)


def _of_bundle(folder: Path, licence: str | None) -> Parcel:
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    files: dict[str, Path | bytes] = {name: folder / name for name in (CARD, *BUNDLE.needed)}
    if licence is not None and licence != manifest.licence:  # the folder stays as it was exported
        manifest = manifest.model_copy(update={"licence": licence})
        files[MANIFEST] = json_bytes(manifest.model_dump(mode="json"), indent=1)
        files[CARD] = bundle_card(manifest).encode()
    elif not (folder / CARD).is_file():
        files[CARD] = bundle_card(manifest).encode()
    if manifest.images != "none":
        images = {image for example in bundle.train for image in example.images}
        if missing := sorted(image for image in images if not image.is_file()):
            raise BUNDLE.error(f"{folder} lacks {len(missing)} images, first {missing[0].name}: export it again")
        files |= {image.relative_to(folder).as_posix(): image for image in sorted(images)}
    about = f"bundle of {len(bundle.train):,} candidates, images: {manifest.images}"
    return Parcel(BUNDLE, files, manifest.licence, manifest.images, about)


class Place(NamedTuple):
    """A repository as it is now.

    Attributes:
        name: Its name, with the branch.
        exists: Whether it exists.
        is_private: Whether it is private, or will be.
        held: The files on the branch.
        commit: The newest commit on the branch; None if there is none.
    """

    name: HubName
    exists: bool
    is_private: bool
    held: frozenset[str] = frozenset()
    commit: str | None = None


def place_of(name: HubName, kind: Kind, private: bool | None) -> Place:
    """Looks at where something is to be uploaded.

    Args:
        name: The repository, and the branch.
        kind: What is to be uploaded.
        private: Whether only its owner, and whom they let in, may see it; None for private, or as it is if it exists.

    Raises:
        UserError: It exists and holds something else, or is as visible as it must not be.
        HubError: The hub cannot be reached.
    """
    if is_offline():
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it")
    known, api = name._replace(revision=None), library()
    with asking(known, kind.error):
        try:
            info = api.repo_info(known.repository, repo_type=kind.repo_type, timeout=TIMEOUT)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return Place(name, exists=False, is_private=private is not False)
    is_private = bool(info.private)
    if private not in (None, is_private):
        state = "private" if is_private else "public"
        raise kind.error(
            f"{known} exists and is {state}: leave --{'private' if private else 'public'} out to push to it as it is, "
            f"or change that in its settings on the hub, {address(name, kind)}/settings"
        )
    with asking(name, kind.error):
        try:
            commit = api.repo_info(
                name.repository, revision=name.revision, repo_type=kind.repo_type, timeout=TIMEOUT
            ).sha
        except errors.RevisionNotFoundError:
            return Place(name, exists=True, is_private=is_private)
        tree = api.list_repo_tree(name.repository, recursive=True, revision=commit, repo_type=kind.repo_type)
        held = frozenset(entry.path for entry in tree if isinstance(entry, RepoFile))
    if kind.needed[0] not in held and (others := sorted(held - _USUAL)):
        raise kind.error(
            f"{name} holds something else than {kind.name} ({', '.join(others[:3])}): name another repository"
        )
    return Place(name, True, is_private, held, commit)


def upload(parcel: Parcel, place: Place, message: str) -> str:
    """Uploads a parcel in one commit, and returns the address of the repository.

    Files of an earlier push that are no longer part of it are removed; files that are not icdsel's stay.

    Raises:
        UserError: The hub does not accept it.
        HubError: The hub cannot be reached, or failed in the middle.
    """
    name, kind, api = place.name, parcel.kind, library()
    with asking(name, kind.error, bars=err.is_terminal):
        if not place.exists:
            api.create_repo(name.repository, repo_type=kind.repo_type, private=place.is_private, exist_ok=True)
        if name.revision is not None and place.commit is None:
            api.create_branch(name.repository, branch=name.revision, repo_type=kind.repo_type, exist_ok=True)
        gone = sorted(path for path in place.held - parcel.files.keys() if kind.has(path))
        added = [CommitOperationAdd(path, content) for path, content in parcel.files.items()]
        api.create_commit(
            name.repository,
            [*added, *map(CommitOperationDelete, gone)],
            commit_message=message,
            repo_type=kind.repo_type,
            revision=name.revision,
            parent_commit=place.commit,
        )
    return address(name, kind)


def address(name: HubName, kind: Kind) -> str:
    """Where a repository can be looked at."""
    folder = constants.REPO_TYPES_URL_PREFIXES.get(kind.repo_type, "")
    return f"{constants.ENDPOINT}/{folder}{name.repository}"


def require_licence(parcel: Parcel, accepted: bool) -> None:
    """Checks that whoever downloads something will know what is allowed.

    Raises:
        UserError: No licence is stated, and that was not accepted.
    """
    if parcel.licence or accepted:
        return
    error: type[UserError] = parcel.kind.error
    of = "the images and questions are somebody's" if parcel.images == "full" else "the questions are somebody's"
    raise error(
        f"no licence is stated, and {of}: name the dataset's with --licence, such as --licence cc-by-4.0, or push "
        "without one with --no-licence"
    )
