"""The interface of selectors: how they choose, what they need, how their rows are named."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icdsel.records import Example, Pointer, Shots
from icdsel.settings.loading import Settings
from icdsel.settings.values import PoolSize
from icdsel.store.metadata import Inputs

if TYPE_CHECKING:
    from icdsel.selection.context import Context
    from icdsel.selection.fingerprints import Fingerprints


class Selector(ABC):
    """Chooses the ICDs of queries. `icdsel.selection.SELECTORS` explains how to add one.

    Attributes:
        name: What users type.
        shows_icds: Whether it shows ICDs; if not, it is evaluated at 0 shots only.
        needs_similarity: Whether it calls `Context.nearest` or `Context.similar`: its choice then depends on the
            sampler's encoder.
        needs_policy: Whether it uses `Context.network`: its choice then depends on a checkpoint. Its rows count as
            learned, and comparison and page judge them against the others.
        needs_rl_data: Whether it uses `Context.scored`: its choice then depends on RL data.
        can_stop: Whether it can decide itself how many ICDs to show (`--shots auto`): it then has `choose_auto`.
        needs_vlm: Whether the VLM answers; otherwise `answer` does.
        whole_split: Whether it chooses from the whole training split (`Context.whole_split`), whatever the candidate
            pools are.
        upper_bound: Whether it knows what nobody knows before the VLM has answered. It is then no method that could be
            used, and no candidate for the strongest baseline.
        always_shown: Whether it is evaluated along with any other selector, as a baseline for every comparison.
        reference_rank: Priority as the reference row of `compare`: by default, the row with the highest rank above 0
            is the reference.
    """

    name: str
    shows_icds: bool = True
    needs_similarity: bool = False
    needs_policy: bool = False
    needs_rl_data: bool = False
    can_stop: bool = False
    needs_vlm: bool = True
    whole_split: bool = False
    upper_bound: bool = False
    always_shown: bool = False
    reference_rank: int = 0

    @abstractmethod
    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The ICDs of each query, `shots` of them, in prompt order; None for a query without a choice."""

    def choose_auto(self, context: "Context", offset: float) -> list[Pointer | None]:
        """The ICDs of each query, as many as the selector decides, none too. Only for selectors that can stop.

        Args:
            context: What it chooses by.
            offset: Added to the log-odds (nats) of stopping at every step; what is higher shows less.
        """
        raise NotImplementedError(f"{self.name} cannot decide how many ICDs to show")

    def answer(self, icds: Sequence[Example]) -> str:
        """Answers a query from its ICDs. Only for selectors that need no VLM."""
        raise NotImplementedError(f"{self.name} needs a VLM to answer")

    def shot_counts(self, wanted: Sequence[Shots]) -> tuple[Shots, ...]:
        """The numbers of shots at which it is evaluated, given those in the settings: `auto` only if it can stop."""
        if not self.shows_icds:
            return (0,)
        return tuple(shots for shots in wanted if self.can_stop or isinstance(shots, int))

    def pool(self, pool_size: PoolSize) -> str | None:
        """What it chooses from where candidate pools have this size: `64`, or `all` for the whole training split.

        None if it shows no ICDs, and so chooses nothing.
        """
        if not self.shows_icds:
            return None
        return "all" if self.whole_split else str(pool_size)

    def over(self, pool_size: PoolSize) -> "Selector":  # noqa: ARG002
        """The selector with the same choice that is to be evaluated instead where candidate pools have this size."""
        return self

    def seed(self, settings: Settings) -> int | None:  # noqa: ARG002
        """The seed of its random draws; None if it has none."""
        return None

    def row_name(self, settings: Settings, policy: Path | None) -> str:  # noqa: ARG002
        """The name of its predictions: its own name, followed by its seed if it has one.

        Args:
            settings: The settings of the prediction.
            policy: The checkpoint of a selector that needs one.
        """
        seed = self.seed(settings)
        return self.name if seed is None else f"{self.name}-{seed}"

    def short_name(self, row_name: str, policy: Path | None) -> str:  # noqa: ARG002
        """What tables call a row: its name, unless that is long.

        Args:
            row_name: The name of the row.
            policy: The checkpoint of a selector that needs one.
        """
        return row_name

    def without_seed(self, row_name: str) -> str:
        """The name of a row without its seed: rows that differ in nothing else are averaged."""
        return self.name if re.fullmatch(rf"{re.escape(self.name)}-\d+", row_name) else row_name

    def without_epoch(self, row_name: str) -> str:
        """The name of a row without the number of its checkpoint's epoch."""
        return row_name

    def seed_of(self, row_name: str) -> str:
        """The seed in the name of a row; empty if there is none. Rows of two settings with one seed share it."""
        seedless = self.without_seed(row_name)
        return "" if seedless == row_name else row_name.removeprefix(f"{seedless}-")

    def inputs(self, fingerprints: "Fingerprints") -> Inputs:
        """The inputs that decide its choice, in addition to those of every row (settings, data, VLM, queries)."""
        found = {
            "sampler_encoder": fingerprints.sampler_encoder if self.needs_similarity else None,
            "checkpoint": fingerprints.policy if self.needs_policy else None,
            "rl_data": fingerprints.rl_data if self.needs_rl_data else None,
        }
        return {name: fingerprint for name, fingerprint in found.items() if fingerprint is not None}
