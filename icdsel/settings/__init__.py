"""Every setting: its default, its bounds, and where its value comes from. Does not import torch."""

from icdsel.settings.loading import Settings, load_settings, resolve, settings_from, with_values
from icdsel.settings.raw import RawSettings
from icdsel.settings.tables import (
    DataSettings,
    InferSettings,
    ProposalSettings,
    RewardSettings,
    TrainSettings,
    VlmSettings,
)

__all__ = [
    "DataSettings",
    "InferSettings",
    "ProposalSettings",
    "RawSettings",
    "RewardSettings",
    "Settings",
    "TrainSettings",
    "VlmSettings",
    "load_settings",
    "resolve",
    "settings_from",
    "with_values",
]
