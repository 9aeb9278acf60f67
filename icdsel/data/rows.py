"""Rows of a dataset become examples, whatever kind of file they come from."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icdsel.data.columns import Columns
from icdsel.data.image_places import ImagePlaces
from icdsel.data.parsing import (
    Record,
    ShownAnswer,
    Texts,
    answers_of,
    id_of,
    majority_of,
    quoted,
    refuse_repeated,
    text_of,
)
from icdsel.data.question_types import types_of
from icdsel.data.split_names import standard_split
from icdsel.data.stored_images import content_of
from icdsel.errors import DataError, Refuse
from icdsel.records import Example, QuestionId

Rows = Callable[[Refuse], Iterator[tuple[str, Any]]]
"""Yields the place of each row in its file ("line 3") and the row; damaged rows go to the function that is given."""


@dataclass(frozen=True)
class Table:
    """Some rows of a dataset, such as a file.

    Attributes:
        path: The file, for messages.
        rows: Its rows.
        images: The folder that relative paths of images are relative to.
        split: The split that all of them belong to, by the file's name; "" if the rows say it (the default is "train").
        named: What the file calls that split.
        stored: Whether rows and the images in them are copies below `images`, so that the rows have the usual names.
        columns: Of copies, the column of each field that had another name.
    """

    path: Path
    rows: Rows
    images: Path
    split: str = ""
    named: str = ""
    stored: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Reading:
    """What was read of a dataset.

    Attributes:
        splits: The examples of each split that was read.
        sizes: The number of rows of each split; 0 for one that was not looked at.
        numbered: How many rows of each split have no id, so that they are numbered.
        unlabelled: How many rows of each split have no answer.
        columns: The column of each field that has another name.
        names: The name used here of each split that the dataset calls by another name.
    """

    splits: dict[str, list[Example]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    numbered: Counter[str] = field(default_factory=Counter)
    unlabelled: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def read_tables(
    tables: Sequence[Table],
    wanted: str | None,
    chosen: Mapping[str, str],
    shown: ShownAnswer,
    places: Callable[[Table], ImagePlaces],
    refuse: Refuse,
) -> Reading:
    """Reads the examples of the split `wanted`, or of all splits.

    A row has these fields, each in the column that `chosen` names or in one with a usual name (`columns.USUAL`):

    * `question_id`: an integer or a text, unique within its split. Without any ids, rows are numbered from 0, in the
      order of the files: over all rows of a file, or over those of a split where each split has its own files.
    * `image`: a path (`image_places.ImagePlaces`), or in its place `image_id`, from which the file's name follows
    * `question`: a text
    * `answers`: texts, numbers, or objects with `answer` and optionally `raw_answer` as in VQA; or a single one
    * `answer`: what a demonstration shows, by default the most common answer; without `answers`, the only answer
    * `image_id`: an integer or a text, by default derived from the image's path
    * `question_type`, `answer_type`: texts, by which a comparison's page splits its scores
    * `split`: "train" (the default) or another name of a split

    Rows without an answer are queries that can be answered but not scored; in the training split they are errors.

    Args:
        tables: The tables.
        wanted: The split; None for all.
        chosen: Columns by field.
        shown: The answer of demonstrations: as written ("raw") or as in the field `answer` ("stemmed").
        places: Finds the images of a table.
        refuse: Called with the error of each invalid row; if it returns, the row is skipped.

    Raises:
        DataError: A row is invalid, or a file is damaged.
    """
    own, usual = Columns(chosen), Columns({})
    reading = Reading()
    rows = _RowReader(reading, own, shown)
    for table in tables:
        if table.named and table.named != table.split:
            reading.names[table.named] = table.split
        if table.split and wanted not in (None, table.split):
            reading.sizes[table.split] += 0
            continue
        images = places(table)
        columns = rows.columns = usual if table.stored else own
        for place, record in table.rows(refuse):
            question_id: QuestionId | None = None
            try:
                for mapped in columns.records(record):
                    question_id = rows.id_of(mapped, record, table, place)
                    split = rows.split_of(mapped, table)
                    if wanted in (None, split):
                        example = rows.example(question_id, split, mapped, record, images)
                        reading.splits.setdefault(split, []).append(example)
            except ValueError as error:
                named = "" if question_id is None else f" (question {question_id})"
                refuse(DataError(f"{table.path}: {place}{named}: {error}"))
        reading.columns |= table.columns if table.stored else own.used
    for split, examples in reading.splits.items():
        path = tables[0].path if len(tables) == 1 else tables[0].images
        where = path if wanted else f"{path} ({split})"
        refuse_repeated(where, (example.question_id for example in examples), refuse)
    return reading


class _RowReader:
    """Makes examples of rows, and counts in a `Reading` what it had to make up."""

    def __init__(self, reading: Reading, columns: Columns, shown: ShownAnswer) -> None:
        self._reading, self._shown = reading, shown
        self.columns = columns  # of the table that is being read
        self._texts = Texts()
        self._numbers: Counter[str] = Counter()
        self._first: dict[str, tuple[bool, str]] = {}  # by split of the table: whether the first row has an id, where

    def id_of(self, mapped: Record, record: Any, table: Table, place: str) -> QuestionId:
        """The row's id, or its number if no row of the table's split has an id."""
        number = self._numbers[table.split]
        self._numbers[table.split] += 1
        has_id = mapped.get("question_id") is not None
        first, where = self._first.setdefault(table.split, (has_id, place))
        if has_id != first:
            difference = f"{self.columns.missing('question_id', record)}; {where} has one"
            if has_id:
                difference = f'it has a "question_id", and {where} has none'
            raise ValueError(f"{difference}. Give every row an id, or none: rows are numbered then (--columns id=)")
        return id_of(mapped, "question_id") if has_id else number

    def split_of(self, mapped: Record, table: Table) -> str:
        """The row's split, which is counted."""
        split = table.split
        if not split:
            given = "train" if mapped.get("split") is None else text_of(mapped, "split", self._texts)
            split = standard_split(given)
            if split != given:
                self._reading.names[given] = split
        self._reading.sizes[split] += 1
        return split

    def example(self, question_id: QuestionId, split: str, mapped: Record, record: Any, images: ImagePlaces) -> Example:
        """The row as an example of a split."""
        for name in ("question", "image"):
            if mapped.get(name) is None and not (name == "image" and mapped.get("image_id") is not None):
                raise ValueError(self.columns.missing(name, record))
        answers, raw_answers = self._answers(mapped, split, record)
        answer = _as_text(mapped.get("answer"))
        if isinstance(answer, list) and not _listed(mapped.get("answers")):  # then these are the answers
            answer = None
        if answer is not None:
            answer = text_of({"answer": answer}, "answer", self._texts)
        elif answers:
            answer = majority_of(answers, raw_answers, self._shown)
        image, image_id = self._image(mapped, split, images)
        question_type, answer_type = types_of(mapped)
        example = Example(
            question_id=question_id,
            image_id=image_id,
            image=image,
            question=text_of(mapped, "question", self._texts),
            answer=answer or "",
            answers=answers,
            raw_answers=raw_answers,
            question_type=question_type,
            answer_type=answer_type,
        )
        self._reading.numbered[split] += mapped.get("question_id") is None
        self._reading.unlabelled[split] += not answers
        return example

    def _image(self, mapped: Record, split: str, images: ImagePlaces) -> tuple[Path, QuestionId]:
        given = mapped.get("image")
        if given is None:
            image_id = id_of(mapped, "image_id")
            return images.with_id(image_id, split) or images.named(f"{image_id}.jpg")[0], image_id
        if isinstance(given, list):
            if len(given) != 1:
                raise ValueError(f"it has {len(given)} images: icdsel shows one image per question")
            given = given[0]
        if (content := content_of(given)) is not None:
            image, image_id = images.contained(content)
        else:
            if isinstance(given, dict) and not given.get("bytes"):  # {"bytes": null, "path": "a.jpg"}
                given = given.get("path", given)
            image, image_id = images.named(text_of({"image": given}, "image", self._texts))
        return image, image_id if mapped.get("image_id") is None else id_of(mapped, "image_id")

    def _answers(self, mapped: Record, split: str, record: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        given = mapped.get("answers")
        if listed := _listed(given) or _listed(mapped.get("answer")):
            return answers_of({"answers": listed}, self._texts)
        if split == "train":
            wrong = self.columns.missing("answers", record) if given is None else f'its "answers" are {quoted(given)}'
            raise ValueError(
                f"{wrong}: at least one is needed in the training split. A question that is only to be answered "
                'belongs to another split, such as "split": "test"'
            )
        return (), ()


def _as_text(value: Any) -> Any:
    """A number as text, as an answer may be one; None for NaN, as tables have where nothing is; the rest as it is."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _listed(given: Any) -> list[Any]:
    """Answers as a list of texts or objects, from a single one, numbers, or objects that are stored by columns."""
    if _as_text(given) is None or (isinstance(given, str) and not given.strip()):
        return []
    if isinstance(given, dict) and isinstance(texts := given.get("answer", given.get("text")), list):
        raw = given.get("raw_answer")
        if isinstance(raw, list) and len(raw) == len(texts):
            return [{"answer": one, "raw_answer": other} for one, other in zip(texts, raw, strict=True)]
        return texts
    return [_as_text(answer) for answer in (given if isinstance(given, list) else [given])]
