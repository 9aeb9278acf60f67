"""Files become examples: the bundled world, OK-VQA and VQAv2, files of JSON lines, datasets of the hub."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from icdsel.data import hub as hub_data
from icdsel.data.vqa_files import read_every_split, read_json_lines, read_official, read_preprocessed, refuse_repeated
from icdsel.data.world import write_world
from icdsel.errors import DataError, Refuse, stop
from icdsel.records import Example
from icdsel.settings.presets import WORLD
from icdsel.settings.tables import DataSettings
from icdsel.store.slot import find_or_make

__all__ = ["DATASETS", "JSON_LINES", "Split", "files_of", "load_every_split", "load_split"]

JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class SplitFiles:
    """Where the official form keeps a split; `image` is formatted with `image_id`.

    `preprocessed` is Lever-Plus's one file of the same (specification §1.1), "" where there is none.
    """

    questions: str
    annotations: str
    image_folder: str
    image: str
    preprocessed: str = ""


def _coco(prefix: str) -> dict[str, SplitFiles]:
    return {
        split: SplitFiles(
            f"{prefix}OpenEnded_mscoco_{name}2014_questions.json",
            f"{prefix}mscoco_{name}2014_annotations.json",
            f"{name}2014",
            f"COCO_{name}2014_{{image_id:012d}}.jpg",
            f"vqav2_mscoco_{name}2014.json",  # OK-VQA's is called so too
        )
        for split, name in (("train", "train"), ("validation", "val"))
    }


DATASETS: dict[str, dict[str, SplitFiles]] = {
    WORLD: {
        split: SplitFiles(
            f"questions_{split}.json", f"annotations_{split}.json", f"images/{split}", "{image_id:012d}.png"
        )
        for split in ("train", "tuning", "validation")
    },
    "okvqa": _coco(""),
    "vqav2": _coco("v2_"),
}
"""The datasets that are known by name, and their splits."""


class Split(Sequence[Example]):
    """The examples of one split, sorted by question_id; a row number is the rank by question_id."""

    def __init__(self, name: str, examples: Iterable[Example]) -> None:
        self.name = name
        self._examples = sorted(examples, key=lambda example: example.question_id)
        self.row = {example.question_id: row for row, example in enumerate(self._examples)}
        if len(self.row) < len(self._examples):
            refuse_repeated(name, (example.question_id for example in self._examples))
        self._rows_of_image: dict[Path, list[int]] = {}
        for row, example in enumerate(self._examples):
            self._rows_of_image.setdefault(example.image, []).append(row)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, row: Any) -> Any:
        return self._examples[row]

    def rows_of_image(self, image: Path) -> list[int]:
        """Rows of the examples that show `image`."""
        return self._rows_of_image.get(image, [])

    def by_id(self, question_id: int) -> Example:
        """The example with this question_id (KeyError where there is none)."""
        return self._examples[self.row[question_id]]


def load_split(settings: DataSettings, split: str) -> Split:
    """Read one split of the dataset that is set. No image is opened.

    `settings.dataset` is a name of `DATASETS`, the path of a file of JSON lines (`vqa_files.read_json_lines` says
    what stands in a line), or `hub:owner/name` (`hub_data.fetch_split`). The world is made where it is missing.
    OK-VQA and VQAv2 are read from their official files, else from the one file that Lever-Plus makes of them.

    Args:
        settings: Which dataset, where it lies, and what demonstrations answer.
        split: "train" or "validation"; some datasets have "tuning" or "test".

    Raises:
        DataError: An unknown dataset or split; files that are missing, damaged or do not belong together.
    """
    if settings.dataset.startswith(hub_data.PREFIX):
        path = hub_data.fetch_split(settings.dataset, split, settings.data_dir)
        return Split(split, read_json_lines(path, split, path.parent, settings.shown_answer))
    if settings.dataset.endswith(JSON_LINES):
        path = _json_lines_file(settings)
        return Split(split, read_json_lines(path, split, settings.image_dir or path.parent, settings.shown_answer))
    return Split(split, _named(settings, split))


def load_every_split(settings: DataSettings, refuse: Refuse) -> dict[str, list[Example]]:
    """All that can be read of a dataset, by split, sorted by question_id, as `load_split` reads each split.

    Args:
        settings: As for `load_split`.
        refuse: Gets every error: of single records, which are then left out (but for repeated question_ids), and
            of splits, which are then missing.
    """
    splits: dict[str, list[Example]] = {}
    try:
        if settings.dataset.endswith(JSON_LINES):
            path = _json_lines_file(settings)
            splits = read_every_split(path, settings.image_dir or path.parent, settings.shown_answer, refuse)
    except DataError as error:
        refuse(error)
    named = DATASETS.get(settings.dataset, () if settings.dataset.endswith(JSON_LINES) else ("train", "validation"))
    for split in named:
        try:
            if settings.dataset.startswith(hub_data.PREFIX):
                path = hub_data.fetch_split(settings.dataset, split, settings.data_dir)
                splits |= read_every_split(path, path.parent, settings.shown_answer, refuse)
            else:
                splits[split] = _named(settings, split, refuse)
        except DataError as error:
            refuse(error)
    return {name: sorted(examples, key=lambda example: example.question_id) for name, examples in splits.items()}


def _named(settings: DataSettings, split: str, refuse: Refuse = stop) -> list[Example]:
    """The examples of a split of one of `DATASETS`."""
    if settings.dataset not in DATASETS:
        raise DataError(
            f"unknown dataset {settings.dataset!r}: there are {', '.join(DATASETS)}, files of JSON lines "
            f"(path/my-set{JSON_LINES}) and datasets of the hub ({hub_data.PREFIX}owner/name)"
        )
    splits = DATASETS[settings.dataset]
    if split not in splits:
        raise DataError(f"{settings.dataset} has no split {split!r}: there are {', '.join(splits)}")
    files = splits[split]
    own = settings.data_dir / settings.dataset
    last = own / DATASETS[WORLD]["validation"].annotations
    if settings.dataset == WORLD:
        find_or_make(own, "the bundled world", lambda: last.exists() or None, lambda: write_world(own))
    paths = files_of(settings, split)
    if not paths:
        raise _missing(settings, split, files, own if own.is_dir() or settings.dataset == WORLD else settings.data_dir)
    images = _image_of(settings, paths[0].parent, files)
    if len(paths) == 1:
        return read_preprocessed(*paths, settings.dataset, images, settings.shown_answer, refuse)
    return read_official(*paths, images, settings.shown_answer, refuse)


def files_of(settings: DataSettings, split: str) -> tuple[Path] | tuple[Path, Path] | tuple[()]:
    """The files that a split of one of `DATASETS` is read from: VQA's two, else Lever-Plus's one, if they are there."""
    files = DATASETS[settings.dataset][split]
    own = settings.data_dir / settings.dataset
    for folder in [own] if settings.dataset == WORLD else [own, settings.data_dir]:
        official = folder / files.questions, folder / files.annotations
        if all(path.is_file() for path in official):
            return official
    for folder in _preprocessed_folders(settings) if files.preprocessed else ():
        path = folder / files.preprocessed
        if path.is_file():
            return (path,)
    return ()


def _preprocessed_folders(settings: DataSettings) -> list[Path]:
    """Where Lever-Plus's file may lie."""
    # The dataset's own folders come first: the file's name does not tell whose it is.
    name, base = settings.dataset, settings.data_dir
    return [base / name / f"{name}_hf", base / f"{name}_hf", base / name, base]


