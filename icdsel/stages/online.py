"""Online GRPO: pointers sampled from the policy as it is trained, scored by the VLM as training goes.

At the beginning of an epoch every training query gets samples of the current policy. What was scored before, in the RL
data or in an earlier epoch, is not asked again. What is new is scored, appended to a journal in the form of RL data,
and joins what is known of the query; GRPO then runs over all of it. What an interrupted training has in its journal is
not asked again either.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from icdsel.artefacts.lever_plus_rl_data import FAILED
from icdsel.artefacts.rl_data import NO_RECORD, read_group
from icdsel.console import Advance, warn
from icdsel.errors import RlDataError
from icdsel.policy.groups import Groups, make_groups, reward_of
from icdsel.policy.network import PointerNetwork
from icdsel.records import Pointer, Proposal, QueryGroup
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages.scored_unit import UNIT, Tally, score_unit
from icdsel.stages.session import Session
from icdsel.store.journal import Journal
from icdsel.store.json_reading import is_id

METHOD = "online-sample"


class Rollouts:
    """Gives the groups of every epoch, with the policy's own samples among their pointers.

    Args:
        session: The training split and the VLM.
        groups: The training queries with what is known of them.
        train: How many samples, and how many VLM calls at most.
        reward: How rewards are made.
        seed: Of the samples.
        journal: What new scores are appended to.
        say: Called with 0 and how far the scoring of an epoch is.
    """

    def __init__(
        self,
        session: Session,
        groups: Sequence[QueryGroup],
        train: TrainSettings,
        reward: RewardSettings,
        seed: int,
        journal: Journal,
        say: Advance,
    ) -> None:
        self._sources, self._train, self._reward, self._seed = session, train, reward, seed
        self._groups = list(groups)
        self._rewards: list[dict[Pointer, float | None]] = [
            {tuple(candidate["pointer"]): reward_of(candidate, reward) for candidate in group.candidates}
            for group in groups
        ]
        """Of every pointer that was asked about; None where the call failed."""
        self._journal, self._say = journal, say
        self._at_most = most_calls(train, len(groups))
        self._journalled = _read_journal(journal)
        self._taken = 0
        """Records of the journal that are known."""
        self.calls = 0
        """VLM calls so far, failed ones included."""
        self.failed = 0

    def replay(self, epochs: int) -> None:
        """Takes in what the first epochs of an interrupted training scored, instead of running them again.

        Raises:
            RlDataError: the journal holds a query that is not trained on.
        """
        place = {group.question_id: q for q, group in enumerate(self._groups)}
        for record in self._journalled.values():
            if record["online_epoch"] < epochs:
                if record["question_id"] not in place:
                    raise RlDataError(
                        f"{self._journal.path} holds query {record['question_id']}, which is not trained on"
                    )
                self._take_in(place[record["question_id"]], record)

    def __call__(self, network: PointerNetwork, table: Tensor, epoch: int) -> tuple[Groups, dict[str, float]]:
        """Samples, scores what is new, and gives all that is known.

        Args:
            network: The policy, as it is now.
            table: Embeddings (N, d) of the training split.
            epoch: The number of the epoch, from 0.

        Returns:
            The groups, in the order of the queries, and `sample_reward` (the mean reward of the samples: an unbiased
            estimate of the policy's expected reward on these queries, until the budget is spent), `new_calls` and
            `vlm_calls` (in all).
        """
        drawn = self._sample(network, table, epoch)
        before = self.calls
        self._score(drawn, epoch)
        known = zip(self._rewards, drawn, strict=True)
        rewards = [value for own, made in known for p in made if (value := own.get(p.pointer)) is not None]
        told = {"sample_reward": sum(rewards) / len(rewards)} if rewards else {}
        told |= {"new_calls": self.calls - before, "vlm_calls": self.calls}
        return make_groups(self._groups, self._sources.train.row, self._reward).to(table.device), told

    def _sample(self, network: PointerNetwork, table: Tensor, epoch: int) -> list[list[Proposal]]:
        """The samples of every query; the same pointer may come twice."""
        split, generator = self._sources.train, torch.Generator().manual_seed(self._draw(epoch))
        groups = make_groups(self._groups, split.row, self._reward)
        drawn: list[list[Proposal]] = []
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
            rows = batch.pool.expand(len(batch), -1).gather(1, pointers.flatten(1)).view_as(pointers).tolist()
            drawn += [
                [
                    Proposal(tuple(split[row].question_id for row in places), METHOD, log_prob=value, temperature=1.0)
                    for places, value in zip(own, values, strict=True)
                ]
                for own, values in zip(rows, log_probs.tolist(), strict=True)
            ]
        return drawn

    def _score(self, drawn: Sequence[Sequence[Proposal]], epoch: int) -> None:
        """Asks about every pointer that was never asked about, as far as the budget goes."""
        left = self._at_most - self.calls
        asked: dict[int, list[Proposal]] = {}
        order = list(range(len(drawn)))
        random.Random(self._draw(epoch)).shuffle(order)  # a budget that ends favours no query
        for q in order:
            new = list({p.pointer: p for p in drawn[q] if p.pointer not in self._rewards[q]}.values())[:left]
            if new:
                asked[q] = new
                left -= len(new)
        tally, total, queries = Tally(), sum(map(len, asked.values())), sorted(asked)

        def on_scored(candidates: Sequence[dict[str, Any]]) -> None:
            correct = tally(candidates)
            self._say(0, f"asking the VLM: {tally.asked:,} of {total:,}, {correct}")

        for at in range(0, len(queries), UNIT):
            self._score_unit(epoch, {q: asked[q] for q in queries[at : at + UNIT]}, on_scored)

    def _score_unit(
        self, epoch: int, asked: Mapping[int, Sequence[Proposal]], on_scored: Callable[[Sequence[dict[str, Any]]], None]
    ) -> None:
        """Scores the pointers of some queries, by their places; what comes of it is written and joins what is known."""
        ids = {q: self._groups[q].question_id for q in asked}
        if not all((epoch, question_id) in self._journalled for question_id in ids.values()):
            self._journal.keep(self._taken)  # a torn unit is asked again whole: the batch decides the last digits
            queries = [self._sources.train.by_id(question_id) for question_id in ids.values()]
            pools = [_pool(self._groups[q]) for q in asked]
            records = score_unit(self._sources, queries, pools, list(asked.values()), on_scored)
            records = [{"online_epoch": epoch} | record for record in records]
            self._journal.append(records)
            self._journalled |= {(epoch, record["question_id"]): record for record in records}
        for q in asked:
            self._take_in(q, self._journalled[epoch, ids[q]])

    def _take_in(self, q: int, record: Mapping[str, Any]) -> None:
        """Puts what was scored of a query to what is known."""
        scored, pool = record["pointer_candidates"], self._groups[q].pool
        if pool is not None and not {icd for candidate in scored for icd in candidate["pointer"]} <= set(pool):
            raise RlDataError(f"{self._journal.path}: a pointer of query {record['question_id']} is not in its pool")
        fine = tuple(candidate for candidate in scored if "error" not in candidate)
        self.calls += len(scored)
        self.failed += len(scored) - len(fine)
        self._taken += 1
        self._groups[q] = replace(self._groups[q], candidates=self._groups[q].candidates + fine)
        self._rewards[q] |= dict.fromkeys(tuple(candidate["pointer"]) for candidate in scored)
        self._rewards[q] |= {tuple(candidate["pointer"]): reward_of(candidate, self._reward) for candidate in fine}

    def _draw(self, epoch: int) -> int:
        """What the draws of an epoch begin with."""
        return random.Random(f"online-{self._seed}-{epoch}").getrandbits(63)


def most_calls(train: TrainSettings, queries: int) -> int:
    """The VLM calls of online training at most."""
    possible = train.grpo_epochs * train.online_samples * queries
    return possible if train.vlm_budget is None else min(possible, train.vlm_budget)


def _read_journal(journal: Journal) -> dict[tuple[int, int], dict[str, Any]]:
    """The records of a journal by epoch and query, up to a line that is torn or damaged.

    What stands behind that line is cut off only when something is appended: the training may need it.

    Raises:
        RlDataError: It cannot be read.
    """
    records: dict[tuple[int, int], dict[str, Any]] = {}
    try:
        for record in journal.read(lambda record: record):
            rejected = Counter[str]()
            question_id = read_group(record, rejected).question_id
            if not is_id(record["online_epoch"]) or rejected.keys() - {FAILED}:
                raise ValueError("its epoch is no integer, or a pointer could not be trained on")
            records[record["online_epoch"], question_id] = record
    except NO_RECORD as error:
        line = f"{journal.path}, line {len(records) + 1}"
        warn(f"{line}: {type(error).__name__} {error}: from here on the VLM is asked again")
    return records


def _pool(group: QueryGroup) -> dict[str, Any]:
    """What a record of RL data says of the pool."""
    if group.pool is None:
        return {"candidate_pool_ids": "all", "excluded_ids": list(group.excluded)}
    return {"candidate_pool_ids": list(group.pool)}
