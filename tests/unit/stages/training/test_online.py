import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import fake_session

from icdsel.artefacts.rl_data import merge, read_rl_data
from icdsel.data.datasets import Split
from icdsel.errors import RlDataError
from icdsel.policy.config import PointerConfig
from icdsel.policy.groups import make_groups
from icdsel.policy.loop import Epoch, train_policy
from icdsel.policy.network import PointerNetwork
from icdsel.records import Answer, Example, QueryGroup, ScoredPointer
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages.training.online import Rollouts, most_calls
from icdsel.store.journal import Journal
from icdsel.vlm.engine import Request

EXAMPLES = [Example(100 + i, i, Path(f"{i}.png"), "Which code?", f"a{i % 4}", (f"a{i % 4}",) * 10) for i in range(24)]
TRAIN = Split("train", EXAMPLES)
TABLE = torch.nn.functional.normalize(torch.randn(24, 6, generator=torch.Generator().manual_seed(9)), dim=-1)
POOL = 8


def say(steps: int, said: str = "") -> None:
    assert steps == 0


class Asked:
    """Answers with the query's own answer if a demonstration shows it, and keeps the requests."""

    name = "asked"
    can_score_references = True

    def __init__(self, fails: Callable[[Request], bool] = lambda request: False) -> None:
        self.requests: list[Request] = []
        self.fails = fails

    def answer(self, requests: Sequence[Request], on_answers: Callable[[Mapping[int, Answer]], None]) -> list[Answer]:
        self.requests += requests
        made = []
        for request in requests:
            match = [icd.answer for icd in request.icds if icd.answer == request.query.answer]
            scores = ((-1.0,) * len(request.references), (1,) * len(request.references))
            made.append(
                Answer("", error="no memory") if self.fails(request) else Answer((match or ["none"])[0], *scores)
            )
        on_answers(dict(enumerate(made)))
        return made

    @property
    def pointers(self) -> list[tuple[int, ...]]:
        return [(r.query.question_id, *(icd.question_id for icd in r.icds)) for r in self.requests]


def groups(count: int = 6) -> list[QueryGroup]:
    """Queries that have one scored pointer each, the first two of their pools."""
    made = []
    for q in range(count):
        pool = tuple(100 + (q + k) % 24 for k in range(1, POOL + 1))
        right = any(TRAIN.by_id(i).answer == EXAMPLES[q].answer for i in pool[:2])
        scored = ScoredPointer(pool[:2], correct=int(right), score=float(right))
        made.append(QueryGroup(100 + q, q, "Which code?", EXAMPLES[q].answers, pool, (scored,)))
    return made


def rollouts(folder: Path, vlm: Asked, *, seed: int = 1, count: int = 6, **train: Any) -> Rollouts:
    sources = fake_session(TRAIN, vlm)
    settings = TrainSettings(**{"online": True, "grpo_epochs": 3, "online_samples": 5} | train)
    return Rollouts(sources, groups(count), settings, RewardSettings(), seed, Journal(folder / "online.jsonl"), say)


def network(seed: int = 0) -> PointerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointerNetwork(PointerConfig(6, hidden_dim=8, tower=8, dropout=0.0, attn_dropout=0.0))


def test_no_pointer_is_scored_twice_and_groups_grow(tmp_path: Path) -> None:
    vlm = Asked()
    made, policy = rollouts(tmp_path, vlm), network()
    known = {(group.question_id, *group.candidates[0].pointer) for group in groups()}
    calls = []
    for epoch in range(3):
        before = len(vlm.requests)
        tensors, report = made(policy, TABLE, epoch)
        calls.append(report["new_calls"])
        assert report["vlm_calls"] == len(vlm.requests) == before + report["new_calls"]
        assert int((~tensors.raw.isnan()).sum()) == 6 + len(vlm.requests)
    assert len(set(vlm.pointers)) == len(vlm.pointers)
    assert not known & set(vlm.pointers)
    assert 10 < calls[0] <= 30 and calls[2] < calls[0]  # of 56 pointers some come again
    for request in vlm.requests:
        ids = [icd.question_id for icd in request.icds]
        pool = groups()[request.query.question_id - 100].pool
        assert set(ids) <= set(pool) and len(set(ids)) == 2


