"""Downloads VQA datasets from the Hugging Face hub, once, as JSON Lines and image files."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icdsel.data.columns import NUMBERED, USUAL, Columns
from icdsel.data.readers.arrow_files import saved_classes, saved_rows
from icdsel.data.split_names import standard_split
from icdsel.data.stored_images import store_split
from icdsel.errors import DataError
from icdsel.records.values import is_id
from icdsel.store.files import write_json

PREFIX = "hub:"
_SPLIT = "split"
_NAME = re.compile(r"hub:(\w[\w.-]*(?:/\w[\w.-]*)?)(?::([^/]+))?", re.ASCII)


def fetch_split(dataset: str, split: str, data_dir: Path, chosen: Mapping[str, str]) -> Path:
    """Writes one split of a hub dataset as a JSON Lines file beside its images, and returns the file.

    An existing split is not downloaded again; to force it, delete the folder `data_dir/hub/<owner>--<name>`. Images are
    stored as encoded in the dataset, without decoding them, and each distinct image once. No code of the dataset is
    run.

    Columns have their usual names (`columns.USUAL`), or those of `chosen`. Ids are those of the first usual column with
    a different one in every row; if there is none, rows are numbered. A row without an image gets the path of a file
    that does not exist. So does a row whose image is a file outside the library's own folders.

    Args:
        dataset: `hub:owner/name` or `hub:owner/name:configuration`.
        split: "train", "validation" (or another of its names, such as "val"), "tuning" or "test".
        data_dir: The folder under which files are written.
        chosen: Columns by field.

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
    folder = re.sub(r"[^\w.-]", "--", f"{name}:{configuration}" if configuration else name)
    if chosen:  # other columns give other rows
        folder += f"--{hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()[:8]}"
    path = data_dir / "hub" / folder / f"{split}.jsonl"
    if path.exists():
        return path
    table = _table(name, configuration, split)
    columns = Columns({"question_id": _ids(table), **chosen, "split": _SPLIT})
    plan = columns.plan(tuple(table.features))
    used = [name for name in columns.needed(tuple(table.features)) if name in table.features and name != _SPLIT]
    classes = saved_classes(table, plan)
    _require_columns(name, table, columns, split, bool(classes))
    rows = saved_rows(table, used)
    labelled = (row | {_SPLIT: split} for row in rows)
    if classes:
        write_json(_classes(path), classes)
    store_split(path, Path("images") / split, f"{name}, {split}", labelled, len(table), columns, _finder(name))
    return path


def _table(name: str, configuration: str | None, split: str) -> Any:
    """Loads the split's rows."""
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
    own = next((held for held in splits if standard_split(held) == split), None)
    if own is None:
        remedy = "; --validation-fraction 0.1 takes a part of the training questions" if split == "validation" else ""
        raise DataError(f"{name} has no split {split!r} on the hub, only {', '.join(splits)}{remedy}")
    return splits[own]


def classes_of(path: Path) -> tuple[str, ...]:
    """The classes that the answers in a file of `fetch_split` are; empty if they are none.

    Raises:
        DataError: The file of classes beside it is damaged.
    """
    try:
        names = json.loads(_classes(path).read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise DataError(f"{_classes(path)} is damaged: {error}. Delete the folder, to download it again") from None
    return tuple(map(str, names))


def _classes(path: Path) -> Path:
    return path.with_suffix(".classes.json")


def _holds_images(kind: Any) -> bool:
    """Whether a column holds images, alone or in lists."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    return type(kind).__name__ == "Image" or (inner is not None and type(inner).__name__ == "Image")


def _require_columns(name: str, table: Any, found: Columns, split: str, classes: bool) -> None:
    columns = table.features
    names = tuple(columns)
    plan, several = found.plan(names), found.several(names)
    needed = ({"question"} if not classes else set()) | (
        {"answers"} if split == "train" and "answer" not in plan else set()
    )
    images = [*several.get("image", {}).values()] or [plan.get("image", "")]
    if not all(_holds_images(columns.get(image)) for image in images) or not needed <= plan.keys():
        held = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in columns.items())
        raise DataError(
            f"{name} is not a VQA dataset in a supported format: it needs the columns image (Image), question, and "
            f"answers or one of {', '.join(USUAL['answer'])}; it has {held}. Columns of other names are given by "
            "--columns question=COLUMN,image=COLUMN,answers=COLUMN"
        )


def _ids(table: Any) -> str:
    """The first usual column of ids that has a different one in every row; `NUMBERED` if there is none."""
    for column in USUAL["question_id"]:
        if column in table.features:
            values = table.select_columns([column])[:][column]
            if all(map(is_id, values)) and len(set(map(str, values))) == len(table):
                return column
    return NUMBERED


def _finder(name: str) -> Callable[[str], Path | None]:
    """Finds images in the folders in which the library stores the downloaded files of a dataset.

    A table from the hub could name any file of this machine.
    """
    import datasets
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    own_folders = [place.resolve() for place in (Path(datasets.config.HF_DATASETS_CACHE), hub)]

    def find(named: str) -> Path | None:
        source = Path(named)
        own = source.is_file() and any(source.resolve().is_relative_to(folder) for folder in own_folders)
        return source if own else None

    return find
