"""The part of a result's name that tells its candidate pools, so that results of different pools exist side by side."""

from pathlib import Path

from icdsel.errors import RunError
from icdsel.settings.loading import Settings
from icdsel.settings.names import changed_settings
from icdsel.settings.tables import DataSettings
from icdsel.store.metadata import read_metadata

_NAMED = ("pool_size", "pool_rules", "exclude_same_image", "embed")
"""What pools hold, and what candidates are compared by. The sampler is named in any case. Results with other values of
other settings have the same name and are rejected."""
_UNNAMED = (DataSettings().preset, "lever-plus")
"""Presets that names do not tell: Lever-Plus's scripts look for their own names. Results of the two are not mixed up,
since their settings are recorded."""


def pool_parts(settings: Settings) -> list[str]:
    """Parts of a name such as `whole-set` or `pool-size-16`; none for the default pools."""
    others = [name for name in DataSettings.model_fields if name not in _NAMED]
    preset = settings.data.preset
    return [
        *([] if preset in _UNNAMED else [preset]),
        *changed_settings(settings.data, settings.defaults().data, others),
    ]


def has_these_pools(metadata_file: Path, settings: Settings) -> bool:
    """Whether a result has the pools of the settings, by its metadata. Names of earlier versions did not tell them."""
    try:
        inputs = read_metadata(metadata_file).inputs
    except RunError:
        return False
    return all(inputs.get(f"data.{name}") == getattr(settings.data, name) for name in _NAMED)
