"""Checks a dataset: its records, questions, answers and images, and what its splits share."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from icdsel.check.answers import check_answers, check_lengths
from icdsel.check.classes import check_classes
from icdsel.check.findings import Checked, Findings, Kind
from icdsel.console import progress
from icdsel.data.datasets import read_dataset
from icdsel.data.images import ImageError, bands, open_image
from icdsel.data.own_pools import UnknownPoolError
from icdsel.data.parsing import RepeatedError, UnpairedError
from icdsel.data.rows import ImagelessError, Reading
from icdsel.errors import UserError
from icdsel.records import Example, Pointer, QuestionId, id_order
from icdsel.settings.loading import Settings
from icdsel.settings.tables import default_metric

_THREADS = min(8, os.cpu_count() or 1)  # each holds an image in memory
_SPLITS = 8  # how many earlier splits are searched for an image or question_id

UNREADABLE = Kind("records or files cannot be read", "every command stops at them: repair or remove them")
REPEATED_IDS = Kind("question_ids are repeated within a split", "give every question a unique id")
UNPAIRED = Kind(
    "questions have no annotation, or annotations no question",
    "every command stops at them: leave them out, or use two files that belong together",
)
NO_IMAGE = Kind("questions have no image", "every command stops at them: leave out questions about text alone")
UNKNOWN_POOL = Kind(
    "pools name examples that are not in the training split",
    "every command stops at them: name training examples, or ignore pools with --columns pool=",
)
EMPTY = Kind("it has no question", "every command stops at it: write one row per question, or name another file")
NO_SPLIT = Kind("the training split is missing", 'lines without "split" belong to it; other formats need its two files')
NO_VALIDATION = Kind(
    "the validation split is missing",
    "`icdsel infer` needs one: --validation-fraction 0.1 takes a part of the training questions, by image",
    "warning",
)
NUMBERED = Kind(
    "questions have no id: they are numbered from 0 in the order of the files",
    "name the column of ids (--columns id=COLUMN), if there is one; otherwise only append rows, as results name these",
    "warning",
)
UNLABELLED = Kind(
    "questions have no answers", "`icdsel infer` answers them, and `icdsel compare` leaves them out", "warning"
)
MISSING = Kind("images are missing", "copy them, name their folder (--image-dir), or use --on-image-error skip")
DAMAGED = Kind("images cannot be read", "copy or convert them, or use --on-image-error skip")
LEAK_ID = Kind(
    "images are in two splits, by image_id or path",
    "leave their questions out of one split; if they are different pictures, give them different image_ids",
)
LEAK_CONTENT = Kind(
    "images are in two splits under different names, by content", "leave their questions out of one of the splits"
)
TWINS = Kind(
    "images are identical to another one in their split",
    "pools exclude a query's own image by its path, but not its copies: give both questions the same path",
    "warning",
)
NO_QUESTION = Kind("questions are empty", "write the question, or leave the record out")
SAME_QUESTION = Kind("questions are repeated about the same image", "leave one of them out", "warning")
SHARED_IDS = Kind(
    "question_ids are in two splits",
    "they name different questions there: give one of the splits other ids, so that files cannot be confused",
    "warning",
)


def check_dataset(settings: Settings, name: str, images: bool) -> Checked:
    """Lists what is wrong with all splits of a dataset.

    Args:
        settings: Which dataset, where it is, how answers are scored, and how long they may be.
        name: The name to show.
        images: Open every image, instead of only checking that it exists.
    """
    found = Findings()

    def report(error: UserError) -> None:
        if isinstance(error, RepeatedError):
            for question_id in error.ids:
                found.add(REPEATED_IDS, f"question {question_id}")
        elif isinstance(error, UnpairedError):
            found.add(UNPAIRED, error, len(error.ids))
        elif isinstance(error, ImagelessError):
            found.add(NO_IMAGE, error, error.count)
        elif isinstance(error, UnknownPoolError):
            found.add(UNKNOWN_POOL, error, error.count)
        else:
            found.add(UNREADABLE, error)

    data = settings.data
    reading = read_dataset(data, refuse=report)
    splits = reading.splits
    if not splits and not found.listed():
        found.add(EMPTY)
    if splits and "train" not in splits and not found.found(UNREADABLE):
        found.add(NO_SPLIT, f"found: {', '.join(splits)}")
    if splits and "validation" not in splits and not found.found(UNREADABLE):
        found.add(NO_VALIDATION, f"found: {', '.join(splits)}")
    check_reading(found, reading)
    check_questions(found, splits)
    _check_answers(found, splits, settings)
    _check_shared(found, reading)
    _check_images(found, splits, data.max_image_pixels if images else None)
    return Checked(name, "dataset", _about(reading) if splits else "", found.listed(), data.metric)


def _about(reading: Reading) -> str:
    """The size of each split, and the columns and splits that have other names in the dataset."""
    about = "questions: " + ", ".join(f"{split} {len(examples):,}" for split, examples in reading.splits.items())
    if reading.names:
        about += "; splits: " + ", ".join(f"{split} from {name}" for name, split in sorted(reading.names.items()))
    if reading.task:
        about += f"; task: {reading.task}"
    if reading.columns:
        about += "; columns: " + ", ".join(f"{field} from {name}" for field, name in sorted(reading.columns.items()))
    return about


def check_reading(found: Findings, reading: Reading) -> None:
    """Adds what had to be made up, and what is missing."""
    total = sum(map(len, reading.splits.values()))
    for split, examples in reading.splits.items():
        if count := reading.numbered[split]:
            found.add(NUMBERED, f"{split}: {count:,} of {len(examples):,}", count)
        if count := reading.unlabelled[split]:
            found.add(UNLABELLED, f"{split}: {count:,} of {len(examples):,}", count, of=total)


def _check_answers(found: Findings, splits: Mapping[str, Sequence[Example]], settings: Settings) -> None:
    data = settings.data
    task = data.configured_task
    placed = [(place, example) for _, place, example in _placed(splits) if example.answers]
    not_own = data.metric != default_metric(data.dataset, data.task)
    check_answers(found, placed, len(placed), task, task.metrics.named(data.metric), exact=not_own)
    check_lengths(found, placed, len(placed), settings.vlm)
    if task.has_options:
        check_classes(found, splits)


def check_questions(found: Findings, splits: Mapping[str, Sequence[Example]]) -> None:
    """Adds what is wrong with the questions of all splits."""
    # With pools of their own, as in VL-ICL Bench, the same question has other answers by intention.
    known: dict[tuple[str, tuple[Path, ...], str, Pointer | None], QuestionId] = {}
    total = sum(map(len, splits.values()))
    for split, place, example in _placed(splits):
        if not example.question.strip():
            found.add(NO_QUESTION, place)
        asked = (split, example.images, example.question.strip().lower(), example.pool)
        first = known.setdefault(asked, example.question_id)
        if first != example.question_id:
            found.add(SAME_QUESTION, f"{place} as question {first}: {example.question}", of=total)


def _placed(splits: Mapping[str, Sequence[Example]]) -> Iterator[tuple[str, str, Example]]:
    """Every example with its split and a description of its place."""
    for split, examples in splits.items():
        for example in examples:
            yield split, f"{split}, question {example.question_id}", example


def _check_shared(found: Findings, reading: Reading) -> None:
    splits = reading.splits
    with_ids = {split: examples for split, examples in splits.items() if not reading.numbered[split]}
    ids = {split: [(example.question_id,) for example in examples] for split, examples in with_ids.items()}
    shared: dict[tuple[str, str], list[QuestionId]] = {}
    for pair, (question_id,) in in_two_splits(ids):
        shared.setdefault(pair, []).append(question_id)
    for (one, other), repeated in shared.items():
        found.add(SHARED_IDS, f"{one} and {other}: {min(repeated, key=id_order)}", len(repeated))
    # By image_id and by path: one path may have several image_ids, and one image_id several paths.
    places = {split: [(e.image_id, path) for e in examples for path in e.images] for split, examples in splits.items()}
    for (one, other), (image_id, path) in in_two_splits(places):
        found.add(LEAK_ID, f"{one} and {other}: image {image_id} ({path.name})")


_Keys = TypeVar("_Keys", bound=tuple[object, ...])


def in_two_splits(splits: Mapping[str, Iterable[_Keys]]) -> list[tuple[tuple[str, str], _Keys]]:
    """The entries that have one of their keys in common with an earlier split, for each such pair of splits."""
    order = {split: number for number, split in enumerate(splits)}
    # Only the first splits of each key: a file of thousands of splits has millions of pairs.
    splits_of: dict[object, list[str]] = {}
    shared = []
    for split, all_keys in splits.items():
        for keys in dict.fromkeys(all_keys):
            earlier = {one for key in keys for one in splits_of.setdefault(key, []) if one != split}
            shared += [((one, split), keys) for one in earlier]
            for key in keys:
                if split not in splits_of[key] and len(splits_of[key]) < _SPLITS:
                    splits_of[key].append(split)
    return sorted(shared, key=lambda pair: tuple(order[split] for split in pair[0]))


def _check_images(found: Findings, splits: Mapping[str, Sequence[Example]], max_pixels: int | None) -> None:
    """Checks that the images exist; opens them too if a limit of pixels is given."""
    used: dict[Path, set[str]] = {}
    questions: Counter[Path] = Counter()
    for split, examples in splits.items():
        for example in examples:
            for image in example.images:
                used.setdefault(image, set()).add(split)
                questions[image] += 1
    existing = _existing(used)
    for path in used:
        if path not in existing:
            found.add(MISSING, f"{path} (questions: {questions[path]})", of=len(used))
    if max_pixels is None:
        return
    limit = max_pixels
    known: dict[bytes, Path] = {}
    paths = sorted(existing)
    with progress("Opening images", len(paths)) as advance, ThreadPoolExecutor(_THREADS) as threads:
        for path, (problem, content) in zip(paths, threads.map(lambda path: _look(path, limit), paths), strict=True):
            advance(1)
            if problem:
                found.add(DAMAGED, f"{problem} (questions: {questions[path]})", of=len(paths))
                continue
            twin = known.setdefault(content, path)
            if twin == path:
                continue
            if used[path] == used[twin]:
                found.add(TWINS, f"{path} is {twin}", of=len(paths))
            else:
                both = " and ".join(sorted(used[path] | used[twin]))
                found.add(LEAK_CONTENT, f"{both}: {twin} and {path}")


def _existing(paths: Mapping[Path, object]) -> set[Path]:
    """Those that are files. Folders are listed, because looking up every file takes minutes on a network disk."""
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    existing: set[Path] = set()
    for folder, wanted in by_folder.items():
        try:
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries if _is_file(entry)}
        except (OSError, ValueError):  # there is no such folder, or it cannot be read: its images are missing
            continue
        existing |= {path for path in wanted if path.name in names}
    return existing


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a circular link
        return False


def _look(path: Path, max_pixels: int) -> tuple[str, bytes]:
    """What is wrong with an image, and a digest of its pixels, by which copies are found in any file format."""
    try:
        image = open_image(path, max_pixels)
    except ImageError as error:
        return str(error), b""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    for _, band in bands(image):
        digest.update(band.tobytes())
    return "", digest.digest()
