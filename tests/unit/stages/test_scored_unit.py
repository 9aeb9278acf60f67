"""A unit of queries is scored by the task of the settings, with a VLM that only counts letters."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import fake_session
from toy_task import letters_task

from icdsel.data.datasets import Split
from icdsel.errors import SettingsError, VlmError
from icdsel.records import Answer, Example, Pointer, PoolIds, Prediction, Proposal, QueryGroup, ScoredPointer
from icdsel.selection import Selector
from icdsel.settings.loading import settings_from
from icdsel.stages.answering import UNIT, Prompts, answer_prompts, complete_units
from icdsel.stages.scored_unit import Tally, score_unit
from icdsel.stages.scorers import scorer_of
from icdsel.store.journal import Journal
from icdsel.tasks.base import TASKS
from icdsel.tasks.scoring import Scorer
from icdsel.vlm.engine import Request

CODES = ("doni", "gesa", "doti", "doga")
EXAMPLES = [Example(i, i, Path(f"{i}.png"), "Which?", CODES[i % 4].upper(), (CODES[i % 4],)) for i in range(8)]
TRAIN = Split("train", EXAMPLES)


class LastDemonstration:
    """Answers as the last demonstration does; fails without one."""

    name, can_score_references, why_no_references = "last-demonstration", True, "it only copies"

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def answer(self, requests: Sequence[Request], on_answers: Callable[[Mapping[int, Answer]], None]) -> list[Answer]:
        self.requests += requests
        answers = [
            Answer(f" {request.icds[-1].answer}") if request.icds else Answer("", error="no demonstration")
            for request in requests
        ]
        on_answers(dict(enumerate(answers)))
        return answers


class AlwaysTheSame(Selector):
    """Shows example 1 to every query."""

    name = "same"

    def choose(self, context: Any, shots: int) -> list[Pointer | None]:
        return [(1,)] * len(context.queries)


class Stops(AlwaysTheSame):
    """Decides to show example 1 to queries with even ids, unless stopping is made likely."""

    can_stop = True

    def choose_auto(self, context: Any, offset: float) -> list[Pointer | None]:
        return [() if query.question_id % 2 or offset > 0 else (1,) for query in context.queries]


def session(vlm: LastDemonstration, references: str = "auto", reward: str = "hard_plus_soft", **data: Any) -> Any:
    given = {"data": data, "proposals": {"references": references}, "reward": {"mode": reward}}
    return fake_session(TRAIN, vlm, **given)


@pytest.fixture
def letters() -> Iterator[None]:
    with letters_task():
        yield


def test_proposals_are_scored_by_the_task_in_their_order(letters: None) -> None:
    vlm, texts = LastDemonstration(), []
    tally = Tally(TASKS["letters"])
    proposals = [[Proposal((1, 2), "random"), Proposal((3,), "beam")], [Proposal((), "zero"), Proposal((5,), "beam")]]
    groups = score_unit(
        session(vlm, task="letters"),
        [EXAMPLES[0], EXAMPLES[1]],
        [PoolIds((1, 2, 3)), PoolIds(None, (1,))],
        proposals,
        Scorer.named("letters", None, "strip"),
        lambda scored: texts.append(tally(scored)),
    )
    # doti and doga have 2 letters in common with doni, gesa has all 3 with gesa.
    assert groups == [
        QueryGroup(
            *(0, 0, "Which?", ("doni",), (1, 2, 3)),
            (
                ScoredPointer((1, 2), "random", prediction="doti", score=2.0),
                ScoredPointer((3,), "beam", prediction="doga", score=2.0),
            ),
            task="letters",
        ),
        QueryGroup(
            *(1, 1, "Which?", ("gesa",), None),
            (
                ScoredPointer((), "zero", error="no demonstration"),
                ScoredPointer((5,), "beam", prediction="gesa", score=3.0),
            ),
            excluded=(1,),
            task="letters",
        ),
    ]
    assert texts == ["mean letters 2.33"] and tally.requests == 4


def test_a_prompt_shows_what_the_task_demonstrates_and_asks_for_the_references_that_are_wanted(letters: None) -> None:
    one = [EXAMPLES[0]], [PoolIds((1,))], [[Proposal((1,), "random")]]
    for task, answer, wanted, references in (
        *(("letters", "gesa", "labels", ()), ("vqa", "GESA", "auto", ())),
        *(("vqa", "GESA", "none", ()), ("vqa", "GESA", "labels", ("doni",))),
    ):
        vlm = LastDemonstration()
        vlm_session = session(vlm, wanted, task=task)
        try:
            score_unit(vlm_session, *one, Scorer.named(task, None, "strip"), lambda scored: None)
        except ValueError:  # this VLM gives no log-probs of references
            assert references
        [request] = vlm.requests
        assert [icd.answer for icd in request.icds] == [answer]
        assert (request.query, request.references) == (EXAMPLES[0], references)


def test_an_engine_that_scores_no_references_is_rejected_only_where_they_are_wanted() -> None:
    vlm = LastDemonstration()
    vlm.can_score_references = False
    scorer = Scorer.named("vqa", None, "strip")
    one = ([EXAMPLES[0]], [PoolIds((1,))], [[Proposal((1,), "random")]], scorer, lambda scored: None)
    for settings, reader in (
        (("auto", "hard01_plus_gtprob"), "the reward mode hard01_plus_gtprob"),
        (("labels",), "--references labels"),
    ):
        with pytest.raises(VlmError, match=f"last-demonstration does not .* which {reader} needs: it only copies"):
            score_unit(session(vlm, *settings), *one)
    assert not vlm.requests
    [group] = score_unit(session(vlm), *one)
    assert [(pointer.prediction, pointer.reference_prob) for pointer in group.candidates] == [("GESA", None)]


def test_the_tally_of_vqa_is_the_share_of_correct_pointers() -> None:
    tally = Tally(TASKS["vqa"])
    assert tally([ScoredPointer((1,), error="no")]) == ""
    assert tally([ScoredPointer((1,), score=0.3, correct=1), ScoredPointer((2,), score=0.0, correct=0)]) == (
        "50.0% correct"
    )


def test_answers_are_scored_by_the_task_and_journalled_in_units(letters: None, tmp_path: Path) -> None:
    vlm, part = LastDemonstration(), tmp_path / "x.jsonl.part"
    context: Any = SimpleNamespace(train=TRAIN, queries=EXAMPLES * 20)
    opened = session(vlm, task="letters")
    prompts = Prompts(opened, context, AlwaysTheSame(), "same", (1,))
    made, images = answer_prompts(opened, prompts, Journal(part))
    assert made[0] == Prediction(0, 1, (1,), "gesa", 0.0, {"in-place": 0.0}, task="letters", image=0)
    assert made[1] == Prediction(1, 1, (1,), "gesa", 3.0, {"in-place": 3.0}, task="letters", image=1)
    # Each of the two units sends its equal prompts once: 8 of the 128, and of the 32 that are left, with 2 images each.
    assert (len(made), images, len(vlm.requests)) == (160, 32, 16)
    lines = part.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [prediction.to_json() for prediction in made]
    part.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:7])  # the last, smaller unit is torn
    journal = Journal(part)
    assert len(complete_units(journal)) == len({prediction.prompt for prediction in made[:UNIT]})
    journal.trim()
    assert len(part.read_text().splitlines()) == UNIT


def test_a_selector_may_decide_how_many_it_shows(letters: None, tmp_path: Path) -> None:
    opened, journal = session(LastDemonstration(), task="letters"), Journal(tmp_path / "x.jsonl.part")
    context: Any = SimpleNamespace(train=TRAIN, queries=EXAMPLES[:2])
    prompts = Prompts(opened, context, Stops(), "stops", Stops().shot_counts((1, "auto", "auto+2")))
    made, _ = answer_prompts(opened, prompts, journal)
    assert sorted((one.question_id, str(one.shots), one.icds) for one in made) == [
        *((0, "1", (1,)), (0, "auto", (1,)), (0, "auto+2", ())),
        *((1, "1", (1,)), (1, "auto", ()), (1, "auto+2", ())),
    ]
    assert AlwaysTheSame().shot_counts((1, "auto", "auto+2")) == (1,)


def test_only_options_can_be_ranked() -> None:
    with pytest.raises(SettingsError, match="--choice-by rank: the task vqa has no options to rank"):
        scorer_of(settings_from({"data": {"choice_by": "rank"}}))
    assert scorer_of(settings_from({"data": {"choice_by": "rank", "task": "choice"}})).ranks
