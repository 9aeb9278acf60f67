"""Readers of COCO's captions: the official files, and Karpathy's split, which other datasets use too."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.parsing import quoted
from icdsel.data.readers.base import CAPTION_TASK, FileReader, Reader
from icdsel.data.readers.folders import data_files, ends_of
from icdsel.data.rows import Rows, Table
from icdsel.data.split_names import split_word, standard_split
from icdsel.errors import DataError, Refuse
from icdsel.records.values import is_id
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_top

CAPTION_QUESTION = "Describe the image."
"""The question of every image with captions."""

_IMAGES, _ANNOTATIONS = "images", "annotations"
_REST = "restval"  # Karpathy's split of the validation images that are for training
_START, _LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{"), re.compile(rf'"{_IMAGES}"\s*:\s*\['.encode())
_OF_KARPATHY, _OF_COCO, _OF_IMAGE, _OF_VQA = (
    re.compile(rf'"{key}"\s*:'.encode()) for key in ("sentences", "caption", "image_id", "question")
)
_BESIDE = ("instances_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")  # COCO's other files


class CaptionFile(FileReader):
    """A JSON file of images with captions: one example for each image, with all captions as its answers."""

    name = "captions"
    endings = (".json",)
    form = (
        'a JSON file of captions: COCO\'s {"images": [...], "annotations": [{"caption": ...}]}, or Karpathy\'s split, '
        '{"images": [{"sentences": [{"raw": ...}]}]}'
    )

    def recognises(self, path: Path) -> bool:
        """By the names of fields at its beginning and at its end."""
        return super().recognises(path) and _holds_captions(path)

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """One table, of the task `caption`."""
        return [replace(table, task=CAPTION_TASK) for table in super().tables(path, settings)]

    def rows(self, path: Path, settings: DataSettings) -> Rows:  # noqa: ARG002
        """A row for each image."""
        return partial(_rows, path)


class CaptionFolder(Reader):
    """A folder of such files, with the split in their names, as COCO's `annotations`."""

    name = "folder of captions"
    form = "a folder of such files: captions_train2014.json and captions_val2014.json, or dataset_coco.json"

    def recognises(self, path: Path) -> bool:
        """By such files, if no other file could be data by its name."""
        if not path.is_dir():
            return False
        files = data_files(path)
        captions = self._captions(files)
        others = (file for file in files if file not in captions and not file.name.startswith(_BESIDE))
        return bool(captions) and not any(split_word(file.stem) for file in others)

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:
        """A table for each file."""
        by_split: dict[str, Path] = {}
        for file in self._captions(data_files(path)):
            split = standard_split(split_word(file.stem))
            other = by_split.setdefault(split, file)
            if other != file:
                raise _overlap(path, other, file)
        if "" in by_split and len(by_split) > 1:  # Karpathy's, which has all splits
            raise _overlap(path, *[*by_split.values()][:2])
        return [
            replace(table, split=split, named=split_word(file.stem), images=path)
            for split, file in by_split.items()
            for table in CaptionFile().tables(file, settings)
        ]

    def _captions(self, files: Sequence[Path]) -> list[Path]:
        return [file for file in files if CaptionFile().recognises(file)]


def _overlap(path: Path, one: Path, other: Path) -> DataError:
    return DataError(
        f"{path} has captions of the same split in {one.name} and {other.name}: name one file (--dataset {one}), or "
        "move the other"
    )


def _holds_captions(path: Path) -> bool:
    ends = ends_of(path)
    if not _START.match(ends) or not _LIST.search(ends) or _OF_VQA.search(ends):
        return False
    return bool(_OF_KARPATHY.search(ends) or (_OF_IMAGE.search(ends) and _OF_COCO.search(ends)))


def _rows(path: Path, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    files: dict[Any, Any] = {}
    captions: dict[Any, list[Any]] = {}
    found = 0
    for key, place, value in read_top(path):
        if key not in (_IMAGES, _ANNOTATIONS):
            continue
        found += 1
        if not isinstance(value, dict):
            refuse(DataError(f"{path}: {place}: it is {quoted(value)}, not an object"))
        elif "sentences" in value:
            yield place, _of_karpathy(value)
        elif key == _IMAGES and is_id(value.get("id")):
            files[value["id"]] = value.get("file_name")
        elif key == _ANNOTATIONS and is_id(value.get("image_id")):
            captions.setdefault(value["image_id"], []).append(value.get("caption"))
        else:
            needed = '"id" of an image' if key == _IMAGES else '"image_id" of a caption'
            refuse(DataError(f"{path}: {place}: it has no {needed}, an integer or a text; it has {', '.join(value)}"))
    for image_id, given in captions.items():
        if image_id in files:
            yield f"image {image_id}", _row(image_id, files[image_id], given)
        else:
            refuse(DataError(f"{path}: image {image_id}: it has captions, but is not in the list of images"))
    if bare := [image_id for image_id in files if image_id not in captions]:
        told = ", ".join(map(str, bare[:3]))
        refuse(DataError(f"{path}: {len(bare)} images have no captions (first {told}): leave out such images"))
    if not found:
        raise DataError(f"{path} holds no list of images with captions: {CaptionFile.form}")


def _of_karpathy(image: dict[str, Any]) -> dict[str, Any]:
    """The row of an image with its sentences; only COCO's have an id and a folder of their own."""
    sentences = image["sentences"]
    texts = (
        [one.get("raw") if isinstance(one, dict) else one for one in sentences] if isinstance(sentences, list) else []
    )
    name = "/".join(part for part in (image.get("filepath"), image.get("filename")) if isinstance(part, str) and part)
    split = image.get("split")
    row = _row(image.get("cocoid", image.get("imgid")), name or None, texts)
    return row | {"split": "train" if split == _REST else split}


def _row(image_id: Any, name: Any, captions: list[Any]) -> dict[str, Any]:
    texts = [text.strip() if isinstance(text, str) else text for text in captions]
    texts = [text for text in texts if text]
    about = {"question_id": image_id, "image_id": image_id, "image": name, "question": CAPTION_QUESTION}
    return about | {"answers": texts, "answer": texts[0] if texts else None}
