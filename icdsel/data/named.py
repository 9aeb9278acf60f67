"""The datasets that can be selected by name: the bundled worlds, OK-VQA and VQAv2, from their official files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from icdsel.console import note
from icdsel.data.image_places import ImagePlaces
from icdsel.data.vqa_files import read_official, read_preprocessed, read_questions
from icdsel.data.world import write_test_split, write_world
from icdsel.errors import DataError, Refuse, stop
from icdsel.records import Example
from icdsel.settings.presets import WORLD
from icdsel.settings.tables import DataSettings
from icdsel.settings.worlds import difficulty_of, is_world, world_folder, world_names
from icdsel.store.slot import find_or_make


@dataclass(frozen=True)
class SplitFiles:
    """The names of a split's files in VQA's official format.

    Attributes:
        questions: The file of questions.
        annotations: The file of annotations; "" if there are none, as of a test split: its queries are not scored.
        image_folder: The folder of the images.
        image: The file name of an image, to be formatted with `image_id`.
        preprocessed: The single file that Lever-Plus creates from questions and annotations; "" if it creates none.
        part: The file of some of the questions, which is read where `questions` is missing; "" if there is none.
    """

    questions: str
    annotations: str
    image_folder: str
    image: str
    preprocessed: str = ""
    part: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files that there may be."""
        return tuple(filter(None, (self.questions, self.annotations, self.preprocessed, self.part)))


def _coco(prefix: str) -> dict[str, SplitFiles]:
    """The splits of 2014, by which both datasets are scored."""
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
    }
    | {"test": SplitFiles("questions_test.json", "", "images/test", "{image_id:012d}.png")},
    "okvqa": _coco(""),
    "vqav2": _coco("v2_")
    | {
        "test": SplitFiles(
            "v2_OpenEnded_mscoco_test2015_questions.json",
            "",
            "test2015",
            "COCO_test2015_{image_id:012d}.jpg",
            part="v2_OpenEnded_mscoco_test-dev2015_questions.json",
        )
    },
}
"""The datasets that can be selected by name, and their splits; all worlds have those of `world`."""

_BELOW = ("", "mscoco2014", "mscoco/mscoco2014")  # folders in which image folders may be


def dataset_names() -> list[str]:
    """The names to choose from, those of worlds without numbers."""
    return [*world_names(), *(name for name in DATASETS if name != WORLD)]


def splits_of(dataset: str) -> dict[str, SplitFiles]:
    """The splits of a dataset that can be selected by name; empty if it is not one."""
    return DATASETS.get(WORLD if is_world(dataset) else dataset, {})


def is_missing_world(settings: DataSettings) -> bool:
    """Whether the dataset is a bundled world that is created when it is first read."""
    last = _own_folder(settings) / DATASETS[WORLD]["validation"].annotations
    return is_world(settings.dataset) and not last.exists()


def read_named(settings: DataSettings, split: str, refuse: Refuse = stop) -> list[Example]:
    """Reads a split of a dataset that has a name. A bundled world is created if it is missing.

    Raises:
        DataError: There is no such split, or files are missing, damaged or do not match.
    """
    splits = splits_of(settings.dataset)
    if split not in splits:
        raise DataError(
            f"{settings.dataset} has no split {split!r}, only {', '.join(splits)}. Other questions are read from files "
            f"of your own with {split} in their names: --dataset FOLDER"
        )
    files = splits[split]
    own, of_world = _own_folder(settings), is_world(settings.dataset)
    if of_world:
        _draw_missing(settings, files)
    paths = files_of(settings, split)
    if not paths:
        raise _missing(settings, split, files, own if own.is_dir() or of_world else settings.data_dir)
    images = _image_of(settings, paths[0].parent, files)
    if not files.annotations:
        if paths[0].name == files.part:
            note(
                f"{settings.dataset} ({split}): {files.questions} is missing, so {paths[0]} is read, which has a part "
                "of its questions. An evaluation server that wants all of them rejects answers to a part."
            )
        return read_questions(paths[0], images, refuse)
    if len(paths) == 1:
        return read_preprocessed(*paths, settings.dataset, images, settings.shown_answer, refuse)
    return read_official(*paths, images, settings.shown_answer, refuse)


