"""Reads datasets as examples: those known by name, people's own files and folders, datasets on the hub."""

import difflib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data import hub as hub_data
from icdsel.data.image_places import ImagePlaces
from icdsel.data.named import dataset_names, files_of, image_layout, read_named, splits_of
from icdsel.data.own_pools import require_known
from icdsel.data.parsing import refuse_repeated
from icdsel.data.readers import reader_of, unrecognised
from icdsel.data.readers.base import CLASS_QUESTION, CLASS_TASK
from icdsel.data.rows import Reading, Table, read_tables
from icdsel.data.validation_part import parted
from icdsel.errors import DataError, Refuse, stop
from icdsel.records import Example, QuestionId, id_order
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_lines

__all__ = [
    "Split",
    "files_of",
    "image_hint",
    "is_dataset",
    "load_split",
    "own_tables",
    "read_dataset",
]


class Split(Sequence[Example]):
    """The examples of one split, sorted by question_id: `split[row]` is an example, `row` maps question_ids to rows."""

    def __init__(self, name: str, examples: Iterable[Example]) -> None:
        self.name = name
        self._examples = _in_order(examples)
        self.row = {example.question_id: row for row, example in enumerate(self._examples)}
        if len(set(map(str, self.row))) < len(self._examples):
            refuse_repeated(name, (example.question_id for example in self._examples))
        self._rows_of_image: dict[Path, list[int]] = {}
        for row, example in enumerate(self._examples):
            for image in dict.fromkeys(example.images):
                self._rows_of_image.setdefault(image, []).append(row)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, row: Any) -> Any:
        return self._examples[row]

    def rows_of_image(self, image: Path) -> list[int]:
        """Rows of the examples that show `image`."""
        return self._rows_of_image.get(image, [])

    def by_id(self, question_id: QuestionId) -> Example:
        """The example with this question_id.

        Raises:
            KeyError: There is none.
        """
        return self._examples[self.row[question_id]]


def load_split(settings: DataSettings, split: str) -> Split:
    """Reads one split of a dataset. No image is opened.

    `settings.dataset` is a name (`named.splits_of`), the path of a file or folder that one of `readers.READERS`
    reads, or `hub:owner/name` (`hub.fetch_split`). A path that does not exist is looked up in the data folder. A
    bundled world is created if it is missing, and a dataset that contains its images is copied once (`stored_images`).

    Args:
        settings: The dataset, where it is, and which answers demonstrations show.
        split: "train" or "validation"; some datasets also have "tuning" or "test".

    Raises:
        DataError: The dataset or split is unknown, or files are missing, damaged or do not match.
    """
    reading = read_dataset(settings, split)
    if examples := reading.splits.get(split):
        return Split(split, examples)
    name, others = settings.dataset, [*reading.sizes]
    if not others:
        raise DataError(f"{name} is empty: it should contain one record per question")
    counted = (f"{other} ({reading.sizes[other]})" if reading.sizes[other] else other for other in others)
    remedy = f'Add "split": "{split}" to the rows that belong to it, or put them into a file with {split} in its name'
    if split == "validation":
        remedy += ". Or take a part of the training questions, by image: --validation-fraction 0.1"
    raise DataError(f"{name} has no examples of the split {split!r}, only of {', '.join(counted)}. {remedy}.")


def read_dataset(settings: DataSettings, wanted: str | None = None, refuse: Refuse = stop) -> Reading:
    """Reads a split of a dataset, or all of its splits, and what had to be made up for it.

    With `validation_fraction`, a part of the training questions is the validation split. If queries bring their own
    pools, the training split is read too, because these name its examples.

    Args:
        settings: As for `load_split`.
        wanted: The split; None for all.
        refuse: Called with every error. If it returns, an invalid record is skipped (examples with repeated
            question_ids are kept), and a split that cannot be read is missing from the result.

    Raises:
        DataError: As for `load_split`, and if the dataset has a validation split besides `validation_fraction`.
    """
    fraction = settings.validation_fraction
    if fraction is None or wanted not in (None, "train", "validation"):
        reading = _read(settings, wanted, refuse)
    else:
        reading = _read_parted(settings, fraction, wanted, refuse)
    queries = [example for split in reading.splits.values() for example in split if example.pool is not None]
    if queries:
        in_training = reading if "train" in reading.splits or wanted is None else read_dataset(settings, "train")
        known = {example.question_id for example in in_training.splits.get("train", ())}
        require_known(settings.dataset, queries, known, refuse)
    return reading


def _read_parted(settings: DataSettings, fraction: float, wanted: str | None, refuse: Refuse) -> Reading:
    """Reads a dataset whose validation split is a part of its training questions."""
    reading = _read(settings, wanted and "train", refuse)
    if "validation" in reading.sizes:
        raise DataError(
            f"{settings.dataset} has a validation split of its own: leave out --validation-fraction, which makes one "
            "of training questions"
        )
    train, validation = parted(reading.splits.get("train", []), fraction, settings.seed)
    reading.splits |= {"train": train, "validation": validation}
    reading.sizes |= {"train": len(train), "validation": len(validation)}
    return reading


