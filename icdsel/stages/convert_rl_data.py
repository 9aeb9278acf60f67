"""RL data in the form of Lever-Plus."""

from collections import Counter
from pathlib import Path

from icdsel.artefacts.lever_plus_rl_data import FAILED
from icdsel.artefacts.lever_plus_writer import lever_plus_json
from icdsel.artefacts.rl_data import NO_RECORD, metadata_path, read_group, read_records, require_whole
from icdsel.data.datasets import load_split
from icdsel.errors import RlDataError
from icdsel.settings.loading import Settings
from icdsel.store.conversion import refuse_own_conversion, write_conversion
from icdsel.store.files import json_bytes
from icdsel.store.metadata import read_metadata


def convert(settings: Settings, path: Path, output: Path | None = None, overwrite: bool = False) -> Path:
    """Writes RL data in the form of Lever-Plus, `NAME.json`; ranks are those of the settings' training split.

    Raises:
        RlDataError: `path` holds no RL data of icdsel, those of another dataset, or what no training would take; `path`
            is to be replaced; or as for `write_conversion`.
        DataError: the dataset is not there.
    """
    target = output or path.with_suffix(".json")
    refuse_own_conversion(target, path, RlDataError)
    records = []
    for number, record in enumerate(read_records(path), 1):
        rejected = Counter[str]()
        try:
            read_group(record, rejected)
        except NO_RECORD as error:
            raise RlDataError(f"{path}, line {number}: {type(error).__name__} {error}: no RL data of icdsel") from None
        if unsound := [reason for reason in rejected if reason != FAILED]:  # Lever-Plus would train on it
            raise RlDataError(f"{path}, line {number}: {unsound[0]}. `icdsel check {path}` lists all that is wrong")
        records.append(record if record["candidate_pool_ids"] != "all" else {**record, "candidate_pool_ids": []})
    require_whole(path, len(records))
    inputs = read_metadata(metadata_path(path)).inputs if metadata_path(path).exists() else {}
    content = lever_plus_json(records, load_split(settings.data, "train").row, {"made_of": inputs})
    try:
        written = json_bytes(content)
    except ValueError as error:
        raise RlDataError(f"{path} holds numbers that no JSON may: {error}") from None
    write_conversion(target, written, path, RlDataError, overwrite)
    return target