def _missing(settings: DataSettings, split: str, files: SplitFiles, folder: Path) -> DataError:
    missing = [path for path in (folder / files.questions, folder / files.annotations) if not path.is_file()]
    found = sorted(path.name for path in folder.glob("*"))[:8] if folder.is_dir() else []
    if settings.dataset == WORLD:
        return DataError(
            f"the bundled world is not complete. Missing: {', '.join(map(str, missing))}. Move {folder} away: it is "
            "made again."
        )
    instead = ""
    if files.preprocessed:
        below = ", ".join(str(place) for place in _preprocessed_folders(settings))
        instead = f"Nor is there Lever-Plus's {files.preprocessed} in any of {below}. "
    return DataError(
        f"{settings.dataset} ({split}) is not complete. Missing: {', '.join(map(str, missing))}. "
        f"{folder}: {'holds ' + ', '.join(found) if found else 'is empty or no folder'}. {instead}"
        f"Put the official files there or say where they are: --data-dir FOLDER --image-dir FOLDER. "
        f"Without real data, `--dataset {WORLD}` (the default) works on any machine."
    )


def _image_of(settings: DataSettings, folder: Path, files: SplitFiles) -> Callable[[int], Path]:
    """Says where the image of an image_id lies; the same path for the same image."""
    bases = [settings.image_dir] if settings.image_dir else [folder, settings.data_dir]
    places = [base / below / files.image_folder for base in bases for below in ("", "mscoco2014", "mscoco/mscoco2014")]
    images = next((place for place in places if place.is_dir()), bases[0])
    return cache(lambda image_id: images / files.image.format(image_id=image_id))


def _json_lines_file(settings: DataSettings) -> Path:
    """The file as it is named, else in the data folder."""
    places = list(dict.fromkeys((Path(settings.dataset), settings.data_dir / settings.dataset)))
    for place in places:
        if place.is_file():
            return place
    folder = places[0].parent
    found = sorted(path.name for path in folder.glob(f"*{JSON_LINES}"))[:8] if folder.is_dir() else []
    held = ", ".join(found) or f"no {JSON_LINES} file"
    raise DataError(
        f"there is no file {' nor '.join(map(str, places))}. {folder.resolve()} holds {held}. "
        f"Give its path: --dataset FILE{JSON_LINES}"
    )
