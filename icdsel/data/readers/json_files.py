"""Reader of JSON files: lists of records, alone or in an object, by split or by id; VQA's questions and annotations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from icdsel.data.columns import USUAL
from icdsel.data.readers.base import FileReader
from icdsel.data.rows import Rows
from icdsel.data.split_names import SPLITS, standard_split
from icdsel.errors import DataError, Refuse
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_top

_ABOUT = {"info", "license", "licenses", "categories"}
_QUESTIONS, _ANNOTATIONS, _IMAGES = "questions", "annotations", "images"


class JsonFile(FileReader):
    """A JSON file with a list of records."""

    name = "JSON"
    endings = (".json",)
    form = (
        'a JSON file (.json): a list of objects, also as {"data": [...]} or by split as {"train": [...], '
        '"validation": [...]}, or VQA\'s {"questions": [...], "annotations": [...]}'
    )

    def rows(self, path: Path, settings: DataSettings) -> Rows:
        """Each object in its lists is a row; questions and annotations are joined."""
        named = settings.columns_by_field.get("question")
        return lambda refuse: _rows(path, named, refuse)


def _rows(path: Path, question: str | None, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    asks = {question} if question else {*USUAL["question"], "conversations", "messages"}
    questions: dict[Any, dict[str, Any]] = {}
    annotations: list[tuple[str, dict[str, Any]]] = []
    names_of_images: dict[Any, str] = {}
    found, others = 0, dict[str, None]()
    for key, place, value in read_top(path):
        others[key] = None
        if key in _ABOUT:
            continue
        if not isinstance(value, dict):
            if not key or key in SPLITS or standard_split(key) in SPLITS:
                refuse(DataError(f"{path}: {place}: it is not an object"))
            continue
        if key == _IMAGES and "file_name" in value and "id" in value:
            names_of_images[_hashable(value["id"])] = value["file_name"]
        elif key == _QUESTIONS and "question_id" in value and not asks.isdisjoint(value):
            questions[_hashable(value["question_id"])] = value
        elif key == _ANNOTATIONS and asks.isdisjoint(value):
            annotations.append((place, value))
        elif key and place == f'"{key}"' and not asks.isdisjoint(value):  # by id, as GQA's questions
            found += 1
            yield place, {"question_id": key} | value
        else:
            found += 1
            split = {"split": key} if standard_split(key) in SPLITS and "split" not in value else {}
            yield place, split | _with_image(value, names_of_images)
    for place, annotation in annotations:
        found += 1
        known = questions.pop(_hashable(annotation.get("question_id")), None)
        if known is None:
            refuse(DataError(f"{path}: {place}: there is no question with its question_id"))
        else:
            yield place, _with_image(known | annotation, names_of_images)
    for number, record in enumerate(questions.values(), 1):  # without an annotation: to be answered, not scored
        found += 1
        yield f"question {number} without an annotation", _with_image(record, names_of_images)
    if not found:
        held = f" (at its top level there are: {', '.join(name[:40] for name in [*others][:8])})" if any(others) else ""
        raise DataError(f"{path} holds no list of objects{held}: {JsonFile.form}")


def _with_image(record: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """The record with the file name of its image, if a list of images says it."""
    name = names.get(_hashable(record.get("image_id")))
    return {**record, **({"image": name} if name is not None and "image" not in record else {})}


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str) else repr(value)
