"""What is wrong with a dataset: its records, questions, answers and images, and what its splits share."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from icdsel.check.findings import Checked, Findings, Kind
from icdsel.console import progress
from icdsel.data.datasets import load_every_split
from icdsel.data.images import ImageError, bands, open_image
from icdsel.data.vqa_files import RepeatedError, UnpairedError
from icdsel.errors import UserError
from icdsel.records import Example
from icdsel.settings.tables import DataSettings
from icdsel.tasks.vqa import normalize_answer

_THREADS = min(8, os.cpu_count() or 1)  # that open images, each of which may hold a large one
_SPLITS = 8  # earlier ones that an image or question_id is looked for in
ANSWERS = 10  # what the VQA accuracy is defined for

UNREADABLE = Kind("records or files that cannot be read", "every command stops at them: repair or remove them")
REPEATED_IDS = Kind("question_ids that stand more than once in a split", "give every question an id of its own")
UNPAIRED = Kind(
    "questions without an annotation, or annotations without a question",
    "every command stops at them: leave them out, or take two files that belong together",
)
EMPTY = Kind("it holds no question", "every command stops at it: write a JSON object a line, or name another file")
NO_SPLIT = Kind("the training split is missing", 'lines without "split" are of it; other forms need its two files')
NO_VALIDATION = Kind("the validation split is missing", "`icdsel infer` needs one to answer", "worth knowing")
MISSING = Kind("images are missing", "copy them, say where they lie (--image-dir), or use --on-image-error skip")
DAMAGED = Kind("images cannot be read", "copy or convert them, or use --on-image-error skip")
LEAK_ID = Kind(
    "images are in two splits, by image_id or path",
    "leave their questions out of one split; if they are different pictures, give them different image_ids",
)
LEAK_CONTENT = Kind(
    "images are in two splits under different names, by content", "leave their questions out of one of the splits"
)
TWINS = Kind(
    "images are the same as another one of their split",
    "pools keep a query's own image out by its path, not its twins: name both questions' image alike",
    "worth knowing",
)
NO_QUESTION = Kind("questions are empty", "write the question, or leave the record out")
NO_ANSWER = Kind("questions whose answers are blank or punctuation", "write the answers, or leave the record out")
NOTHING_SHOWN = Kind(
    "questions whose answer is blank where they are demonstrations", 'give the record an "answer"', "worth knowing"
)
EMPTY_ANSWERS = Kind(
    "questions with answers that normalise to nothing",
    "an empty prediction matches such an answer: leave it out where it is no real one",
    "worth knowing",
)
FEW_ANSWERS = Kind(
    f"questions with fewer than {ANSWERS} answers",
    "the VQA accuracy is coarser there (with one answer it is 0 or 1): compare with no other figures",
    "worth knowing",
)
SAME_QUESTION = Kind("questions were asked about the same image before", "leave one of them out", "worth knowing")
SHARED_IDS = Kind(
    "question_ids stand in two splits",
    "they name different questions there: give one of the splits other ids, so that files cannot be mistaken",
    "worth knowing",
)


def check_dataset(settings: DataSettings, name: str, images: bool) -> Checked:
    """Lists what is wrong with all splits of a dataset.

    Args:
        settings: Which dataset, and where it lies.
        name: What to call it.
        images: Open every image, rather than only look whether it is there.
    """
    found = Findings()

    def refuse(error: UserError) -> None:
        if isinstance(error, RepeatedError):
            for question_id in error.ids:
                found.add(REPEATED_IDS, f"question {question_id}")
        elif isinstance(error, UnpairedError):
            found.add(UNPAIRED, error, len(error.ids))
        else:
            found.add(UNREADABLE, error)

    splits = load_every_split(settings, refuse)
    if not splits and not found.listed():
        found.add(EMPTY)
    if splits and "train" not in splits and not found.found(UNREADABLE):
        found.add(NO_SPLIT, f"there are {', '.join(splits)}")
    if splits and "validation" not in splits and not found.found(UNREADABLE):
        found.add(NO_VALIDATION, f"there are {', '.join(splits)}")
    _check_questions(found, splits)
    _check_shared(found, splits)
    _check_images(found, splits, settings.max_image_pixels if images else None)
    told = ", ".join(f"{split} {len(examples):,}" for split, examples in splits.items())
    return Checked(name, "dataset", f"questions: {told}" if splits else "", found.listed())


def _check_questions(found: Findings, splits: Mapping[str, Sequence[Example]]) -> None:
    asked: dict[tuple[str, Path, str], int] = {}
    vanishes: dict[str, bool] = {}  # by answer: there are far fewer different ones than answers
    total = sum(map(len, splits.values()))
    for split, example in ((split, example) for split, examples in splits.items() for example in examples):
        place = f"{split}, question {example.question_id}"
        if not example.question.strip():
            found.add(NO_QUESTION, place)
        first = asked.setdefault((split, example.image, example.question.strip().lower()), example.question_id)
        if first != example.question_id:
            found.add(SAME_QUESTION, f"{place} as question {first}: {example.question}", of=total)
        answers = {*example.answers, *example.raw_answers}
        for answer in answers:
            if answer not in vanishes:
                vanishes[answer] = not normalize_answer(answer)
        nothing = [answer for answer in sorted(answers) if vanishes[answer]]
        # "a" and "the" normalise to nothing too, but may well be meant.
        if len(nothing) == len(answers) and not any(sign.isalnum() for answer in answers for sign in answer):
            found.add(NO_ANSWER, f"{place}: {', '.join(map(repr, nothing))}")
        elif nothing:
            found.add(EMPTY_ANSWERS, f"{place}: {', '.join(map(repr, nothing))}", of=total)
        if not example.answer.strip():
            found.add(NOTHING_SHOWN, place)
        if len(example.answers) < ANSWERS:
            found.add(FEW_ANSWERS, f"{place}: {len(example.answers)}", of=total)


def _check_shared(found: Findings, splits: Mapping[str, Sequence[Example]]) -> None:
    asked = {split: [(example.question_id,) for example in examples] for split, examples in splits.items()}
    shared: dict[tuple[str, str], list[int]] = {}
    for pair, (question_id,) in _met(asked):
        shared.setdefault(pair, []).append(question_id)
    for (one, other), ids in shared.items():
        found.add(SHARED_IDS, f"{one} and {other}: {min(ids)}", len(ids))
    # Where image_ids differ, paths tell, and the other way round.
    places = {split: [(e.image_id, e.image) for e in examples] for split, examples in splits.items()}
    for (one, other), (image_id, path) in _met(places):
        found.add(LEAK_ID, f"{one} and {other}: image {image_id} ({path.name})")


_Keys = TypeVar("_Keys", bound=tuple[object, ...])


def _met(splits: Mapping[str, Iterable[_Keys]]) -> list[tuple[tuple[str, str], _Keys]]:
    """What has one of its keys in common with an earlier split, with each such pair of splits, pair by pair."""
    order = {split: number for number, split in enumerate(splits)}
    # By key the first splits: in a file of thousands of splits there are millions of pairs.
    stands: dict[object, list[str]] = {}
    met = []
    for split, all_keys in splits.items():
        for keys in dict.fromkeys(all_keys):
            earlier = {one for key in keys for one in stands.setdefault(key, []) if one != split}
            met += [((one, split), keys) for one in earlier]
            for key in keys:
                if split not in stands[key] and len(stands[key]) < _SPLITS:
                    stands[key].append(split)
    return sorted(met, key=lambda pair: tuple(order[split] for split in pair[0]))


def _check_images(found: Findings, splits: Mapping[str, Sequence[Example]], max_pixels: int | None) -> None:
    """Looks for the images; opens them too where a limit of pixels is given."""
    used: dict[Path, set[str]] = {}
    asked: Counter[Path] = Counter()
    for split, examples in splits.items():
        for example in examples:
            used.setdefault(example.image, set()).add(split)
            asked[example.image] += 1
    there = _there(used)
    for path in used:
        if path not in there:
            found.add(MISSING, f"{path} (questions: {asked[path]})", of=len(used))
    if max_pixels is None:
        return
    limit = max_pixels
    known: dict[bytes, Path] = {}
    paths = sorted(there)
    with progress("Opening images", len(paths)) as advance, ThreadPoolExecutor(_THREADS) as threads:
        for path, (problem, content) in zip(paths, threads.map(lambda path: _look(path, limit), paths), strict=True):
            advance(1)
            if problem:
                found.add(DAMAGED, f"{problem} (questions: {asked[path]})", of=len(paths))
                continue
            twin = known.setdefault(content, path)
            if twin == path:
                continue
            if used[path] == used[twin]:
                found.add(TWINS, f"{path} is {twin}", of=len(paths))
            else:
                both = " and ".join(sorted(used[path] | used[twin]))
                found.add(LEAK_CONTENT, f"{both}: {twin} and {path}")


def _there(paths: Mapping[Path, object]) -> set[Path]:
    """Those that are files; folders are listed, for asking for every file takes minutes on a shared disk."""
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    there: set[Path] = set()
    for folder, wanted in by_folder.items():
        try:
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries if _is_file(entry)}
        except (OSError, ValueError):  # no folder, or none that may be read: its images are missing
            continue
        there |= {path for path in wanted if path.name in names}
    return there


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle
        return False


def _look(path: Path, max_pixels: int) -> tuple[str, bytes]:
    """What is wrong with an image, and a digest of its pixels: they say what it shows, whatever its file is."""
    try:
        image = open_image(path, max_pixels)
    except ImageError as error:
        return str(error), b""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    for _, band in bands(image):
        digest.update(band.tobytes())
    return "", digest.digest()
