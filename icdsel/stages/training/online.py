"""Online GRPO: pointers sampled from the policy and scored by the VLM during training.

At the start of an epoch the current policy samples pointers for every training query. Pointers scored before, in the
RL data or in an earlier epoch, are not scored again. New ones are scored, appended to a journal in the form of RL data,
and added to the query's group; GRPO then runs over all of it. A resumed training takes the scores in its journal
instead of repeating the calls.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from icdsel.artefacts.reference_scores import groups_have_references
from icdsel.artefacts.rl_data import parse_group
from icdsel.console import Advance
from icdsel.errors import RlDataError
from icdsel.policy.groups import Groups, make_groups
from icdsel.policy.network import PointerNetwork
from icdsel.policy.references import scores_references
from icdsel.policy.rewards import reward_of
from icdsel.records import Pointer, PoolIds, Proposal, QueryGroup, QuestionId, ScoredPointer
from icdsel.records.values import is_int64
from icdsel.retrieval.pools import rows_at
from icdsel.settings.presets import RECIPES
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages.scored_unit import UNIT, Tally, score_unit
from icdsel.stages.session import Session
from icdsel.store.journal import Journal

METHOD = "online-sample"
_EPOCH = "online_epoch"


class Rollouts:
    """The groups of every epoch, with the policy's own samples among their pointers.

    Args:
        session: The training split and the VLM.
        groups: The training queries with the pointers scored so far.
        train: How many samples, and how many VLM calls at most.
        reward: How rewards are computed.
        seed: Seed of the samples.
        journal: The journal that new scores are appended to.
        advance: Called with 0 steps and the progress of the scoring of an epoch.
    """

    def __init__(
        self,
        session: Session,
        groups: Sequence[QueryGroup],
        train: TrainSettings,
        reward: RewardSettings,
        seed: int,
        journal: Journal,
        advance: Advance,
    ) -> None:
        self._session, self._train, self._reward, self._seed = session, train, reward, seed
        self._groups = list(groups)
        self._rewards: list[dict[Pointer, float | None]] = [
            {candidate.pointer: reward_of(candidate, reward) for candidate in group.candidates} for group in groups
        ]
        """The reward of every pointer that was tried; None if the call failed."""
        self._journal, self._advance = journal, advance
        self._at_most = most_calls(train, len(groups))
        self._journalled = read_journal(journal)
        self._references = scores_references(session.settings, groups_have_references(self._journalled.values()))
        self._known = 0
        """Lines of the journal whose groups have been added."""
        self.calls = 0
        """VLM calls so far, failed ones included."""
        self.failed = 0

    def replay(self, epochs: int) -> None:
        """Adds what the first epochs of an interrupted training scored, instead of repeating them.

        Raises:
            RlDataError: The journal holds a query that is not trained on.
        """
        place = {group.question_id: q for q, group in enumerate(self._groups)}
        for (epoch, question_id), group in self._journalled.items():
            if epoch < epochs:
                if question_id not in place:
                    raise RlDataError(f"{self._journal.path} holds query {question_id}, which is not trained on")
                self._add(place[question_id], group)

    def __call__(self, network: PointerNetwork, table: Tensor, epoch: int) -> tuple[Groups, dict[str, float]]:
        """Samples pointers, scores new ones, and returns the groups with all scored pointers.

        Args:
            network: The current policy.
            table: Embeddings (N, d) of the training split.
            epoch: The number of the epoch, from 0.

        Returns:
            The groups, in the order of the queries, and `sample_reward` (the mean reward of the samples: an unbiased
            estimate of the policy's expected reward on these queries, until the budget is spent), `new_calls` and
            `vlm_calls` (in total).
        """
        samples = self._sample(network, table, epoch)
        before = self.calls
        self._score(samples, epoch)
        rewards = [
            reward
            for known, sampled in zip(self._rewards, samples, strict=True)
            for sample in sampled
            if (reward := known.get(sample.pointer)) is not None
        ]
        metrics = {"sample_reward": sum(rewards) / len(rewards)} if rewards else {}
        metrics |= {"new_calls": self.calls - before, "vlm_calls": self.calls}
        floor = RECIPES[self._train.recipe].std_floor
        groups = make_groups(self._groups, self._session.train.row, self._reward, floor)
        return groups.to(table.device), metrics

    def _sample(self, network: PointerNetwork, table: Tensor, epoch: int) -> list[list[Proposal]]:
        """The samples of every query, in which a pointer may be repeated."""
        split, generator = self._session.train, torch.Generator().manual_seed(self._draw(epoch))
        groups = make_groups(self._groups, split.row, self._reward)
        samples: list[list[Proposal]] = []
        for at in range(0, len(groups), UNIT):
            batch = groups[at : at + UNIT].to(table.device)
            pointers, log_probs = network.sample(
                table[batch.query],
                table[batch.pool],
                batch.pointers.shape[-1],
                self._train.online_samples,
                generator=generator,
                mask=batch.mask,
            )  # (B, P, S), (B, P)
            places = pointers.flatten(1)  # -1 after a pointer that stopped
            rows_by_sample = rows_at(batch.pool, places).view_as(pointers).tolist()
            samples += [
                [
                    Proposal(
                        tuple(split[row].question_id for row in sample if row >= 0),
                        METHOD,
                        log_prob=value,
                        temperature=1.0,
                    )
                    for sample, value in zip(drawn, values, strict=True)
                ]
                for drawn, values in zip(rows_by_sample, log_probs.tolist(), strict=True)
            ]
        return samples

    def _score(self, samples: Sequence[Sequence[Proposal]], epoch: int) -> None:
        """Scores every pointer that was never tried, within the budget."""
        left = self._at_most - self.calls
        new: dict[int, list[Proposal]] = {}
        order = list(range(len(samples)))
        random.Random(self._draw(epoch)).shuffle(order)  # so that a budget that runs out favours no query
        for q in order:
            untried = list({p.pointer: p for p in samples[q] if p.pointer not in self._rewards[q]}.values())[:left]
            if untried:
                new[q] = untried
                left -= len(untried)
        scorer = self._session.scorer(self._session.train.name)
        tally, total, queries = Tally(scorer.task), sum(map(len, new.values())), sorted(new)

        def on_scored(candidates: Sequence[ScoredPointer]) -> None:
            quality = tally(candidates)
            self._advance(0, f"querying the VLM: {tally.requests:,} of {total:,}, {quality}")

        def scored(unit: Sequence[int]) -> list[QueryGroup] | None:
            groups = [self._groups[q] for q in unit]
            if all((epoch, group.question_id) in self._journalled for group in groups):
                return None
            examples = [self._session.train.by_id(group.question_id) for group in groups]
            pools = [PoolIds(group.pool, group.excluded) for group in groups]
            proposals = [new[q] for q in unit]
            return score_unit(self._session, examples, pools, proposals, scorer, on_scored, self._references)

        units = [queries[at : at + UNIT] for at in range(0, len(queries), UNIT)]
        with self._session.in_order(scored, units) as results:
            for unit, groups in zip(units, results, strict=True):
                if groups is not None:
                    # An incomplete unit is scored again completely: the last digits of a score depend on its batch.
                    self._journal.keep(self._known)
                    self._journal.append({_EPOCH: epoch} | group.to_json() for group in groups)
                    self._journalled |= {(epoch, group.question_id): group for group in groups}
                for q in unit:
                    self._add(q, self._journalled[epoch, self._groups[q].question_id])

    def _add(self, q: int, scored: QueryGroup) -> None:
        """Adds the pointers of a line of the journal to a query's group."""
        group = self._groups[q]
        if group.pool is not None and not {icd for c in scored.candidates for icd in c.pointer} <= set(group.pool):
            raise RlDataError(f"{self._journal.path}: a pointer of query {group.question_id} is not in its pool")
        valid = scored.without_failed().candidates
        self.calls += len(scored.candidates)
        self.failed += scored.failed
        self._known += 1
        self._groups[q] = replace(group, candidates=group.candidates + valid)
        self._rewards[q] |= dict.fromkeys(candidate.pointer for candidate in scored.candidates)
        self._rewards[q] |= {candidate.pointer: reward_of(candidate, self._reward) for candidate in valid}

    def _draw(self, epoch: int) -> int:
        """The seed of an epoch's draws."""
        return random.Random(f"online-{self._seed}-{epoch}").getrandbits(63)


def most_calls(train: TrainSettings, queries: int) -> int:
    """The maximum number of VLM calls of online training."""
    possible = train.grpo_epochs * train.online_samples * queries
    return possible if train.vlm_budget is None else min(possible, train.vlm_budget)


def read_journal(journal: Journal) -> dict[tuple[int, QuestionId], QueryGroup]:
    """The groups of a journal by epoch and query, up to a line that is torn or damaged.

    What follows that line is cut off only when something is appended, in case the training cannot resume without it.

    Raises:
        RlDataError: It cannot be read.
    """
    return {(epoch, group.question_id): group for epoch, group in journal.read(_parse_line)}


def _parse_line(value: Any) -> tuple[int, QueryGroup]:
    """The epoch and the scored pointers of a line; ValueError if it is not one that `Rollouts` wrote."""
    group, rejected = parse_group(value)
    if rejected or not is_int64(value.get(_EPOCH)):
        raise ValueError(rejected[0].reason if rejected else f"its {_EPOCH} is missing or not an integer")
    return value[_EPOCH], group
