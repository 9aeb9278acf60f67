"""Writes a bundle into a folder. The same bundle always has the same bytes."""

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from icdsel.artefacts.bundle.candidate_lines import CANDIDATES, IMAGES, StoredImage, line_of
from icdsel.artefacts.bundle.card import card
from icdsel.artefacts.bundle.contents import Bundle, Tables, digest_of_file
from icdsel.artefacts.bundle.manifest import CARD, MANIFEST, POLICY, TABLES, Images
from icdsel.artefacts.policy_safetensors import write_policy_file
from icdsel.data.images import open_image
from icdsel.data.stored_images import store_image
from icdsel.errors import BundleError
from icdsel.store.backup import back_up
from icdsel.store.files import make_folder, sync_folder, write_bytes
from icdsel.store.lock import locked

THUMBNAIL = 384
"""Longest side of a thumbnail, in pixels."""
_QUALITY = 85


def write_bundle(
    bundle: Bundle, folder: Path, images: Images, overwrite: bool = False, advance: Callable[[int], None] | None = None
) -> Path:
    """Writes a bundle; the folder gets its name when it is complete. An interrupted one keeps the images it has copied.

    Args:
        bundle: The bundle.
        folder: Where to write it.
        images: What to write of the candidates' images.
        overwrite: Rename an existing bundle to a backup.
        advance: Called with the number of candidates whose image is done.

    Raises:
        BundleError: The folder exists.
        ImageError: A thumbnail cannot be made.
        OSError: An image cannot be read, or the disk is full.
    """
    require_free(folder, overwrite)
    part = folder.with_name(f".{folder.name}.part")
    with locked(folder, f"the bundle {folder}"):
        make_folder(part / IMAGES)
        most_pixels = bundle.manifest.settings["data"]["max_image_pixels"]
        stored: dict[Path, StoredImage] = {}
        lines = []
        for example in bundle.train:
            for image in example.images:
                if image not in stored:
                    stored[image] = _store(image, part, images, most_pixels)
            line = line_of(example, [stored[image] for image in example.images])
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            if advance:
                advance(1)
        _remove_others(part, {image.place for image in stored.values() if image.place})
        write_bytes(part / CANDIDATES, "".join(lines).encode())
        write_policy_file(
            part / POLICY, bundle.network, epoch=bundle.epoch, phase=bundle.phase, trained_for=bundle.trained_for
        )
        save_file(_tensors(bundle.tables), part / TABLES)
        (part / TABLES).chmod((part / CANDIDATES).stat().st_mode)  # the library lets nobody else read it
        files = {name: digest_of_file(part / name) for name in (POLICY, CANDIDATES, TABLES)}
        manifest = bundle.manifest.model_copy(update={"images": images, "files": files})
        write_bytes(part / CARD, card(manifest).encode())
        manifest.write(part)
        require_free(folder, overwrite)
        if (folder / MANIFEST).exists():
            back_up(folder)
        elif folder.exists():
            folder.rmdir()  # it is empty
        part.rename(folder)
        sync_folder(folder.parent)
    return folder


def require_free(folder: Path, overwrite: bool) -> None:
    """Checks that a bundle may be written to a folder.

    Raises:
        BundleError: It exists, and is not an empty folder, nor a bundle that may be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} exists and is no bundle: name another folder")
    if not overwrite:
        raise BundleError(f"{folder} exists: name another folder, or use --overwrite to rename it to a backup")


def _tensors(tables: Tables) -> dict[str, Tensor]:
    named = {"image": tables.vectors.image, "question": tables.vectors.question}
    named |= {name: table for name, table in (("own", tables.own), ("answers", tables.answers)) if table is not None}
    if tables.centre:
        named |= {"centre_image": tables.centre.image, "centre_question": tables.centre.question}
    return {name: table.contiguous().clone() for name, table in named.items()}


def _store(path: Path, folder: Path, images: Images, most_pixels: int) -> StoredImage:
    content = path.read_bytes()
    digest, place = hashlib.sha256(content).hexdigest(), None
    below = Path(IMAGES) / digest[:2]
    if images == "full":
        place = store_image(content, folder, below, path.suffix.lower())
    elif images == "thumbnails":
        small = folder / below / f"{digest[:32]}.webp"
        if not small.exists():
            write_bytes(small, _thumbnail(open_image(path, most_pixels)))
        place = f"{below.as_posix()}/{small.name}"
    return StoredImage(digest, path.name, place)


def _thumbnail(picture: Image.Image) -> bytes:
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "webp", quality=_QUALITY, method=4)
    return buffer.getvalue()


def _remove_others(folder: Path, places: set[str]) -> None:
    """Removes images that an interrupted export with other images has left."""
    for path in sorted((folder / IMAGES).rglob("*"), reverse=True):  # files before their folders
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in places:
            path.unlink()
