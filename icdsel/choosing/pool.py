"""The candidates of a bundle as the pool that all queries share, and the selectors that choose from it."""

from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from icdsel.artefacts.bundle.contents import Bundle
from icdsel.choosing.encoded_queries import EncodedQueries
from icdsel.errors import SettingsError
from icdsel.policy.encoding import EncodedCandidates
from icdsel.records import AUTO, Shots, stop_offset
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.pools import Pools
from icdsel.selection import POLICY, SELECTORS
from icdsel.selection.context import Context
from icdsel.settings.loading import Settings

__all__ = ["Chosen", "Pool"]


class Chosen(NamedTuple):
    """What was chosen for a query.

    Attributes:
        rows: The candidates, in prompt order.
        scores: The log-prob of each under the policy; None if another selector chose, or they were not asked for.
    """

    rows: tuple[int, ...]
    scores: tuple[float, ...] | None


class _Similar(Embeddings):
    """The candidates' embeddings for nearest neighbours; the sum of both kinds is kept for the next query."""

    @cached_property
    def both(self) -> Tensor:
        """normalise(image + question), (N, d)."""
        return super().both


class Pool:
    """Chooses from all candidates of a bundle, with the selectors of `icdsel infer`.

    Args:
        bundle: The policy and the candidates.
        settings: The settings of the bundle.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self._bundle, self._settings = bundle, settings
        self._encoding = Lock()
        self._similar = _Similar(bundle.tables.vectors.image, bundle.tables.vectors.question)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The selectors that can choose here."""
        return tuple(
            name
            for name, one in SELECTORS.items()
            if not (one.needs_rl_data or one.whole_split or not one.needs_vlm)
            and (self._bundle.manifest.baselines or not one.needs_similarity)
        )

    @property
    def encoded(self) -> EncodedCandidates:
        """The candidates as the policy has encoded them, once."""
        with self._encoding:
            return self._encoded

    @cached_property
    def _encoded(self) -> EncodedCandidates:
        return self._bundle.network.encode_candidates(self._bundle.table).for_single_queries()

    def allowed(self, shots: Shots, selector: str) -> Shots:
        """The number of shots.

        Raises:
            SettingsError: There is no such selector here, it cannot decide how many, or there are too few candidates.
        """
        if selector not in self.names:
            raise SettingsError(f"{selector!r} cannot choose from a bundle: there are {', '.join(self.names)}")
        count = len(self._bundle.train)
        if isinstance(shots, str):
            stop_offset(shots)
            if not SELECTORS[selector].can_stop:
                raise SettingsError(f"{selector} cannot decide how many ICDs to show: give a number of shots")
            if not self._bundle.network.config.stop:
                raise SettingsError(
                    f"this policy cannot decide how many ICDs to show, since it was trained without STOP: give a "
                    f"number of shots instead of {AUTO}"
                )
        elif not 0 <= shots <= min(count, 1000):
            raise SettingsError(f"shots must be between 0 and {min(count, 1000)}, not {shots}")
        return shots

    def choose(self, encoded: EncodedQueries, shots: Shots, selector: str, scored: bool = True) -> list[Chosen]:
        """Chooses for every query. Log-probs, of which each needs all candidates, take a tenth of the time."""
        pools = Pools(len(self._bundle.train), encoded.excluded, None)
        most = self._bundle.manifest.shots if isinstance(shots, str) else shots
        if pools.smallest < most:
            raise SettingsError(f"{most} ICDs were wanted, and {pools.smallest} candidates may be shown")
        if not encoded.queries or shots == 0:
            return [Chosen((), () if selector == POLICY.name else None) for _ in encoded.queries]
        if selector == POLICY.name:
            return self._by_policy(encoded, pools, shots, most, scored)
        return self._by_selector(encoded, pools, most, selector)

    @torch.no_grad()
    def _by_policy(self, encoded: EncodedQueries, pools: Pools, shots: Shots, most: int, scored: bool) -> list[Chosen]:
        mask = pools.batch(0, len(encoded.queries))[1] if any(encoded.excluded) else None  # (B, N)
        offset = stop_offset(shots) if isinstance(shots, str) else 0.0
        found = self._bundle.network.choose(
            encoded.embeddings,
            self.encoded,
            most,
            mask,
            scored=scored,
            fixed=isinstance(shots, int),
            stop_offset=offset,
        )
        pointers = [tuple(row for row in rows if row >= 0) for rows in found.positions.tolist()]
        if found.step_log_probs is None:
            return [Chosen(rows, None) for rows in pointers]
        log_probs = found.step_log_probs.tolist()
        return [Chosen(rows, tuple(own[: len(rows)])) for rows, own in zip(pointers, log_probs, strict=True)]

    def _by_selector(self, encoded: EncodedQueries, pools: Pools, shots: int, selector: str) -> list[Chosen]:
        bundle, one = self._bundle, SELECTORS[selector]
        infer = self._settings.infer.model_copy(update={"shots": (shots,)})
        context = Context(
            settings=self._settings.model_copy(update={"infer": infer}),
            train=bundle.train,
            queries=encoded.queries,
            pools=pools,
            embeddings=encoded.embeddings,
            train_embeddings=bundle.table,
            open_similar=lambda: (encoded.vectors, self._similar),
            network=bundle.network,
            open_encoded=lambda: self.encoded,
            open_scored=dict,
        )
        pointers: Sequence[tuple[int | str, ...] | None] = one.choose(context, shots if one.shows_icds else 0)
        row = bundle.train.row
        return [Chosen(tuple(row[icd] for icd in pointer or ()), None) for pointer in pointers]
