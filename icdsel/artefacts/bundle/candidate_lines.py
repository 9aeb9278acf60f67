"""The candidates of a bundle as JSON lines, `candidates.jsonl`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from icdsel.data.parsing import Texts, answers_of, id_of, text_of
from icdsel.errors import BundleError, DataError
from icdsel.records import Example
from icdsel.store.json_reading import read_lines

CANDIDATES = "candidates.jsonl"
IMAGES = "images"
_DIGEST = re.compile("[0-9a-f]{64}")
PLACE = re.compile(rf"{IMAGES}/[0-9a-f]{{2}}/[0-9a-f]{{32}}(?:\.[a-z]{{2,5}})?")
"""Where an image may be. They are spread over 256 folders, since the hub takes 10,000 files in one."""


class StoredImage(NamedTuple):
    """An image of a candidate in a bundle.

    Attributes:
        digest: The SHA-256 of the original file.
        name: The name of the original file.
        place: Where it is in the bundle, relative to the folder; None if it is not in it.
    """

    digest: str
    name: str
    place: str | None

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """Validates the entries of an image.

        Raises:
            ValueError: One is missing or invalid.
        """
        if not isinstance(record, dict):
            raise ValueError("an image of it is not an object")
        digest, place, name = (record.get(key) for key in ("image_sha256", "image", "image_name"))
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError('its "image_sha256" is missing or invalid')
        if place is not None and not (isinstance(place, str) and PLACE.fullmatch(place)):
            raise ValueError(f'its "image" is not a file in the folder {IMAGES}')
        if not isinstance(name, str) or not 0 < len(name) < 1024 or "/" in name or "\0" in name:
            raise ValueError('its "image_name" is missing or invalid')
        return cls(digest, name, place)

    def to_json(self) -> dict[str, Any]:
        """Its entries."""
        return {"image": self.place, "image_name": self.name, "image_sha256": self.digest}

    def path_in(self, folder: Path) -> Path:
        """Its place in the bundle of a folder, or where it would be."""
        return folder / (self.place or f"{IMAGES}/{self.name}")


def line_of(example: Example, images: Sequence[StoredImage]) -> dict[str, Any]:
    """The JSON object of a candidate."""
    first, *others = images
    line: dict[str, Any] = {"question_id": example.question_id, "image_id": example.image_id, **first.to_json()}
    line |= {"question": example.question, "answer": example.answer, "answers": list(example.answers)}
    line |= {"raw_answers": list(example.raw_answers)} if example.raw_answers else {}
    line |= {"more_images": [image.to_json() for image in others]} if others else {}
    return line | ({"options": list(example.options)} if example.options else {})


def read_candidates(folder: Path) -> Iterator[tuple[Example, tuple[StoredImage, ...]]]:
    """The candidates of the bundle in a folder; their images have paths in it.

    Raises:
        BundleError: A line is damaged, or names an image outside the bundle.
    """
    texts = Texts()
    try:
        for place, record in read_lines(folder / CANDIDATES, whole_texts=True):
            try:
                yield _parsed(folder, record, texts)
            except ValueError as error:
                raise BundleError(f"{folder / CANDIDATES}, {place}: {error}") from None
    except DataError as error:
        raise BundleError(str(error)) from None


def _parsed(folder: Path, record: Any, texts: Texts) -> tuple[Example, tuple[StoredImage, ...]]:
    if not isinstance(record, dict):
        raise ValueError("it is not an object")
    more = record.get("more_images", [])
    if not isinstance(more, list):
        raise ValueError('its "more_images" are not a list')
    images = (StoredImage.from_json(record), *map(StoredImage.from_json, more))
    answers, _ = answers_of(record, texts)
    raw = answers_of({"answers": record["raw_answers"]}, texts)[0] if "raw_answers" in record else ()
    example = Example(
        question_id=id_of(record, "question_id"),
        image_id=id_of(record, "image_id"),
        image=images[0].path_in(folder),
        question=text_of(record, "question", texts),
        answer=text_of(record, "answer", texts),
        answers=answers,
        raw_answers=raw,
        more_images=tuple(image.path_in(folder) for image in images[1:]),
        options=answers_of({"answers": record["options"]}, texts)[0] if "options" in record else (),
    )
    return example, images