def files_of(settings: DataSettings, split: str) -> tuple[Path] | tuple[Path, Path] | tuple[()]:
    """The existing files of a named dataset's split: VQA's two files, else Lever-Plus's single file, else none."""
    files = splits_of(settings.dataset)[split]
    own = _own_folder(settings)
    folders = [own] if is_world(settings.dataset) else [own, settings.data_dir]
    if not files.annotations:
        alone = [folder / name for name in (files.questions, files.part) if name for folder in folders]
        return next(((path,) for path in alone if path.is_file()), ())
    for folder in folders:
        official = folder / files.questions, folder / files.annotations
        if all(path.is_file() for path in official):
            return official
    for folder in _preprocessed_folders(settings) if files.preprocessed else ():
        path = folder / files.preprocessed
        if path.is_file():
            return (path,)
    return ()


def _draw_missing(settings: DataSettings, files: SplitFiles) -> None:
    """Draws a world that is missing, and its test split if that is asked for."""
    folder, difficulty = _own_folder(settings), difficulty_of(settings.dataset)
    find_or_make(
        folder,
        "the bundled world",
        lambda: not is_missing_world(settings) or None,
        lambda: write_world(folder, difficulty),
    )
    if not files.annotations:
        questions = folder / files.questions
        find_or_make(
            folder,
            "the bundled world",
            lambda: questions.is_file() or None,
            lambda: write_test_split(folder, difficulty),
        )


def _own_folder(settings: DataSettings) -> Path:
    name = settings.dataset
    return settings.data_dir / (world_folder(name) if is_world(name) else name)


def _preprocessed_folders(settings: DataSettings) -> list[Path]:
    """The folders that may hold Lever-Plus's file."""
    # The dataset's own folders come first, as the files of all datasets have the same name.
    name, base = settings.dataset, settings.data_dir
    return [base / name / f"{name}_hf", base / f"{name}_hf", base / name, base]


def _missing(settings: DataSettings, split: str, files: SplitFiles, folder: Path) -> DataError:
    wanted = [folder / name for name in (files.questions, files.annotations) if name]
    missing = [path for path in wanted if not path.is_file()]
    found = sorted(path.name for path in folder.glob("*"))[:8] if folder.is_dir() else []
    if is_world(settings.dataset):
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
        "Put the official files there, or name their folders: --data-dir FOLDER --image-dir FOLDER. Files of the same "
        "form with other names are read from a folder: --dataset FOLDER. "
        f"Without real data, `--dataset {WORLD}` (the default) works on any machine."
    )


def _image_of(settings: DataSettings, folder: Path, files: SplitFiles) -> Callable[[int], Path]:
    """Returns a function from an image_id to the image's path; it always returns the same object for the same image.

    Images that are not in a folder of the usual name are looked for below the image folder by their number, as in
    COCO's layout of 2017 (`train2017/000000000042.jpg`).
    """
    bases = [settings.image_dir] if settings.image_dir else [folder, settings.data_dir]
    places = [base / below / files.image_folder for base in bases for below in _BELOW]
    images = next((place for place in places if place.is_dir()), None)
    if images is None and settings.image_dir and settings.image_dir.is_dir():
        found = ImagePlaces(settings.image_dir, search=settings.image_dir)
        hint = files.image_folder.rstrip("0123456789")
        return cache(
            lambda image_id: found.with_id(image_id, hint) or found.folder / files.image.format(image_id=image_id)
        )
    usual = images or bases[0]
    return cache(lambda image_id: usual / files.image.format(image_id=image_id))


def image_layout(settings: DataSettings) -> str:
    """Where the images of a dataset that has a name are looked for, as a sentence."""
    files = splits_of(settings.dataset)["train"]
    base = settings.image_dir or settings.data_dir
    usual = base / files.image_folder / files.image.format(image_id=42)
    return (
        f"Images of {settings.dataset} are looked for as {usual}, or with --image-dir anywhere below it by their "
        f"number, as {base / 'train2017' / f'{42:012d}.jpg'}."
    )
