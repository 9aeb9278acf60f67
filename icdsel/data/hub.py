"""VQA datasets of the Hugging Face hub become JSON lines with image files, once."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from icdsel.console import progress
from icdsel.data.vqa_files import SPLIT_NAMES
from icdsel.errors import DataError
from icdsel.store.files import write_bytes, write_text

PREFIX = "hub:"
_NAME = re.compile(r"hub:(\w[\w.-]*(?:/\w[\w.-]*)?)(?::([^/]+))?", re.ASCII)
_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

# Under which names columns go, the most usual first.
_ID_COLUMNS = ("question_id", "questionId", "id")
_ANSWER_COLUMNS = ("answer", "multiple_choice_answer", "label")


def fetch_split(dataset: str, split: str, data_dir: Path) -> Path:
    """Write one split of a hub dataset as a file of JSON lines beside its images, and return the file.

    A split that was written before is not fetched again: delete its folder, `data_dir/hub/<owner>--<name>`, to
    have it anew. Images are kept as they are encoded, each once, and are not decoded. Code that comes with a
    dataset is not run.

    Of the columns these are read: `image`; `question`; `answers` (texts, or records with `answer` and perhaps
    `raw_answer`); `answer`, `multiple_choice_answer` or `label`, the answer that counts (and, without `answers`,
    the only one); `question_id`, `questionId` or `id`, the first that holds a different integer for every row,
    else the row's number; `image_id`, where it is an integer. A row without an image, or with
    one that is a file elsewhere than where the library keeps what it fetched, names a file that is not there.

    Args:
        dataset: `hub:owner/name` or `hub:owner/name:configuration`.
        split: "train", "validation" (which the dataset may call "val"), "tuning" or "test".
        data_dir: Under it the files are written.

    Raises:
        DataError: The library `datasets` is not installed, the dataset or split cannot be had, or columns miss.
    """
    parts = _NAME.fullmatch(dataset)
    if parts is None:
        raise DataError(f"{dataset!r} is no name on the hub: write hub:owner/name or hub:owner/name:configuration")
    name, configuration = parts.groups()
    folder = data_dir / "hub" / re.sub(r"[^\w.-]", "--", f"{name}:{configuration}" if configuration else name)
    path = folder / f"{split}.jsonl"
    if path.exists():
        return path
    table = _table(name, configuration, split)
    lines = []
    with progress(f"Writing {name}, {split}", len(table)) as advance:
        try:
            for record in _records(table, folder, split, _own_folders(name)):
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
                advance(1)
        except (TypeError, ValueError) as error:  # dates, bytes, records of columns of different lengths
            raise DataError(f"{name}, {split}, row {len(lines)}: it holds something else than texts: {error}") from None
    os.sync()  # the images, before the file that says they are all there
    write_text(path, "".join(lines))
    return path


def _table(name: str, configuration: str | None, split: str) -> Any:
    """The split's rows, with images as they are encoded."""
    try:
        import datasets
    except ImportError:
        raise DataError('datasets of the hub need the library "datasets": pip install "icdsel[hub]"') from None
    try:
        splits = datasets.load_dataset(name, configuration)
    except Exception as error:  # whatever the library's transport and its readers of many formats raise
        raise DataError(
            f"{name} cannot be loaded from the hub: {str(error) or type(error).__name__}. "
            f"A configuration is named with {PREFIX}{name}:CONFIGURATION."
        ) from error
    own = next((held for held in splits if SPLIT_NAMES.get(held, held) == split), None)
    if own is None:
        raise DataError(f"{name} has no split {split!r} on the hub: there are {', '.join(splits)}")
    table = splits[own]
    columns = table.features
    answered = "answers" in columns or any(column in columns for column in _ANSWER_COLUMNS)
    if not isinstance(columns.get("image"), datasets.Image) or "question" not in columns or not answered:
        held = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in columns.items())
        raise DataError(
            f"{name} is no VQA dataset of a form that is read: it needs the columns image (Image), question, and "
            f"answers or one of {', '.join(_ANSWER_COLUMNS)}; it has {held}"
        )
    return table.cast_column("image", datasets.Image(decode=False))


def _own_folders(name: str) -> list[Path]:
    """Where the library keeps what it fetched of a dataset."""
    import datasets
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return [place.resolve() for place in (Path(datasets.config.HF_DATASETS_CACHE), hub)]


def _records(table: Any, folder: Path, split: str, own_folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Lines of JSON lines; the images are written on the way."""
    answer_column = next((column for column in _ANSWER_COLUMNS if column in table.features), "")
    class_name = getattr(table.features.get(answer_column), "int2str", None)
    read = {"image", "question", "answers", "image_id", answer_column} & set(table.features)
    for number, (question_id, row) in enumerate(zip(_ids(table), table.select_columns(sorted(read)), strict=True)):
        record = {
            "question_id": question_id,
            "image": _write_image(row["image"], folder, Path("images") / split, number, own_folders),
            "question": row["question"],
            "split": split,
        }
        answer = row.get(answer_column)
        if class_name is not None and answer is not None:
            answer = class_name(answer)
        answers = _answers(row.get("answers")) or ([answer] if isinstance(answer, str) else [])
        image_id = _integer(row.get("image_id"))
        yield (
            record
            | {"answers": answers}
            | ({"answer": answer} if isinstance(answer, str) and answer else {})
            | ({"image_id": image_id} if image_id is not None else {})
        )


def _ids(table: Any) -> list[int]:
    for column in _ID_COLUMNS:
        if column in table.features:
            values = [_integer(value) for value in table.select_columns([column])[:][column]]
            ids = [value for value in values if value is not None]
            if len(set(ids)) == len(table):
                return ids
    return list(range(len(table)))


def _integer(value: object) -> int | None:
    """An integer of 64 bits, also one that is written as a text."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _answers(value: Any) -> Any:
    """The answers of a row, of records what is read; what is neither is left for the reader to refuse."""
    if isinstance(value, Mapping):  # records that are stored by their columns
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        return value
    return [
        {name: answer[name] for name in ("answer", "raw_answer") if answer.get(name) is not None}
        if isinstance(answer, Mapping)
        else answer
        for answer in value
    ]


def _write_image(
    image: Mapping[str, Any] | None, folder: Path, below: Path, number: int, own_folders: list[Path]
) -> str:
    """Write an image's bytes under their digest, and return the path from `folder` on.

    A path without bytes counts only in `own_folders`: a table from the hub could name any file of this machine.
    """
    image = image or {}
    content, source = image.get("bytes"), Path(image.get("path") or "")
    if content is None and source.is_file() and any(source.resolve().is_relative_to(own) for own in own_folders):
        content = source.read_bytes()
    if content is None:
        return str(below / f"row-{number}-has-no-image")
    ending = source.suffix.lower()
    name = hashlib.sha256(content).hexdigest()[:32] + (ending if ending in _ENDINGS else "")
    path = folder / below / name
    if not path.exists():
        write_bytes(path, content)
    return str(below / name)