def is_dataset(path: Path) -> bool:
    """Whether an existing path is a dataset that a reader recognises."""
    return reader_of(path) is not None


def own_tables(settings: DataSettings) -> Sequence[Table]:
    """The tables of people's own data; none of a dataset that has a name, or is on the hub.

    Raises:
        DataError: The path does not exist, or no reader recognises it.
    """
    if splits_of(settings.dataset) or settings.dataset.startswith(hub_data.PREFIX):
        return ()
    return _tables(settings, None, stop)[0]


def image_hint(settings: DataSettings) -> str:
    """Where the images of a dataset are looked for, as sentences for the error of images that are missing."""
    if splits_of(settings.dataset):
        return image_layout(settings)
    folder = settings.image_dir
    where = f"{folder} (--image-dir)" if folder else "the folder of the dataset; --image-dir names another folder"
    entries = folder.iterdir() if folder and folder.is_dir() else ()
    held = sorted(path.name + "/" * path.is_dir() for path in entries)
    holds = f" {folder} holds {', '.join(held[:8])}." if held else ""
    return f"Relative paths of images are looked up in {where}.{holds}"


def _read(settings: DataSettings, wanted: str | None, refuse: Refuse) -> Reading:
    try:
        if splits_of(settings.dataset):
            return _read_named(settings, wanted, refuse)
        tables, path = _tables(settings, wanted, refuse)
    except DataError as error:
        refuse(error)
        return Reading()
    places: dict[Path, ImagePlaces] = {}

    def places_of(table: Table) -> ImagePlaces:
        if table.images not in places:
            places[table.images] = _places(table, path, settings)
        return places[table.images]

    reading = Reading()
    try:
        reading = read_tables(tables, wanted, settings.columns_by_field, settings.shown_answer, places_of, refuse)
    except DataError as error:
        refuse(error)
    return _sorted(reading)


def _sorted(reading: Reading) -> Reading:
    reading.splits = {name: _in_order(examples) for name, examples in reading.splits.items()}
    return reading


def _in_order(examples: Iterable[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: id_order(example.question_id))


def _read_named(settings: DataSettings, wanted: str | None, refuse: Refuse) -> Reading:
    if settings.columns:
        raise DataError(f"--columns is for data of your own: the columns of {settings.dataset} are known")
    reading = Reading()
    for split, files in splits_of(settings.dataset).items():
        reading.sizes[split] += 0
        if wanted is None and not files.annotations and not files_of(settings, split):
            continue  # a test split, which few people have
        if wanted in (None, split):
            try:
                reading.splits[split] = read_named(settings, split, refuse)
            except DataError as error:
                refuse(error)
    if wanted and wanted not in reading.splits:
        read_named(settings, wanted)  # raises the error of an unknown split
    return _sorted(reading)


def _tables(settings: DataSettings, wanted: str | None, refuse: Refuse) -> tuple[Sequence[Table], Path]:
    """The tables of a dataset, and its path."""
    if settings.dataset.startswith(hub_data.PREFIX):
        tables = []
        for split in (wanted,) if wanted else ("train", "validation"):
            try:
                path = hub_data.fetch_split(settings.dataset, split, settings.data_dir, settings.columns_by_field)
                about = partial(Table, path, partial(read_lines, path), path.parent, split, split, stored=True)
                if classes := hub_data.classes_of(path):
                    about = partial(about, task=CLASS_TASK, options=classes, question=CLASS_QUESTION)
                tables.append(about())
            except DataError as error:
                refuse(error)
        return tables, settings.data_dir
    path = _path(settings)
    reader = reader_of(path)
    if reader is None:
        raise unrecognised(path)
    return reader.tables(path, settings), path


def _places(table: Table, path: Path, settings: DataSettings) -> ImagePlaces:
    if settings.dataset.startswith(hub_data.PREFIX):
        return ImagePlaces(table.images)
    folder = path if path.is_dir() else path.parent
    name = path.stem if path.is_file() else path.name
    copies = table.images if table.stored else settings.data_dir / "imported" / name / "images"
    if settings.image_dir is not None:
        return ImagePlaces(settings.image_dir, (table.images, folder), settings.image_dir, copies)
    return ImagePlaces(folder if table.stored else table.images, (table.images, folder), folder, copies)


def _path(settings: DataSettings) -> Path:
    """The dataset at the given path, else the one in the data folder."""
    places = list(dict.fromkeys((Path(settings.dataset), settings.data_dir / settings.dataset)))
    for place in places:
        if place.exists():
            return place
    folder = places[0].parent
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [entry.name for entry in entries if entry.is_file() and is_dataset(entry)]
    held = ", ".join(found[:8]) or "no dataset"
    close = difflib.get_close_matches(settings.dataset, dataset_names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    missing = f"neither {places[0]} nor {places[1]} exists" if len(places) > 1 else f"{places[0]} does not exist"
    raise DataError(
        f"{missing}.{hint} {folder.resolve()} holds {held}. Give the path of a file or folder (--dataset PATH), a name "
        f"({', '.join(dataset_names())}), or a dataset on the hub ({hub_data.PREFIX}owner/name)"
    )
