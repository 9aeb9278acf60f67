"""Reads datasets as examples: the bundled world, OK-VQA and VQAv2, JSON Lines files, datasets on the hub."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from icdsel.data import hub as hub_data
from icdsel.data.vqa_files import read_every_split, read_json_lines, read_official, read_preprocessed, refuse_repeated
from icdsel.data.world import write_world
from icdsel.errors import DataError, Refuse, stop
from icdsel.records import Example, QuestionId, id_order
from icdsel.settings.presets import WORLD
from icdsel.settings.tables import DataSettings
from icdsel.store.slot import find_or_make

__all__ = ["DATASETS", "JSON_LINES", "Split", "files_of", "load_every_split", "load_split"]

JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class SplitFiles:
    """The names of a split's files in VQA's official format.

    Attributes:
        questions: The file of questions.
        annotations: The file of annotations.
        image_folder: The folder of the images.
        image: The file name of an image, to be formatted with `image_id`.
        preprocessed: The single file that Lever-Plus creates from questions and annotations; "" if it creates none.
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
            f"vqav2_mscoco_{name}2014.json",  # OK-VQA's has this name too
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
"""The datasets that can be selected by name, and their splits."""


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
            self._rows_of_image.setdefault(example.image, []).append(row)

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

    `settings.dataset` is a name in `DATASETS`, the path of a JSON Lines file (`vqa_files.read_json_lines` describes the
    format), or `hub:owner/name` (`hub.fetch_split`). The world is created if it is missing. OK-VQA and VQAv2 are read
    from their official files, or else from the single file that Lever-Plus creates from them.

    Args:
        settings: The dataset, where it is, and which answers demonstrations show.
        split: "train" or "validation"; some datasets also have "tuning" or "test".

    Raises:
        DataError: The dataset or split is unknown, or files are missing, damaged or do not match.
    """
    if settings.dataset.startswith(hub_data.PREFIX):
        path = hub_data.fetch_split(settings.dataset, split, settings.data_dir)
        return Split(split, read_json_lines(path, split, path.parent, settings.shown_answer))
    if settings.dataset.endswith(JSON_LINES):
        path = _json_lines_file(settings)
        return Split(split, read_json_lines(path, split, settings.image_dir or path.parent, settings.shown_answer))
    return Split(split, _named(settings, split))


def load_every_split(settings: DataSettings, refuse: Refuse) -> dict[str, list[Example]]:
    """Reads every readable split of a dataset: its examples, sorted by question_id.

    Args:
        settings: As for `load_split`.
        refuse: Called with every error. If it returns, an invalid record is skipped (examples with repeated
            question_ids are kept), and a split that cannot be read is missing from the result.
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
    return {name: _in_order(examples) for name, examples in splits.items()}


def _in_order(examples: Iterable[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: id_order(example.question_id))


def _named(settings: DataSettings, split: str, refuse: Refuse = stop) -> list[Example]:
    """Reads a split of a dataset in `DATASETS`."""
    if settings.dataset not in DATASETS:
        raise DataError(
            f"unknown dataset {settings.dataset!r}: choose one of {', '.join(DATASETS)}, a JSON Lines file "
            f"(path/my-set{JSON_LINES}) or a dataset on the hub ({hub_data.PREFIX}owner/name)"
        )
    splits = DATASETS[settings.dataset]
    if split not in splits:
        raise DataError(f"{settings.dataset} has no split {split!r}, only {', '.join(splits)}")
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
    """The existing files of a split in `DATASETS`: VQA's two files, else Lever-Plus's single file, else none."""
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
    """The folders that may hold Lever-Plus's file."""
    # The dataset's own folders come first, as the files of all datasets have the same name.
    name, base = settings.dataset, settings.data_dir
    return [base / name / f"{name}_hf", base / f"{name}_hf", base / name, base]


def _missing(settings: DataSettings, split: str, files: SplitFiles, folder: Path) -> DataError:
    missing = [path for path in (folder / files.questions, folder / files.annotations) if not path.is_file()]
    found = sorted(path.name for path in folder.glob("*"))[:8] if folder.is_dir() else []
    if settings.dataset == WORLD:
        return DataError(
            f"the bundled world is incomplete. Missing: {', '.join(map(str, missing))}. Delete {folder}, and it will "
            "be created again."
        )
    instead = ""
    if files.preprocessed:
        below = ", ".join(str(place) for place in _preprocessed_folders(settings))
        instead = f"Lever-Plus's {files.preprocessed} is in none of {below}. "
    return DataError(
        f"{settings.dataset} ({split}) is incomplete. Missing: {', '.join(map(str, missing))}. "
        f"{folder} {'holds ' + ', '.join(found) if found else 'is empty or not a folder'}. {instead}"
        f"Put the official files there, or name their folders: --data-dir FOLDER --image-dir FOLDER. "
        f"Without real data, `--dataset {WORLD}` (the default) works on any machine."
    )


def _image_of(settings: DataSettings, folder: Path, files: SplitFiles) -> Callable[[int], Path]:
    """Returns a function from an image_id to the image's path; it always returns the same object for the same image."""
    bases = [settings.image_dir] if settings.image_dir else [folder, settings.data_dir]
    places = [base / below / files.image_folder for base in bases for below in ("", "mscoco2014", "mscoco/mscoco2014")]
    images = next((place for place in places if place.is_dir()), bases[0])
    return cache(lambda image_id: images / files.image.format(image_id=image_id))


def _json_lines_file(settings: DataSettings) -> Path:
    """The file at the given path, else the one in the data folder."""
    places = list(dict.fromkeys((Path(settings.dataset), settings.data_dir / settings.dataset)))
    for place in places:
        if place.is_file():
            return place
    folder = places[0].parent
    found = sorted(path.name for path in folder.glob(f"*{JSON_LINES}"))[:8] if folder.is_dir() else []
    held = ", ".join(found) or f"no {JSON_LINES} file"
    missing = f"neither {places[0]} nor {places[1]} exists" if len(places) > 1 else f"{places[0]} does not exist"
    raise DataError(f"{missing}. {folder.resolve()} holds {held}. Give its path: --dataset FILE{JSON_LINES}")
