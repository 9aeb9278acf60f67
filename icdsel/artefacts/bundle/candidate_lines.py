"""The candidates of a bundle as JSON lines, `candidates.jsonl`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
    """A candidate's image in a bundle.

    Attributes:
        digest: The SHA-256 of the original file.
        name: The name of the original file.
        place: Where it is in the bundle, relative to the folder; None if it is not in it.
    """

    digest: str
    name: str
    place: str | None


def line_of(example: Example, image: StoredImage) -> dict[str, Any]:
    """The JSON object of a candidate."""
    line: dict[str, Any] = {"question_id": example.question_id, "image_id": example.image_id}
    line |= {"image": image.place, "image_name": image.name, "image_sha256": image.digest}
    line |= {"question": example.question, "answer": example.answer, "answers": list(example.answers)}
    return line | ({"raw_answers": list(example.raw_answers)} if example.raw_answers else {})


def read_candidates(folder: Path) -> Iterator[tuple[Example, StoredImage]]:
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


def _parsed(folder: Path, record: Any, texts: Texts) -> tuple[Example, StoredImage]:
    if not isinstance(record, dict):
        raise ValueError("it is not an object")
    digest, place, name = (record.get(key) for key in ("image_sha256", "image", "image_name"))
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError('its "image_sha256" is missing or invalid')
    if place is not None and not (isinstance(place, str) and PLACE.fullmatch(place)):
        raise ValueError(f'its "image" is not a file in the folder {IMAGES}')
    if not isinstance(name, str) or not 0 < len(name) < 1024 or "/" in name or "\0" in name:
        raise ValueError('its "image_name" is missing or invalid')
    answers, _ = answers_of(record, texts)
    raw = answers_of({"answers": record["raw_answers"]}, texts)[0] if "raw_answers" in record else ()
    example = Example(
        question_id=id_of(record, "question_id"),
        image_id=id_of(record, "image_id"),
        image=folder / (place or f"{IMAGES}/{name}"),
        question=text_of(record, "question", texts),
        answer=text_of(record, "answer", texts),
        answers=answers,
        raw_answers=raw,
    )
    return example, StoredImage(digest, name, place)
