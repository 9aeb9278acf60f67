"""The data that selectors base their choices on: queries, pools, embeddings, rankings, the policy, RL data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from torch import Tensor

from icdsel.data.datasets import Split
from icdsel.policy.encoding import EncodedCandidates
from icdsel.policy.network import PointerNetwork
from icdsel.records import Example, Pointer, QuestionId
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.neighbours import nearest_in_pools
from icdsel.retrieval.pools import Pools, rows_at
from icdsel.retrieval.samplers import Kind
from icdsel.selection.scored import Scored
from icdsel.settings.loading import Settings

_QUERIES = 128  # per batch of the policy: masks of 54 MiB for 443,757 candidates


@dataclass(frozen=True, eq=False)
class Context:
    """Q queries and the data to choose their ICDs from. Rows are those of the training split, with N examples.

    Attributes:
        settings: All settings.
        train: The training split: `train[row]` is an example, with question, answer and image.
        queries: The queries.
        pools: The pool of each query: `pools[q]` are its rows.
        embeddings: The queries as the policy sees them (Q, d).
        train_embeddings: The training split as the policy sees it: (N, d), or (N, d + a) if the policy sees answers.
        network: The policy, if a selector needs it.
        open_encoded: Returns the training split as the policy has encoded it.
        open_similar: Returns the embeddings of queries and training split as samplers see them.
        open_scored: Returns the scored pointers of the queries by question_id.
    """

    settings: Settings
    train: Split
    queries: Sequence[Example]
    pools: Pools
    embeddings: Tensor
    train_embeddings: Tensor
    open_similar: Callable[[], tuple[Embeddings, Embeddings]]
    network: PointerNetwork | None
    open_encoded: Callable[[], EncodedCandidates]
    open_scored: Callable[[], Mapping[QuestionId, Sequence[Scored]]]
    _nearest: dict[tuple[Kind, int], list[list[int]]] = field(default_factory=dict)

    @property
    def most_shots(self) -> int:
        """The largest number of shots in the settings."""
        return self.settings.most_shots

    def pointers(self, rows: Iterable[Sequence[int]]) -> list[Pointer | None]:
        """The pointers to these rows of the training split."""
        return [tuple(self.train[row].question_id for row in chosen) for chosen in rows]

    @cached_property
    def similar(self) -> tuple[Embeddings, Embeddings]:
        """Embeddings of the queries and of the training split as samplers see them: image, question and both."""
        return self.open_similar()

    @cached_property
    def scored(self) -> Mapping[QuestionId, Sequence[Scored]]:
        """The scored pointers of the queries by question_id, of any length; some queries may have none."""
        return self.open_scored()

    @cached_property
    def encoded(self) -> EncodedCandidates:
        """The training split as the policy has encoded it."""
        return self.open_encoded()

    @cached_property
    def whole_split(self) -> Self:
        """The same queries, with the whole training split as their pool but for what is excluded for each.

        A query that brings its own pool keeps it: to it, there is nothing else.
        """
        if self.pools.shared or any(query.pool is not None for query in self.queries):
            return self
        return replace(
            self,
            pools=Pools(len(self.train), self.pools.excluded, None),
            open_similar=lambda: self.similar,
            open_encoded=lambda: self.encoded,
            open_scored=lambda: self.scored,
            _nearest={},
        )

    def nearest(self, kind: Kind, count: int | None = None) -> list[list[int]]:
        """For each query the rows of its pool most similar to it, best first; ties go to the earlier one in the pool.

        Args:
            kind: What similarity is measured on.
            count: How many rows, if the pool has as many. [`most_shots`]
        """
        count = count or self.most_shots
        if (kind, count) not in self._nearest:
            queries, train = (vectors.of(kind) for vectors in self.similar)
            self._nearest[kind, count] = list(nearest_in_pools(queries, train, count, self.pools))
        return self._nearest[kind, count]

    @cached_property
    def greedy(self) -> list[list[int]]:
        """For each query the `most_shots` rows that the policy chooses greedily, in the order in which it does."""
        return self._chosen_by_policy(self.most_shots, fixed=True)

    def decided(self, offset: float) -> list[list[int]]:
        """For each query the rows that the policy chooses before it stops: at most `--max-shots`.

        Args:
            offset: Added to its log-odds of stopping at every step (nats).
        """
        return self._chosen_by_policy(self.settings.max_shots, stop_offset=offset)

    def _chosen_by_policy(self, most: int, **how: Any) -> list[list[int]]:
        assert self.network is not None
        chosen: list[list[int]] = []
        for at in range(0, len(self.queries), _QUERIES):
            rows, mask = self.pools.batch(at, _QUERIES)  # (B, K) or (1, N), (B, K)
            query = self.embeddings[at : at + _QUERIES]
            pool = self.encoded if self.pools.shared else self.train_embeddings[rows]
            places = self.network.greedy(query, pool, most, None if mask.all() else mask, **how)  # (B, S)
            chosen += [[row for row in own if row >= 0] for own in rows_at(rows, places).tolist()]
        return chosen
