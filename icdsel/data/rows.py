"""Rows of a dataset become examples, whatever kind of file they come from."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icdsel.data.choices import Choices
from icdsel.data.columns import Columns
from icdsel.data.image_marks import place_images
from icdsel.data.image_places import ImagePlaces, id_of_several
from icdsel.data.parsing import (
    Record,
    ShownAnswer,
    Texts,
    as_text,
    has_value,
    id_of,
    quoted,
    refuse_repeated,
    text_of,
)
from icdsel.data.question_types import types_of
from icdsel.data.row_answers import read_answers
from icdsel.data.split_names import standard_split
from icdsel.data.stored_images import content_of
from icdsel.errors import DataError, Refuse
from icdsel.records import Example, QuestionId
from icdsel.records.values import is_id
from icdsel.tasks import TASKS

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
        task: The task that the form of the data implies; "" if it implies none.
        options: The options of all rows without their own, such as the classes of a dataset.
        question: The question of all rows without their own; "" if they need one.
    """

    path: Path
    rows: Rows
    images: Path
    split: str = ""
    named: str = ""
    stored: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    task: str = ""
    options: tuple[str, ...] = ()
    question: str = ""


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
        task: The task that the dataset says it is for; "" if it says none.
    """

    splits: dict[str, list[Example]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    numbered: Counter[str] = field(default_factory=Counter)
    unlabelled: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    task: str = ""


class ImagelessError(DataError):
    """`count` rows of a table have no image."""

    def __init__(self, first: str, count: int) -> None:
        more = f" ({count} rows have none)" if count > 1 else ""
        super().__init__(f"{first}{more}. A question is about at least one image: leave out those about text alone")
        self.count = count


class _NoImageError(ValueError):
    """A row has no image."""


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
    * `image`: a path (`image_places.ImagePlaces`) or an encoded image, or several in a list, or in the columns
      `image_1`, `image_2`, ...; or in its place `image_id`, from which the file's name follows
    * `question`: a text, with or without marks of its images (`image_marks`); `hint`: a text that stands in front of it
    * `answers`: texts, numbers, or objects with `answer` and optionally `raw_answer` as in VQA; or a single one
    * `answer`: what a demonstration shows, by default the most common answer; without `answers`, the only answer
    * `image_id`: an integer or a text, by default derived from the image's path
    * `question_type`, `answer_type`: texts, by which a comparison's page splits its scores
    * `split`: "train" (the default) or another name of a split
    * `options`: the answers to choose from, also in the columns `A`, `B`, ...; then an answer is one of them
      (`choices.Choices`)
    * `pool`: ids of the training examples that demonstrations of this query are chosen from
    * `task`: the name of a task, the same in all rows

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
        try:
            rows.tell_task(table.task)
        except ValueError as error:
            refuse(DataError(f"{table.path}: {error}"))
        images = places(table)
        columns = rows.columns = usual if table.stored else own
        rows.classes = table.options
        imageless: list[str] = []
        for place, record in table.rows(refuse):
            question_id: QuestionId | None = None
            try:
                for mapped in columns.records(record):
                    if table.options:
                        mapped.setdefault("options", table.options)
                    if table.question:
                        mapped.setdefault("question", table.question)
                    question_id = rows.id_of(mapped, record, table, place)
                    split = rows.split_of(mapped, table)
                    if wanted in (None, split):
                        example = rows.example(question_id, split, mapped, record, images)
                        reading.splits.setdefault(split, []).append(example)
            except ValueError as error:
                named = "" if question_id is None else f" (question {question_id})"
                told = f"{table.path}: {place}{named}: {error}"
                if isinstance(error, _NoImageError):
                    imageless.append(told)
                else:
                    refuse(DataError(told))
        if imageless:
            refuse(ImagelessError(imageless[0], len(imageless)))
        reading.columns |= table.columns if table.stored else own.used
    for split, examples in reading.splits.items():
        path = tables[0].path if len(tables) == 1 else tables[0].images
        where = path if wanted else f"{path} ({split})"
        refuse_repeated(where, (example.question_id for example in examples), refuse)
    return reading


class _RowReader:
    """Makes examples of rows, and counts in a `Reading` what it had to make up."""

    def __init__(self, reading: Reading, columns: Columns, shown: ShownAnswer) -> None:
        self._reading, self._own, self._shown = reading, columns, shown
        self.columns = columns  # of the table that is being read
        self.classes: tuple[str, ...] = ()  # the options of that table
        self._texts = Texts()
        self._numbers: Counter[str] = Counter()
        self._given_options: Any = None  # of the row before
        self._choices: Choices | None = None
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

    def tell_task(self, task: str) -> None:
        """Keeps the task that a table or a row says.

        Raises:
            ValueError: Another one is known.
        """
        if task and (known := self._reading.task) and known != task:
            raise ValueError(f"its task is {quoted(task)}, that of rows before it {quoted(known)}: a dataset has one")
        self._reading.task = self._reading.task or task

    def example(self, question_id: QuestionId, split: str, mapped: Record, record: Any, images: ImagePlaces) -> Example:
        """The row as an example of a split."""
        if mapped.get("question") is None:
            raise ValueError(self.columns.missing("question", record))
        given = self._given_images(mapped, record)
        self._read_task(mapped)
        choices = self._choices_of(mapped)
        found = read_answers(mapped, choices, self._shown, self._texts)
        if not found.references and split == "train":
            raise ValueError(self._unanswered(mapped, record))
        question, options = self._question(mapped), found.options
        told: dict[str, str] = {}  # options that named images, in words
        if given:
            question, words, order = place_images(question, choices.marked if choices else (), [*given])
            if words:
                told, options = dict(zip(options, words, strict=True)), words
            shown = [self._image(given[number], images) for number in order]
            image_id = id_of_several([image_id for _, image_id in shown])
            if mapped.get("image_id") is not None:
                image_id = id_of(mapped, "image_id")
        else:
            image_id = id_of(mapped, "image_id")
            shown = [(images.with_id(image_id, split) or images.named(f"{image_id}.jpg")[0], image_id)]
        question_type, answer_type = types_of(mapped)
        example = Example(
            question_id=question_id,
            image_id=image_id,
            image=shown[0][0],
            question=question,
            answer=told.get(found.shown, found.shown),
            answers=tuple([told.get(answer, answer) for answer in found.references]),
            raw_answers=found.raw,
            question_type=question_type,
            answer_type=answer_type,
            more_images=tuple([image for image, _ in shown[1:]]),
            options=options,
            pool=self._pool(mapped),
        )
        self._reading.numbered[split] += mapped.get("question_id") is None
        self._reading.unlabelled[split] += not found.references
        return example

    def _choices_of(self, mapped: Record) -> Choices | None:
        """The row's options. They are validated once where many rows have them, as the classes of a dataset."""
        given = mapped.get("options")
        if not has_value(given):
            return None
        if given is not self._given_options:
            self._choices = Choices(given, self._texts, letters=given is not self.classes)
            self._given_options = given
        return self._choices

    def _question(self, mapped: Record) -> str:
        question, hint = text_of(mapped, "question", self._texts), mapped.get("hint")
        if not has_value(hint) or (isinstance(hint, str) and not hint.strip()):
            return question
        return text_of({"question": f"{text_of(mapped, 'hint', self._texts)}\n{question}"}, "question", self._texts)

    def _given_images(self, mapped: Record, record: Any) -> dict[int, Any]:
        """The images that the row gives, by number; empty if it has an `image_id` alone."""
        given = mapped.get("image")
        if isinstance(given, list):
            held = {number: image for number, image in enumerate(given, 1) if has_value(image)}
        else:
            held = {} if as_text(given) is None else {1: given}
        if not held and mapped.get("image_id") is None:
            raise _NoImageError(self.columns.missing("image", record))
        return held

    def _image(self, given: Any, images: ImagePlaces) -> tuple[Path, QuestionId]:
        if (content := content_of(given)) is not None:
            return images.contained(content)
        if isinstance(given, dict) and not given.get("bytes"):  # {"bytes": null, "path": "a.jpg"}
            given = given.get("path", given)
        return images.named(text_of({"image": given}, "image", self._texts))

    def _pool(self, mapped: Record) -> tuple[QuestionId, ...] | None:
        given = mapped.get("pool")
        if as_text(given) is None or given == "":
            return None
        if not isinstance(given, list) or not given or not all(map(is_id, given)):
            raise ValueError(
                f'its "pool" is {quoted(given)}: a pool is a list of ids of training examples, or null; --columns '
                "pool= ignores pools"
            )
        if len({*map(str, given)}) < len(given):
            raise ValueError(f'its "pool" names an example twice: {quoted(given)}')
        return tuple(given)

    def _read_task(self, mapped: Record) -> None:
        """Keeps the row's task. A usual column may hold other things, as kinds of questions in ScienceQA."""
        given = mapped.get("task")
        if has_value(given) and (self._own.is_chosen("task") or (isinstance(given, str) and given in TASKS)):
            self.tell_task(text_of(mapped, "task", self._texts))

    def _unanswered(self, mapped: Record, record: Any) -> str:
        given = mapped.get("answers")
        wrong = self.columns.missing("answers", record) if given is None else f'its "answers" are {quoted(given)}'
        return (
            f"{wrong}: at least one is needed in the training split. A question that is only to be answered "
            'belongs to another split, such as "split": "test"'
        )
