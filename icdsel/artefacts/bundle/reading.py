"""Reads a bundle from a folder that anybody may have made. No code in it is run, and nothing outside it is read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icdsel.artefacts.bundle.candidate_lines import CANDIDATES, IMAGES, StoredImage, read_candidates
from icdsel.artefacts.bundle.contents import Bundle, Tables, digest_of_file
from icdsel.artefacts.bundle.manifest import POLICY, TABLES, Manifest, read_manifest
from icdsel.artefacts.checkpoint import Checkpoint, load_checkpoint
from icdsel.data.datasets import Split
from icdsel.errors import BundleError, CheckpointError, DataError
from icdsel.policy.config import PointerConfig
from icdsel.records import Example
from icdsel.retrieval.embeddings import WIDEST, Centre, Embeddings
from icdsel.store.reading import in_utf_8

_LARGEST = 1e4  # of an embedding's values; those of unit vectors are at most 1
_NAMES = {"image", "question", "own", "answers", "centre_image", "centre_question"}


def read_bundle(folder: Path, image_dir: Path | None = None) -> Bundle:
    """Reads a bundle.

    Args:
        folder: The folder.
        image_dir: A folder with the candidates' original images, for a bundle without them; it is searched by name.
            One that holds them needs it not.

    Raises:
        BundleError: It is missing, damaged or incomplete, or its parts do not fit together.
    """
    manifest = require_intact(folder)
    checkpoint = _policy(folder / POLICY)
    config = checkpoint.network.config
    found = list(read_candidates(folder))
    if len(found) != manifest.candidates:
        raise BundleError(f"{folder} holds {len(found)} candidates, {manifest.candidates} were exported")
    tables = _tables(folder / TABLES, len(found))
    digests = {example.question_id: [image.digest for image in images] for example, images in found}
    if image_dir is not None and manifest.images != "full":
        examples = _with_images(found, image_dir)
    else:
        _require_inside(folder)
        examples = [example for example, _ in found]
    try:
        train = Split("train", examples)
    except DataError as error:
        raise BundleError(str(error)) from None
    if [example.question_id for example in train] != [example.question_id for example, _ in found]:
        raise BundleError(f"{folder / CANDIDATES} is not in the order of the question_ids")
    bundle = Bundle(
        manifest=manifest,
        network=checkpoint.network,
        epoch=checkpoint.epoch,
        phase=checkpoint.phase,
        trained_for=checkpoint.trained_for,
        train=train,
        tables=tables,
        digests=[digests[example.question_id] for example in train],
    )
    _require_fitting(folder, bundle, config)
    return bundle


def require_intact(folder: Path, *names: str) -> Manifest:
    """Compares the files of a bundle with their digests; by default all that it cannot do without.

    Raises:
        BundleError: The bundle is missing, or a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    for name in names or (POLICY, CANDIDATES, TABLES):
        _require_intact(folder / name, manifest.files.get(name))
    return manifest


def policy_of(folder: Path) -> Path:
    """The policy in a bundle's folder, a file that every reader of checkpoints reads.

    Raises:
        BundleError: The bundle is missing, or its policy is missing or damaged.
    """
    require_intact(folder, POLICY)
    return folder / POLICY


def _require_intact(path: Path, digest: str | None) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is missing: copy or export the bundle again")
    if digest_of_file(path) != digest:
        raise BundleError(f"{path} is damaged, or from another bundle than {path.parent.name}: copy it again")


def _policy(path: Path) -> Checkpoint:
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise BundleError(str(error)) from None


def _tables(path: Path, count: int) -> Tables:
    """The embeddings of `count` candidates; they are mapped into memory, not read."""
    try:
        with in_utf_8(path) as name, safe_open(name, framework="pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys() if key in _NAMES}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is damaged: {str(error)[:200]}") from None
    if not {"image", "question"} <= found.keys():
        raise BundleError(f"{path} lacks the embeddings of images or questions")
    width = found["image"].shape[-1] if found["image"].dim() else 0
    for key, table in found.items():
        wide = 0 if not table.dim() else table.shape[-1] if key in ("own", "answers") else width
        shape = (wide,) if key.startswith("centre_") else (count, wide)
        if table.dtype != torch.float32 or tuple(table.shape) != shape or not 0 < wide <= WIDEST:
            raise BundleError(f"{path}: {key} is {table.dtype} {list(table.shape)}, not float32 {list(shape)}")
        if not table.isfinite().all() or table.abs().max() > _LARGEST:
            raise BundleError(f"{path}: {key} has values that are no embeddings: NaN, infinite or huge ones")
    return Tables(Embeddings(found["image"], found["question"]), found.get("own"), found.get("answers"), _centre(found))


def _centre(found: Mapping[str, Tensor]) -> Centre | None:
    means = (found.get("centre_image"), found.get("centre_question"))
    return None if means[0] is None or means[1] is None else Centre(means[0], means[1])


def _require_inside(folder: Path) -> None:
    """Rejects links among the images: they could lead to any file of this machine."""
    images = folder / IMAGES
    for path in (images, *images.glob("*"), *images.glob("*/*")):  # in this order: a link is not followed
        if path.is_symlink():
            raise BundleError(f"{path} is a link, which a bundle may not contain: copy the file itself")


def _with_images(found: list[tuple[Example, tuple[StoredImage, ...]]], image_dir: Path) -> list[Example]:
    if not image_dir.is_dir():
        raise BundleError(f"{image_dir} is no folder of images")
    wanted = {image.name: image.digest for _, images in found for image in images}
    places: dict[str, Path] = {}
    for path in sorted(image_dir.rglob("*")):
        # Compared with its digest, so that a bundle cannot pass off any file of this name as an image.
        is_new = path.name in wanted and path.name not in places and path.is_file()
        if is_new and digest_of_file(path) == wanted[path.name]:
            places[path.name] = path
    missing = [image.name for _, images in found for image in images if image.name not in places]
    if missing:
        raise BundleError(
            f"{image_dir} lacks {len(missing)} of the candidates' images, or has others of the same name, first "
            f"{missing[0][:80]}"
        )
    return [
        replace(example, image=places[first.name], more_images=tuple(places[image.name] for image in others))
        for example, (first, *others) in found
    ]


def _require_fitting(folder: Path, bundle: Bundle, config: PointerConfig) -> None:
    width = bundle.table.shape[1]
    if width != config.d_model + config.answer_dim or (bundle.tables.answers is None) != (config.answer_dim == 0):
        raise BundleError(
            f"{folder}: the policy takes embeddings of width {config.d_model}+{config.answer_dim}, the candidates have "
            f"{width}"
        )
    if bundle.manifest.encoder.centred != (bundle.tables.centre is not None):
        raise BundleError(f"{folder}: the means of the features are missing, or not wanted by its encoder")
