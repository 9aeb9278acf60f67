"""What a selector is: how it chooses, what it needs, what its rows are called."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icdsel.records import Example, Pointer
from icdsel.settings.loading import Settings
from icdsel.store.metadata import Identity

if TYPE_CHECKING:
    from icdsel.selection.context import Context
    from icdsel.selection.fingerprints import Fingerprints


class Selector(ABC):
    """Chooses the ICDs of queries. `icdsel.selection.SELECTORS` says how to add one.

    Attributes:
        name: What users type.
        shows_icds: Whether it shows any; one that does not is queried at 0 shots only.
        needs_similarity: Whether it calls `Context.nearest` or reads `Context.similar`: its choice then depends
            on the sampler's encoder.
        needs_policy: Whether it follows `Context.network`: its choice then depends on a checkpoint. Such rows are the
            learned ones, which comparison and page judge against the others.
        needs_rl_data: Whether it chooses by `Context.scored`: its choice then depends on RL data.
        needs_vlm: Whether the VLM answers; otherwise `answer` does.
        always_shown: Whether it answers beside every other selector, as a baseline that belongs in each comparison.
        reference_rank: How well it serves as the row that `compare` takes differences to: by default the row with the
            highest rank is taken, if there is one above 0.
    """

    name: str
    shows_icds: bool = True
    needs_similarity: bool = False
    needs_policy: bool = False
    needs_rl_data: bool = False
    needs_vlm: bool = True
    always_shown: bool = False
    reference_rank: int = 0

    @abstractmethod
    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The ICDs of each query, `shots` of them, in prompt order; None for a query that it has none for."""

    def answer(self, icds: Sequence[Example]) -> str:
        """The answer to a query with these ICDs, of a selector that needs no VLM."""
        raise NotImplementedError(f"{self.name} needs a VLM to answer")

    def shot_counts(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """At which numbers of shots it is queried if the settings want these."""
        return tuple(wanted) if self.shows_icds else (0,)

    def seed(self, settings: Settings) -> int | None:  # noqa: ARG002
        """The seed of its random draws; None if it has none."""
        return None

    def row_name(self, settings: Settings, policy: Path | None) -> str:  # noqa: ARG002
        """What its predictions are called: its name, followed by its seed if it has one.

        Args:
            settings: The settings of the prediction.
            policy: The checkpoint of a selector that needs one.
        """
        seed = self.seed(settings)
        return self.name if seed is None else f"{self.name}-{seed}"

    def without_seed(self, row_name: str) -> str:
        """The name of a row without its seed: rows that differ in nothing else are averaged."""
        return self.name if re.fullmatch(rf"{re.escape(self.name)}-\d+", row_name) else row_name

    def inputs(self, fingerprints: "Fingerprints") -> Identity:
        """The inputs that decide its choice, beside those of every row (settings, data, VLM, queries)."""
        found = {
            "sampler_encoder": fingerprints.sampler_encoder if self.needs_similarity else None,
            "checkpoint": fingerprints.policy if self.needs_policy else None,
            "rl_data": fingerprints.rl_data if self.needs_rl_data else None,
        }
        return {name: fingerprint for name, fingerprint in found.items() if fingerprint is not None}
