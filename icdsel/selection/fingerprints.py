"""Fingerprints of the files that selectors base their choices on."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from icdsel.selection.scored import scored_path
from icdsel.settings.loading import Settings
from icdsel.store.fingerprints import fingerprint_file


class Fingerprints:
    """Fingerprints of the files that selectors base their choices on, each computed when first needed.

    They are kept, because a file may be replaced during a long run.

    Args:
        settings: The settings, which determine the path of the RL data.
        policy: The policy's checkpoint.
        sampler_encoder: Returns the fingerprint of the sampler's encoder.
    """

    def __init__(self, settings: Settings, policy: Path | None, sampler_encoder: Callable[[], str]) -> None:
        self._settings, self._policy, self._sampler_encoder = settings, policy, sampler_encoder

    @cached_property
    def sampler_encoder(self) -> str:
        """The encoder of samplers and nearest neighbours."""
        return self._sampler_encoder()

    @cached_property
    def policy(self) -> str | None:
        """The policy's checkpoint; None without one."""
        return _of(self._policy)

    @cached_property
    def rl_data(self) -> str | None:
        """The RL data of the queries' split; None if there are none."""
        return _of(scored_path(self._settings))


def _of(path: Path | None) -> str | None:
    return fingerprint_file(path) if path is not None and path.is_file() else None
