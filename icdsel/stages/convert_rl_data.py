"""RL data in Lever-Plus's form."""

from pathlib import Path

from icdsel.artefacts.lever_plus_writer import lever_plus_json
from icdsel.artefacts.reference_scores import groups_have_references
from icdsel.artefacts.rl_data import metadata_path, read_groups
from icdsel.console import warn
from icdsel.data.datasets import load_split
from icdsel.errors import RlDataError
from icdsel.settings.loading import Settings
from icdsel.store.conversion import refuse_own_conversion, write_conversion
from icdsel.store.files import json_bytes
from icdsel.store.metadata import read_metadata


def convert(settings: Settings, path: Path, output: Path | None = None, overwrite: bool = False) -> Path:
    """Writes RL data in Lever-Plus's form, `NAME.json`; rows are ranks in the settings' training split.

    Raises:
        RlDataError: `path` holds no RL data of icdsel, those of another dataset, or candidates that cannot be trained
            on; the output is `path` itself; or as for `write_conversion`.
        DataError: The dataset is missing.
    """
    target = output or path.with_suffix(".json")
    refuse_own_conversion(target, path, RlDataError)
    groups = [group for group, _ in read_groups(path, strict=True)]  # Lever-Plus would train on invalid candidates
    if groups_have_references(groups) is False:
        warn(
            f"{path} has no vqa_gt_prob, which Lever-Plus counts as 0 in its reward modes with gtprob: to train in one "
            "of them, generate RL data with --references labels"
        )
    inputs = read_metadata(metadata_path(path)).inputs if metadata_path(path).exists() else {}
    content = lever_plus_json(groups, load_split(settings.data, "train").row, {"made_of": inputs})
    write_conversion(target, json_bytes(content), path, RlDataError, overwrite)
    return target