def test_the_mean_reward_of_the_samples_counts_repetitions(tmp_path: Path) -> None:
    # A cold policy: one candidate's cosine stands out, so that its samples repeat. The mean is over all samples drawn.
    vlm, policy = Asked(), network()
    _, report = rollouts(tmp_path, vlm, online_samples=400, count=1)(policy, TABLE, 0)
    query, pool = TABLE[:1], TABLE[[(k) % 24 for k in range(1, POOL + 1)]][None]
    every = torch.tensor(list(itertools.permutations(range(POOL), 2)))[None]
    probability = policy.log_prob(query, pool, every)[0].exp()
    answers = [EXAMPLES[k].answer == EXAMPLES[0].answer for k in range(1, POOL + 1)]
    worth = torch.tensor([2.0 * (answers[a] or answers[b]) for a, b in every[0].tolist()])
    expected = (probability * worth).sum().item()
    assert report["sample_reward"] == pytest.approx(expected, abs=0.2)  # 3.5 standard errors of 400 samples at most
    assert report["new_calls"] < 60


def test_the_budget_is_never_exceeded(tmp_path: Path) -> None:
    vlm = Asked()
    made = rollouts(tmp_path, vlm, vlm_budget=20)
    calls = [made(network(epoch), TABLE, epoch)[1]["vlm_calls"] for epoch in range(3)]
    assert calls[0] < 20 and calls[1:] == [20, 20] and len(vlm.requests) == 20
    assert most_calls(TrainSettings(online=True, grpo_epochs=3, online_samples=5), 6) == 90
    assert most_calls(TrainSettings(online=True, grpo_epochs=3, online_samples=5, vlm_budget=37), 6) == 37


def test_a_budget_that_runs_out_favours_no_query(tmp_path: Path) -> None:
    vlm = Asked()
    rollouts(tmp_path, vlm, vlm_budget=6, online_samples=3)(network(), TABLE, 0)
    assert {row[0] for row in vlm.pointers} != {100, 101}  # the first ones


def test_the_same_seed_gives_the_same_calls(tmp_path: Path) -> None:
    asked = []
    for seed in (1, 1, 2):
        vlm = Asked()
        rollouts(tmp_path / str(len(asked)), vlm, seed=seed)(network(), TABLE, 0)
        asked.append(vlm.pointers)
    assert asked[0] == asked[1] != asked[2]
    assert (tmp_path / "0/online.jsonl").read_bytes() == (tmp_path / "1/online.jsonl").read_bytes()


def test_failed_calls_count_but_are_neither_learned_from_nor_repeated(tmp_path: Path) -> None:
    vlm = Asked(fails=lambda request: request.icds[0].question_id % 2 == 0)
    made = rollouts(tmp_path, vlm)
    for epoch in range(2):
        tensors, report = made(network(), TABLE, epoch)
    assert report["vlm_calls"] == len(vlm.requests) == len(set(vlm.pointers))
    failed = sum(row[1] % 2 == 0 for row in vlm.pointers)
    assert 0 < failed < len(vlm.requests)
    assert int((~tensors.raw.isnan()).sum()) == 6 + len(vlm.requests) - failed
    assert read_rl_data(tmp_path / "online.jsonl").rejected == {"the VLM call failed": failed}


def test_calls_that_all_fail_are_recorded(tmp_path: Path) -> None:
    _, report = rollouts(tmp_path, Asked(fails=lambda request: True))(network(), TABLE, 0)
    with pytest.raises(RlDataError, match=rf"no candidate can be used.*failed': {report['vlm_calls']:.0f}"):
        read_rl_data(tmp_path / "online.jsonl")


