"""Downloads VQA datasets from the Hugging Face hub, once, as JSON Lines and image files."""

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

# Names of columns, the most common first.
_ID_COLUMNS = ("question_id", "questionId", "id")
_ANSWER_COLUMNS = ("answer", "multiple_choice_answer", "label")


def fetch_split(dataset: str, split: str, data_dir: Path) -> Path:
    """Writes one split of a hub dataset as a JSON Lines file beside its images, and returns the file.

    An existing split is not downloaded again; to force it, delete the folder `data_dir/hub/<owner>--<name>`. Images are
    stored as encoded in the dataset, without decoding them, and each distinct image once. No code of the dataset is
    run.

    These columns are read:

    * `image` and `question`
    * `answers`: strings, or records with `answer` and optionally `raw_answer`
    * `answer`, `multiple_choice_answer` or `label`: the answer that demonstrations show (without `answers`, also the
      only reference answer)
    * `question_id`, `questionId` or `id`: the first of these columns with a different integer in every row; if there is
      none, the row number is used
    * `image_id`: if it is an integer

    A row without an image gets the path of a file that does not exist. So does a row whose image is a file outside the
    library's own folders.

    Args:
        dataset: `hub:owner/name` or `hub:owner/name:configuration`.
        split: "train", "validation" (which the dataset may call "val"), "tuning" or "test".
        data_dir: The folder under which files are written.

    Raises:
        DataError: The library `datasets` is not installed, the dataset or split is not available, or columns are
            missing.
    """
    parts = _NAME.fullmatch(dataset)
    if parts is None:
        raise DataError(
            f"{dataset!r} does not name a dataset on the hub: write hub:owner/name or hub:owner/name:configuration"
        )
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
            raise DataError(f"{name}, {split}, row {len(lines)}: a value is not text: {error}") from None
    os.sync()  # the images, before writing the file whose existence marks the split as complete
    write_text(path, "".join(lines))
    return path


def _table(name: str, configuration: str | None, split: str) -> Any:
    """Loads the split's rows, with images left undecoded."""
    try:
        import datasets
    except ImportError:
        raise DataError('datasets on the hub need the library "datasets": pip install "icdsel[hub]"') from None
    try:
        splits = datasets.load_dataset(name, configuration)
    except Exception as error:  # the library's transport and readers raise many kinds of errors
        raise DataError(
            f"{name} cannot be loaded from the hub: {str(error) or type(error).__name__}. "
            f"To name a configuration, write {PREFIX}{name}:CONFIGURATION."
        ) from error
    own = next((held for held in splits if SPLIT_NAMES.get(held, held) == split), None)
    if own is None:
        raise DataError(f"{name} has no split {split!r} on the hub, only {', '.join(splits)}")
    table = splits[own]
    columns = table.features
    answered = "answers" in columns or any(column in columns for column in _ANSWER_COLUMNS)
    if not isinstance(columns.get("image"), datasets.Image) or "question" not in columns or not answered:
        held = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in columns.items())
        raise DataError(
            f"{name} is not a VQA dataset in a supported format: it needs the columns image (Image), question, and "
            f"answers or one of {', '.join(_ANSWER_COLUMNS)}; it has {held}"
        )
    return table.cast_column("image", datasets.Image(decode=False))


def _own_folders(name: str) -> list[Path]:
    """The folders in which the library stores the downloaded files of a dataset."""
    import datasets
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return [place.resolve() for place in (Path(datasets.config.HF_DATASETS_CACHE), hub)]


def _records(table: Any, folder: Path, split: str, own_folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Yields the records of the JSON Lines file, and writes their images."""
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
    """A 64-bit integer, which may be written as a string; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _answers(value: Any) -> Any:
    """Reduces a row's answers to the fields that are read; anything else is returned for the reader to reject."""
    if isinstance(value, Mapping):  # records stored by columns
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
    """Writes an image's bytes, named after their digest, and returns the path relative to `folder`.

    A path without bytes is read only if it is in `own_folders`: a table from the hub could name any file of this
    machine.
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
