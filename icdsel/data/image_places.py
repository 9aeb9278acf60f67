"""Where the images are that a dataset names: below its folder, or below `--image-dir`."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from icdsel.data.parsing import quoted
from icdsel.data.stored_images import ENDINGS, store_image
from icdsel.records import QuestionId
from icdsel.store.reading import is_path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_MOST_FILES = 1_000_000  # that are looked through, as a dataset may be in a home folder; COCO has 330,000
_NUMBER = re.compile(r"(\d+)$")


class ImagePlaces:
    """Finds images by the paths or ids that records give.

    Args:
        folder: What relative paths are relative to.
        roots: More folders that hold images: relative paths are looked up there too, and absolute paths may lead there.
        search: That of these folders below which images may be anywhere, in subfolders that a path does not name; None
            for none.
        copies: The folder for copies of images that records contain, where relative paths are looked up first; None if
            they contain none.
    """

    def __init__(
        self, folder: Path, roots: Iterable[Path] = (), search: Path | None = None, copies: Path | None = None
    ) -> None:
        self.folder = folder
        self._roots = tuple(dict.fromkeys((folder, *roots)))
        self._search, self._copies = search, copies
        self._listed: dict[Path, frozenset[str]] = {}
        self._below: dict[str, list[Path]] | None = None
        self._by_number: dict[int, list[Path]] | None = None
        self._known: dict[str, tuple[Path, int]] = {}

    def named(self, name: str) -> tuple[Path, int]:
        """The image of this path, and an image_id derived from the path; the same objects for the same path.

        A relative path is looked up in the folders; leading folders that a folder's own path ends with are left out
        (`coco/train2017/1.jpg` in `/data/coco`). Then, with `search`, it may be in any subfolder: the only file of this
        name, or for a path with folders the only one that shares its last folder. An image that is found nowhere has
        its path in the first folder.

        Raises:
            ValueError: It is a URL, or it is outside of the folders.
        """
        if name not in self._known:
            self._known[name] = self._placed(name)
        return self._known[name]

    def contained(self, content: bytes) -> tuple[Path, int]:
        """A copy of an image that a record contains, which is written if it does not exist.

        Raises:
            ValueError: There is no folder for copies.
        """
        if self._copies is None:
            raise ValueError("its image is not a path")
        name = store_image(content, self._copies, Path())
        return self._copies / name, _hashed(name)

    def with_id(self, image_id: QuestionId, hint: str = "") -> Path | None:
        """The image whose file name is this id, or ends with this number, as `COCO_val2014_000000000042.jpg` does.

        Args:
            image_id: The id.
            hint: A word, such as the name of a split: of several such files, that in a folder that contains it is used.

        Raises:
            ValueError: There are several such files.
        """
        if self._by_number is None:
            self._by_number = {}
            for path in (path for paths in self._files().values() for path in paths):
                if path.suffix.lower() in ENDINGS and (number := _NUMBER.search(path.stem)):
                    self._by_number.setdefault(int(number[1]), []).append(path)
        found = [path for ending in ENDINGS for path in self._files().get(f"{image_id}{ending}", ())]
        if not found and (isinstance(image_id, int) or str(image_id).isdecimal()):
            found = self._by_number.get(int(image_id), [])
        hinted = [path for path in found if hint and hint in str(path.relative_to(self._search or self.folder))]
        found = hinted or found
        if len(found) > 1 and len({path.name for path in found}) > 1:
            found = [path for path in found if path.stem == str(image_id)] or found
        if len(found) > 1:
            raise ValueError(
                f"its image {image_id} may be {found[0]} or {found[1]}: keep the images of one split in a folder with "
                "the split's name, or name the folder with --image-dir"
            )
        return found[0] if found else None

    def _placed(self, name: str) -> tuple[Path, int]:
        if _URL.match(name):
            raise ValueError(f"its image is {quoted(name)}: nothing is fetched; save the images and give their paths")
        if "\\" in name and "/" not in name:  # written on Windows
            name = name.replace("\\", "/")
        path = PurePosixPath(name)
        if ".." in path.parts:
            raise ValueError(
                f"its image {quoted(name)} is outside of the image folder: give the path relative to that folder, and "
                "name the folder with --image-dir"
            )
        if not path.parts or not is_path(name):
            raise ValueError(f"its image is {quoted(name)}, which is not a path")
        if path.is_absolute():
            place, inside = self._inside(Path(path))
            return place, _hashed(inside)
        return self._found(path), _hashed(str(path))

    def _inside(self, path: Path) -> tuple[Path, str]:
        """An absolute path below the root that it is in, as a relative path would be found, and relative to the root.

        Links are followed only where the paths as written do not fit.
        """
        for root in self._roots:
            for place, base in ((path, root.absolute()), (path.parent.resolve() / path.name, root.resolve())):
                if place.is_relative_to(base):
                    inside = place.relative_to(base)
                    return root / inside, inside.as_posix()
        raise ValueError(
            f"its image {quoted(str(path))} is outside of {self.folder}. If you trust this dataset to read files "
            f"there, name that folder or one above it: --image-dir {path.parent}"
        )

    def _found(self, path: PurePosixPath) -> Path:
        if self._copies is not None and self._is_copied(self._copies / path):
            return self._copies / path
        for root in self._roots:
            own = root.absolute().parts
            for start in range(len(path.parts)):
                place = root.joinpath(*path.parts[start:])
                if own[len(own) - start :] == path.parts[:start] and place.name in self._names(place.parent):
                    return place
            if root == self._search and (found := self._searched(path, root)) is not None:
                return found
        return self.folder / path

    def _is_copied(self, place: Path) -> bool:
        """Whether an image was copied, also after the folder was listed: each split is copied when it is first read."""
        names = self._names(place.parent)
        return place.name in names or (bool(names) and place.is_file())

    def _searched(self, path: PurePosixPath, root: Path) -> Path | None:
        if len(path.parts) > 1 and path.parts[0] in self._names(root):
            return None  # the folder that the path means exists, and lacks the file
        found = [place for place in self._files().get(path.name, []) if _shares_folder(place, path)]
        longest = max((_shared_end(place, path) for place in found), default=0)
        nearest = [place for place in found if _shared_end(place, path) == longest]
        return nearest[0] if len(nearest) == 1 else None

    def _names(self, folder: Path) -> frozenset[str]:
        """The names in a folder. It is listed once, because looking up every file takes minutes on a network disk."""
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = frozenset(entry.name for entry in entries)
            except (OSError, ValueError):  # there is no such folder
                self._listed[folder] = frozenset()
        return self._listed[folder]

    def _files(self) -> dict[str, list[Path]]:
        """All files below the folder to search, by name; none if there are too many, and none in hidden folders."""
        if self._below is None:
            self._below = {}
            count = 0
            for top, folders, names in os.walk(self._search) if self._search else ():
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    self._below.setdefault(name, []).append(Path(top, name))
                count += len(names)
                if count > _MOST_FILES:
                    self._below = {}  # part of them would not show which names are unique
                    break
        return self._below


def id_of_several(image_ids: Sequence[QuestionId]) -> QuestionId:
    """The id of images together; that of a single one is its own."""
    return image_ids[0] if len(image_ids) == 1 else _hashed("\n".join(map(str, image_ids)))


def _hashed(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:13], 16)  # 52 bits: exact in JSON's numbers too


def _shares_folder(place: Path, path: PurePosixPath) -> bool:
    """Whether a file may be the one that a path means: `val/1.jpg` is not `train/1.jpg`."""
    return len(path.parts) == 1 or place.parent.name == path.parent.name


def _shared_end(place: Path, path: PurePosixPath) -> int:
    """How many of the last parts of two paths are the same."""
    pairs = zip(reversed(place.parts), reversed(path.parts), strict=False)
    return next((count for count, (one, other) in enumerate(pairs) if one != other), len(path.parts))
