"""A part of the training questions as validation split, by image, for datasets without one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from icdsel.errors import DataError
from icdsel.records import Example, QuestionId


def parted(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Divides examples into those for training and those for validation. No image is in both.

    Images are ordered by a digest of the seed and their image_id, and go to the validation part until it has at least
    `fraction` of the examples. The order of the examples does not matter, and more examples of new images move few of
    the others.

    Raises:
        DataError: Either part would be empty.
    """
    groups: dict[QuestionId, list[Example]] = {}
    for example, key in zip(examples, _images(examples), strict=True):
        groups.setdefault(key, []).append(example)
    chosen: set[QuestionId] = set()
    count = 0
    for key in sorted(groups, key=lambda image: hashlib.sha256(f"validation-{seed}-{image}".encode()).digest()):
        if count >= fraction * len(examples):
            break
        chosen.add(key)
        count += len(groups[key])
    if not 0 < count < len(examples):
        raise DataError(
            f"--validation-fraction {fraction:g} of {len(examples)} questions about {len(groups)} images leaves "
            f"{len(examples) - count} for training: use another fraction, or more images"
        )
    train: list[Example] = []
    validation: list[Example] = []
    for example, key in zip(examples, _images(examples), strict=True):
        (validation if key in chosen else train).append(example)
    return train, validation


def _images(examples: Sequence[Example]) -> list[QuestionId]:
    """The image of each example, by an image_id; images of one path or one image_id are the same."""
    by_path: dict[Path, QuestionId] = {}
    first: dict[QuestionId, QuestionId] = {}

    def root(image_id: QuestionId) -> QuestionId:
        while (parent := first.setdefault(image_id, image_id)) != image_id:
            image_id = parent
        return image_id

    for example in examples:
        for image in example.images:
            one, other = root(example.image_id), root(by_path.setdefault(image, example.image_id))
            if one != other:
                low, high = sorted((one, other), key=str)
                first[high] = low
    return [root(example.image_id) for example in examples]
