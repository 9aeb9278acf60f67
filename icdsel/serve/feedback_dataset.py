"""Feedback as training data: a dataset whose training split has the candidates and the served queries, and RL data."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from icdsel.artefacts.rl_data import merge, parse_group, read_rl_data
from icdsel.errors import RlDataError
from icdsel.records import Example, QueryGroup
from icdsel.store.files import make_folder, write_bytes
from icdsel.store.journal import complete_lines

DATASET, RL_DATA = "dataset.jsonl", "rl_data.jsonl"
UNKNOWN = "unknown"
"""The answer of a served query, which nobody gave. It is never shown: no query may choose a served one."""


def write_training_data(journal: Path, candidates: Sequence[Example], folder: Path) -> int:
    """Writes what `icdsel train --dataset FOLDER/dataset.jsonl --rl-data FOLDER/rl_data.jsonl` learns from.

    The images are linked into the folder, or copied where that is not possible.

    Args:
        journal: The feedback.
        candidates: The candidates that were chosen from.
        folder: Where to write; it must not exist.

    Returns:
        How many served queries there are.

    Raises:
        RlDataError: There is no feedback, or it is damaged, of other candidates, or the folder exists; or candidates
            have what served queries cannot have.
        OSError: It cannot be written.
    """
    if folder.exists():
        raise RlDataError(f"{folder} exists: name a folder that does not")
    if any(candidate.more_images or candidate.options for candidate in candidates):
        raise RlDataError(
            f"{journal} cannot be written as training data: candidates have several images, or options to choose from, "
            "which a served query has not"
        )
    groups = merge([read_rl_data(journal).groups])
    known = {candidate.question_id for candidate in candidates}
    shown = {icd for group in groups for candidate in group.candidates for icd in candidate.pointer}
    if unknown := shown - known:
        raise RlDataError(f"{journal} shows {len(unknown)} demonstrations that are not among the candidates")
    images = dict(_images(journal))
    make_folder(folder / "images")
    lines = [_line(each, _linked(each.image, folder, f"candidate-{row}")) for row, each in enumerate(candidates)]
    hidden = tuple(group.question_id for group in groups)
    for group in groups:
        image = _linked(images[group.question_id], folder, images[group.question_id].name)
        lines.append(_row(group.question_id, group.image_id, group.question, UNKNOWN, [UNKNOWN], image))
    _write_lines(folder / DATASET, lines)
    _write_lines(folder / RL_DATA, [_hiding(group, hidden).to_json() for group in groups])
    return len(groups)


def _images(journal: Path) -> Iterator[tuple[Any, Path]]:
    """The image of each served query."""
    for _, value in complete_lines(journal, RlDataError):
        group, _ = parse_group(value)
        name = value.get("image")
        path = journal.parent / name if isinstance(name, str) else None
        if path is None or path.parent.parent != journal.parent or not path.is_file():
            raise RlDataError(f"{journal}: the image of {group.question_id} is missing")
        yield group.question_id, path


def _hiding(group: QueryGroup, hidden: Sequence[Any]) -> QueryGroup:
    """The group, so that it never chooses a served query."""
    return replace(group, pool=None, excluded=tuple(hidden), answers=(UNKNOWN,))


def _linked(image: Path, folder: Path, name: str) -> str:
    target = folder / "images" / f"{name}{image.suffix}"
    with suppress(OSError):
        os.link(image.resolve(), target)
        return f"images/{target.name}"
    shutil.copyfile(image, target)
    return f"images/{target.name}"


def _line(example: Example, image: str) -> dict[str, Any]:
    return _row(
        example.question_id, example.image_id, example.question, example.answer, list(example.written_answers), image
    )


def _row(question_id: Any, image_id: Any, question: str, answer: str, answers: list[str], image: str) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "image_id": image_id,
        "image": image,
        "question": question,
        "answer": answer,
        "answers": answers or [answer],
        "split": "train",
    }


def _write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    import json

    write_bytes(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())
