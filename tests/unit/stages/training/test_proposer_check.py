"""The policy against the proposals that it learnt from, on held-out queries, with a fake VLM and without one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from fakes import fake_session

from icdsel.data.datasets import Split
from icdsel.errors import CallsError
from icdsel.policy.groups import make_groups
from icdsel.policy.network import CosineNetwork
from icdsel.records import Answer, Example, QueryGroup, ScoredPointer
from icdsel.settings.tables import RewardSettings
from icdsel.stages.training.proposer_check import Comparison, compare_with_proposer
from icdsel.vlm.engine import Request

SIZE = 30
EXAMPLES = [Example(100 + i, i, Path(f"{i}.png"), "Which code?", "yes", ("yes",) * 10) for i in range(SIZE)]
TRAIN = Split("train", EXAMPLES)
# Neighbours on a circle: the policy, which ranks by cosine, chooses the next example (or the one before).
ANGLES = torch.arange(SIZE) * (2 * torch.pi / SIZE) + 1e-3 * torch.arange(SIZE)
TABLE = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=-1)
POLICY = CosineNetwork(2).eval()


class Asked:
    """Answers rightly where the predicate holds."""

    name, can_score_references = "asked", True

    def __init__(self, right: Callable[[Request], bool], fails: bool = False) -> None:
        self.right, self.fails, self.calls = right, fails, 0

    def answer(self, requests: Sequence[Request], on_answers: Callable[[Mapping[int, Answer]], None]) -> list[Answer]:
        if self.fails:
            raise CallsError("too many calls failed")
        self.calls += len(requests)
        made = []
        for request in requests:
            scores = ((-1.0,) * len(request.references), (1,) * len(request.references))
            made.append(Answer("yes" if self.right(request) else "no", *scores))
        on_answers(dict(enumerate(made)))
        return made


def group(q: int, first: float, *others: ScoredPointer, method: str | None = "cosine-beam") -> QueryGroup:
    """A query whose proposer's first choice is the example opposite, with this reward."""
    opposite = 100 + (q + SIZE // 2) % SIZE
    beam = ScoredPointer((opposite,), method, rank=0, correct=int(first > 0), score=first)
    return QueryGroup(100 + q, q, "Which code?", ("yes",) * 10, None, (beam, *others), excluded=(100 + q,))


def compare(groups: Sequence[QueryGroup], vlm: Asked | None) -> Comparison | None:
    session = fake_session(TRAIN, vlm)
    tensors = make_groups(groups, TRAIN.row, RewardSettings())
    return compare_with_proposer(session, groups, tensors, TABLE, POLICY, query=vlm is not None)


def test_choices_that_were_never_scored_are_answered_by_the_vlm(caplog: pytest.LogCaptureFixture) -> None:
    vlm = Asked(lambda request: False)
    found = compare([group(q, 1.0) for q in range(10)], vlm)
    assert found is not None and vlm.calls == 10
    assert (found.queries, found.policy, found.proposer, found.known) == (10, 0.0, 2.0, 1.0)
    assert found.is_worse and "worse than the proposals that it learnt from" in caplog.text


def test_a_policy_that_is_as_good_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    vlm = Asked(lambda request: request.query.question_id != 100)
    found = compare([group(q, 1.0) for q in range(10)], vlm)  # one wrong answer of ten: chance explains it
    assert found is not None and found.policy == pytest.approx(1.8) and not found.is_worse
    assert "worse" not in caplog.text


def test_a_few_queries_need_a_larger_difference() -> None:
    # Differences of -2, -2, -2 and 0: three standard errors below 0, of which Student's interval with four needs 3.2.
    found = compare([group(q, 1.0) for q in range(4)], Asked(lambda request: request.query.question_id > 102))
    assert found is not None and (found.policy, found.proposer) == (0.5, 2.0)
    assert found.width == pytest.approx(3.182 * 1.0 / 4**0.5, abs=1e-3) and not found.is_worse


def test_choices_that_were_scored_are_not_answered_again() -> None:
    places = POLICY.greedy(TABLE[:1], TABLE[None], 1, (torch.arange(SIZE) != 0)[None])
    chosen = ScoredPointer((100 + int(places[0, 0]),), "retrieval", rank=0, correct=1, score=0.3)
    vlm = Asked(lambda request: True)
    found = compare([group(0, 1.0, chosen)], vlm)
    assert found is not None and vlm.calls == 0
    assert found.policy == pytest.approx(1.3)


def test_without_the_vlm_the_most_probable_scored_pointer_counts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    nearer = [ScoredPointer((100 + (q + 5) % SIZE,), "retrieval", rank=1, correct=0, score=0.0) for q in range(8)]
    found = compare([group(q, 1.0, nearer[q]) for q in range(8)], None)
    assert found is not None
    assert (found.queries, found.policy, found.proposer, found.known) == (8, 0.0, 2.0, 0.0)
    assert found.is_worse and "has a score for 0%" in caplog.text


def test_a_choice_that_was_never_scored_from_a_large_pool_cannot_be_judged(caplog: pytest.LogCaptureFixture) -> None:
    found = compare([group(q, 1.0) for q in range(10)], None)  # one of 29 candidates is scored, and it is not chosen
    assert found is not None and (found.policy, found.known) == (2.0, 0.0) and not found.is_worse
    assert "cannot be told" in caplog.text


def test_the_best_proposer_of_several_rounds_counts() -> None:
    second = [ScoredPointer((100 + (q + 9) % SIZE,), "policy-beam", rank=0, correct=1, score=1.0) for q in range(4)]
    found = compare([group(q, 0.0, second[q]) for q in range(4)], None)
    assert found is not None and found.proposer == 2.0


def test_without_a_first_choice_nothing_is_compared_or_queried() -> None:
    vlm = Asked(lambda request: True)
    assert compare([group(0, 1.0, method="random")], vlm) is None and vlm.calls == 0


def test_a_vlm_that_fails_does_not_end_the_training(caplog: pytest.LogCaptureFixture) -> None:
    found = compare([group(q, 1.0) for q in range(4)], Asked(lambda request: True, fails=True))
    assert found is not None and found.known == 0.0
    assert "were not scored: too many calls failed" in caplog.text
