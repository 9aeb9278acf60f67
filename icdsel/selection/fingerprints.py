"""Fingerprints of what selectors choose by."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from icdsel.selection.scored import scored_path
from icdsel.settings.loading import Settings
from icdsel.store.fingerprints import fingerprint_file


class Fingerprints:
    """Fingerprints of the files that selectors choose by, each computed when first needed.

    They are kept: during a long run another file may take the place of the one that was read.

    Args:
        settings: Say where RL data are.
        policy: The policy's checkpoint.
        sampler_encoder: Gives the fingerprint of the sampler's encoder.
    """

    def __init__(self, settings: Settings, policy: Path | None, sampler_encoder: Callable[[], str]) -> None:
        self._settings, self._policy, self._sampler_encoder = settings, policy, sampler_encoder

    @cached_property
    def sampler_encoder(self) -> str:
        """Of the encoder of samplers and nearest neighbours."""
        return self._sampler_encoder()

    @cached_property
    def policy(self) -> str | None:
        """Of the policy's checkpoint; None without one."""
        return _of(self._policy)

    @cached_property
    def rl_data(self) -> str | None:
        """Of the RL data of the split that is answered; None if there are none."""
        return _of(scored_path(self._settings))


def _of(path: Path | None) -> str | None:
    return fingerprint_file(path) if path is not None and path.is_file() else None