def test_the_journal_is_rl_data(tmp_path: Path) -> None:
    made = rollouts(tmp_path, Asked())
    for epoch in range(2):
        tensors, _ = made(network(), TABLE, epoch)
    lines = [json.loads(line) for line in (tmp_path / "online.jsonl").read_text().splitlines()]
    assert {c["gen_method"] for line in lines for c in line["pointer_candidates"]} == {"online-sample"}
    read = merge([groups(), read_rl_data(tmp_path / "online.jsonl").groups])
    again = make_groups(read, TRAIN.row, RewardSettings())
    assert torch.equal(again.pointers, tensors.pointers)
    assert torch.equal(again.raw.nan_to_num(-1), tensors.raw.nan_to_num(-1))


@pytest.mark.parametrize("torn", [0, 7])
@pytest.mark.parametrize("kept", [3, 6, 10])
def test_calls_in_the_journal_are_not_repeated(tmp_path: Path, kept: int, torn: int) -> None:
    # The journal of three epochs, cut off after some lines, in the middle of one even: going on asks about the rest
    # alone, in the same units (here an epoch's), and ends with the same journal and the same groups.
    (tmp_path / "whole").mkdir()
    vlm = Asked()
    made = rollouts(tmp_path / "whole", vlm)
    for epoch in range(3):
        expected, report = made(network(epoch), TABLE, epoch)
    lines = (tmp_path / "whole/online.jsonl").read_bytes().splitlines(keepends=True)
    ends = [sum(json.loads(line)["online_epoch"] < epoch for line in lines) for epoch in range(3)]
    whole = max(end for end in ends if end <= kept)
    (tmp_path / "online.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
    again = Asked()
    resumed = rollouts(tmp_path, again)
    begin = int(whole > 0)
    resumed.replay(begin)
    for epoch in range(begin, 3):
        found, after = resumed(network(epoch), TABLE, epoch)
    assert again.pointers == vlm.pointers[sum(len(json.loads(line)["pointer_candidates"]) for line in lines[:whole]) :]
    assert (tmp_path / "online.jsonl").read_bytes() == (tmp_path / "whole/online.jsonl").read_bytes()
    assert after["vlm_calls"] == report["vlm_calls"]
    assert torch.equal(found.pointers, expected.pointers)


def test_calls_from_a_damaged_line_on_are_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rollouts(tmp_path, Asked())(network(), TABLE, 0)
    journal = tmp_path / "online.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content.splitlines(keepends=True)[0] + b"\0" * 300 + b'"}\n')  # as after a power cut
    damaged = journal.read_bytes()
    again = Asked()
    resumed = rollouts(tmp_path, again)
    assert "online.jsonl, line 2: " in capsys.readouterr().err
    assert (
        journal.read_bytes() == damaged
    )  # the training may need what it lacks now: nothing is cut before that is known
    resumed(network(), TABLE, 0)
    assert journal.read_bytes() == content


def test_online_training_finds_pointers_that_the_data_did_not_have(tmp_path: Path) -> None:
    # The one scored pointer of a query says nothing by itself. Sampling does: in the end the policy's own samples are
    # right far more often, with the ratio at 1 at the beginning of every epoch.
    vlm, policy = Asked(), network()
    epochs: list[Epoch] = []
    settings = TrainSettings(
        online=True, rce_epochs=0, grpo_epochs=25, online_samples=5, batch_size=6, grpo_lr=1e-2, kl_beta=0.0
    )
    made = rollouts(tmp_path, vlm, grpo_epochs=25)
    known = make_groups(groups(), TRAIN.row, RewardSettings())
    train_policy(
        policy,
        TABLE,
        known,
        known,
        settings,
        seed=0,
        on_epoch=epochs.append,
        on_step=lambda steps: None,
        rollouts=made,
    )
    rewards = [epoch.metrics["sample_reward"] for epoch in epochs]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3
    assert all(epoch.metrics["mean_ratio"] == pytest.approx(1.0, abs=1e-5) for epoch in epochs)
