"""Queries that belong to no dataset: pairs that were typed, and lines of a file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from icdsel.choosing.selector import Selector, query_id
from icdsel.data.image_marks import place_images
from icdsel.data.images import ImageError
from icdsel.errors import DataError, SettingsError
from icdsel.records import Example
from icdsel.records.values import is_id
from icdsel.store.json_reading import read_lines

_T = TypeVar("_T")


def typed_queries(selector: Selector, images: Sequence[Path], questions: Sequence[str]) -> list[Example]:
    """The queries of `--image` and `--question`: a question for each image, or one for all.

    Raises:
        SettingsError: Their numbers do not fit.
        DataError: An image cannot be read.
    """
    if not images or not questions or (len(questions) not in (1, len(images)) and len(images) != 1):
        raise SettingsError(
            f"{len(images)} --image and {len(questions)} --question: give one question for each image, one question "
            "for all images, or several questions about one image"
        )
    count = max(len(images), len(questions))
    pairs = zip(_each(images, count), _each(questions, count), strict=True)
    return [_query(selector, image, question) for image, question in pairs]


def queries_of_file(selector: Selector, path: Path) -> list[Example]:
    """The queries of a file of JSON lines.

    A line has `image` (a path, relative to the file, or a list of them) and `question`, in which marks such as
    `<image>` may place several images, and maybe `options` and `question_id`.

    Raises:
        DataError: The file or an image cannot be read, or a line lacks something.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: --queries takes JSON lines with image and question")
    queries: list[Example] = []
    for place, line in read_lines(path, whole_texts=True):
        try:
            queries.append(_of_line(selector, path.parent, line))
        except ValueError as error:
            raise DataError(f"{path}, {place}: {error}") from None
    if not queries:
        raise DataError(f"{path} is empty: it should have a line for each query")
    ids = [query.question_id for query in queries]
    if len(set(ids)) < len(ids):
        twice = next(one for place, one in enumerate(ids) if one in ids[:place])
        raise DataError(f"{path} has the query {twice!r} twice: give each line a question_id of its own")
    return queries


def _each(given: Sequence[_T], count: int) -> Sequence[_T]:
    return list(given) * count if len(given) == 1 else given


def _of_line(selector: Selector, folder: Path, line: Any) -> Example:
    if not isinstance(line, dict):
        raise ValueError("it is not an object")
    question, own, options = line.get("question"), line.get("question_id", line.get("id")), line.get("options", [])
    given = line.get("images", line.get("image"))
    images: list[Any] = given if isinstance(given, list) else [given]
    if not images or not all(isinstance(image, str) and image for image in images):
        raise ValueError('it has no "image", the path of a file')
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError('its "options" are not a list of texts')
    if not isinstance(question, str):
        raise ValueError('it has no "question"')
    if own is not None and not is_id(own):
        raise ValueError('its "question_id" is no id: an integer, or a short text')
    try:
        query = _with_more(selector, [folder / image for image in images], question, tuple(options))
    except DataError as error:
        raise ValueError(str(error)) from None
    if options and (fault := selector.prompts.task.fault(query)) is not None:
        raise ValueError(fault)
    return query if own is None else replace(query, question_id=own)


def _with_more(selector: Selector, images: Sequence[Path], question: str, options: tuple[str, ...]) -> Example:
    """A query with all of its images and options, on which its id depends."""
    if len(images) == 1 and not options:
        return _query(selector, images[0], question)
    placed, _, order = place_images(question, (), range(1, len(images) + 1))
    parts = [_query(selector, images[number - 1], placed) for number in order]
    return replace(
        parts[0],
        question_id=query_id(*(str(part.question_id) for part in parts), *options),
        more_images=tuple(part.image for part in parts[1:]),
        options=options,
    )


def _query(selector: Selector, image: Path, question: str) -> Example:
    try:
        return selector.query(selector.hold(image), question)
    except ImageError as error:
        raise DataError(str(error)) from None
