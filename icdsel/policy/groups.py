"""Converts RL data to the tensors used in training. They stay on the device; nothing is loaded per step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from icdsel.errors import RlDataError
from icdsel.policy.rewards import fields_of, normalize_rewards, reward_of
from icdsel.records import QueryGroup, QuestionId, id_order, score_key
from icdsel.records.scored_pointer import REFERENCE_SCORES
from icdsel.retrieval.pools import Pools
from icdsel.settings.tables import RewardSettings

_MOST_PADDING = 64  # maximum ratio of a padded tensor's size to the number of values in it


@dataclass(frozen=True)
class Groups:
    """Q queries with their pools and scored pointers, padded to the largest pool and the largest group.

    Attributes:
        query: Row of each query in the table of embeddings, int64 (Q,).
        pool: Rows of the candidates, int64 (Q, K), 0 where padded; (1, N) if all queries share one pool.
        mask: True where there is a candidate, bool (Q, K).
        pointers: Positions in the pool, int64 (Q, P, S); -1 where padded, and after the end of a shorter pointer.
        raw: Rewards, float32 (Q, P); NaN where padded.
        normalized: Rewards normalised within each query, float32 (Q, P); NaN where padded.
    """

    query: Tensor
    pool: Tensor
    mask: Tensor
    pointers: Tensor
    raw: Tensor
    normalized: Tensor

    def __len__(self) -> int:
        return len(self.query)

    @property
    def coverage(self) -> float:
        """The share of a pool's candidates that are in a scored pointer, the mean over the queries."""
        scored = torch.tensor([len({*places, -1}) - 1 for places in self.pointers.flatten(1).tolist()])
        return float((scored / self.mask.sum(-1).cpu()).mean())

    def to(self, device: torch.device) -> Self:
        """Returns a copy on `device`."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def narrowed(self, negatives: int, generator: torch.Generator) -> Self:
        """The same groups, over a part of the pool that they share: all scored candidates, and some at random.

        Scored candidates are near the queries or chosen by a policy, so they are the hard negatives of other queries;
        the random ones stand for the rest. Pools that differ by query are small, and stay as they are.

        Args:
            negatives: How many candidates to draw; some may be scored ones.
            generator: Source of randomness, on the CPU.
        """
        total = self.pool.shape[1]
        if len(self.pool) > 1 or negatives >= total:
            return self
        kept = torch.zeros(total + 1, dtype=torch.bool, device=self.pool.device)  # the last one is of padding, -1
        kept[torch.randperm(total, generator=generator)[:negatives].to(kept.device)] = True
        kept[self.pointers.flatten()] = True
        kept[-1] = False
        places = kept.cumsum(0) - 1  # (N + 1,): the position of each kept candidate
        places[-1] = -1
        kept = kept[:-1]
        return replace(self, pool=self.pool[:, kept], mask=self.mask[:, kept], pointers=places[self.pointers])

    def __getitem__(self, rows: Tensor | slice) -> Self:
        chosen = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "pool"}
        return type(self)(pool=self.pool if len(self.pool) == 1 else self.pool[rows], **chosen)


def split_groups(groups: Sequence[QueryGroup], train_share: float = 0.8) -> tuple[list[QueryGroup], list[QueryGroup]]:
    """Splits by question_id, as Lever-Plus does: the first 80 % for training, the rest for validation.

    Raises:
        RlDataError: There are fewer than two queries.
    """
    ordered = sorted(groups, key=lambda group: id_order(group.question_id))
    cut = min(max(1, int(len(ordered) * train_share)), len(ordered) - 1)
    if cut < 1:
        raise RlDataError(
            "at least two queries are needed, one to train on and one to validate on: use --queries 2 or more"
        )
    return ordered[:cut], ordered[cut:]


def require_scores(groups: Iterable[QueryGroup], settings: RewardSettings, name: str = "the RL data") -> None:
    """Checks that the candidates of `groups`, called `name`, have all scores that the reward is made of.

    Raises:
        RlDataError: A score, or the length of a prompt, is missing.
    """
    candidates = [candidate for group in groups for candidate in group.candidates]
    for field in fields_of(settings.mode):
        if lacking := sum(getattr(candidate, field) is None for candidate in candidates):
            option = "--references labels " if field in REFERENCE_SCORES else ""
            raise RlDataError(
                f"{lacking} candidates of {name} have no {score_key(field)}, which --reward-mode {settings.mode} "
                f"needs: use hard_plus_soft, or run their gen-rl-data command again with {option}--overwrite"
            )
    if settings.token_price and (lacking := sum(candidate.prompt_tokens is None for candidate in candidates)):
        raise RlDataError(
            f"{lacking} candidates of {name} have no prompt_tokens, which --token-price needs: use --price, or "
            f"run their gen-rl-data command again with --overwrite"
        )


def make_groups(
    groups: Sequence[QueryGroup],
    row: Mapping[QuestionId, int],
    settings: RewardSettings,
    std_floor: float = 0.0,
    shots: int | None = None,
) -> Groups:
    """Converts `groups`, which must not contain failed calls, to tensors.

    `row` maps question_ids to rows of the table of embeddings; for `std_floor` see `normalize_rewards`. `shots` is the
    maximum number of ICDs, S; None for that of these groups.

    Raises:
        RlDataError: A question_id is not in the table, all pointers are empty, a score or the length of a prompt that
            the reward needs is missing, or one query is far larger than the others.
    """
    ids = {i for group in groups for i in (group.question_id, *(group.pool or ()))}
    ids |= {i for group in groups for candidate in group.candidates for i in candidate.pointer}
    if unknown := sorted(ids - row.keys(), key=id_order):
        raise RlDataError(
            f"{len(unknown)} question_ids of the RL data are not in the training split (first {unknown[:3]}): "
            f"they belong to another dataset"
        )
    require_scores(groups, settings)
    shots = shots or max(len(candidate.pointer) for group in groups for candidate in group.candidates)
    if not shots:
        raise RlDataError("all pointers of the RL data are empty: there is no ICD to choose")
    for what, sizes in (
        ("pointers", [len(g.candidates) for g in groups]),
        ("candidates in its pool", [len(g.pool or ()) for g in groups]),
    ):
        if len(groups) * max(sizes) > _MOST_PADDING * sum(sizes) + 2**20:  # all queries are padded to the largest
            raise RlDataError(
                f"one query has {max(sizes):,} {what}, far more than the others ({sum(sizes):,} in all "
                f"{len(groups):,} queries): leave it out, or train on it in a separate file"
            )
    most = max(len(g.candidates) for g in groups)
    pool, mask = _pools(groups, row)
    pointers = torch.full((len(groups), most, shots), -1)
    raw = torch.full((len(groups), most), torch.nan)
    normalized = raw.clone()
    for q, group in enumerate(groups):
        place = row if group.pool is None else {question_id: k for k, question_id in enumerate(group.pool)}
        count = len(group.candidates)
        pointers[q, :count] = torch.tensor(
            [[*(place[i] for i in c.pointer), *[-1] * (shots - len(c.pointer))] for c in group.candidates]
        )
        rewards = torch.tensor(_rewards(group, settings))
        raw[q, :count] = rewards
        normalized[q, :count] = normalize_rewards(rewards, settings.normalization, settings.clamp, std_floor=std_floor)
    query = torch.tensor([row[group.question_id] for group in groups])
    return Groups(query, pool, mask, pointers, raw, normalized)


def _rewards(group: QueryGroup, settings: RewardSettings) -> list[float]:
    """The rewards of a query's pointers, without prices if nothing would earn a reward.

    A query that no scored pointer helped says nothing about how many ICDs it needs. With prices it would teach the
    policy to stop, at all queries like it.
    """
    free = settings.model_copy(update={"price": 0.0, "token_price": 0.0})
    earned = [reward_of(candidate, free) for candidate in group.candidates]
    return [reward_of(candidate, settings) for candidate in group.candidates] if max(earned) > 0 else earned


def _pools(groups: Sequence[QueryGroup], row: Mapping[QuestionId, int]) -> tuple[Tensor, Tensor]:
    """Returns the pools' rows (Q, K), or (1, N) if the pool is the whole training split, and the mask (Q, K).

    Raises:
        RlDataError: Some pools are the whole split and others are not.
    """
    hidden = [{row[i] for i in (group.question_id, *group.excluded) if i in row} for group in groups]
    lists = [[row[i] for i in group.pool] for group in groups if group.pool is not None]
    if lists and len(lists) < len(groups):
        raise RlDataError("pools of --pool-size all cannot be trained on together with smaller ones")
    return Pools(len(row), hidden, lists or None).batch(0, len(groups))
