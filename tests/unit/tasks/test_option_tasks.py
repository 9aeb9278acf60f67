from dataclasses import replace
from pathlib import Path

import pytest

from icdsel.policy.rewards import pointer_reward
from icdsel.records import Answer, Example, Proposal, ScoredPointer
from icdsel.settings.loading import settings_from
from icdsel.tasks.base import TASKS
from icdsel.tasks.scoring import Scorer
from icdsel.vlm.task_prompts import TaskPrompts

QUERY = Example(1, 1, Path("1.png"), "Which colour?", "red", ("Red",), options=("blue", "red", "dark green"))
CHOICE, CLASSIFY = TASKS["choice"], TASKS["classify"]


def answer(text: str, *log_probs: float, tokens: tuple[int, ...] = (1, 1, 1)) -> Answer:
    return Answer(text, log_probs, tokens[: len(log_probs)])


def scored(answer: Answer, task: str = "choice", **changes: object) -> ScoredPointer:
    scorer = replace(Scorer.named(task, None, "strip"), **changes)
    references = scorer.task.references(QUERY) if answer.reference_log_probs else {}
    return scorer.scored_pointer(Proposal((7,), "random"), answer, QUERY, references)


# ---- prompts ----


def test_options_are_listed_with_the_letters_that_demonstrations_answer() -> None:
    request = TaskPrompts(CHOICE).request([QUERY], QUERY, CHOICE.candidates(QUERY))
    assert request.query.question == "Which colour?\nA. blue\nB. red\nC. dark green"
    assert (request.icds[0].question, request.icds[0].answer) == (request.query.question, "B")
    assert request.references == ("A", "B", "C")
    assert CHOICE.references(QUERY) == {"A": 0.0, "B": 1.0, "C": 0.0}


def test_classes_are_not_listed_unless_a_setting_says_so() -> None:
    request = TaskPrompts(CLASSIFY).request([QUERY], QUERY)
    assert (request.icds[0], request.query) == (QUERY, QUERY)
    assert CLASSIFY.references(QUERY) == {"blue": 0.0, "red": 1.0, "dark green": 0.0}
    listed = TaskPrompts.of(settings_from({"data": {"task": "classify", "show_options": True}}).data)
    assert listed.request([], QUERY).query.question.endswith("\nC. dark green")
    assert not CLASSIFY.listed, "the task itself stays as it is"


# ---- answers ----


@pytest.mark.parametrize(
    ("text", "option"),
    [
        *(("B", "red"), ("b", "red"), ("B.", "red"), ("(B) red", "red"), ("C: the dark one", "dark green")),
        *(("The answer is B.", "red"), ("Answer: (c)", "dark green"), ("option A", "blue"), ("Option: B", "red")),
        *(("Red", "red"), ("DARK GREEN.", "dark green"), ("a blue", "blue"), ("D", "D"), ("Because", "Because")),
        *(("A dog runs", "A dog runs"), ("I cannot tell", "I cannot tell"), ("", "")),
    ],
)
def test_an_answer_is_read_as_the_option_that_it_names(text: str, option: str) -> None:
    assert CHOICE.read(text, QUERY) == option
    made = scored(answer(text))
    assert (made.prediction, made.score, made.correct) == (option, float(option == "red"), int(option == "red"))
    assert made.margin is None and "vqa_margin" not in made.to_json()


def test_a_letter_is_no_option_where_options_are_not_listed() -> None:
    assert CLASSIFY.read("B", QUERY) == "B" and CLASSIFY.read("RED", QUERY) == "red"


def test_a_letter_means_the_place_even_where_options_are_letters_as_demonstrations_show_them() -> None:
    letters = replace(QUERY, options=("B", "A"), answer="B", answers=("B",))
    assert CHOICE.demonstration(letters) == "A" and CHOICE.read("A", letters) == "B"
    assert CLASSIFY.read("A", letters) == "A"


def test_signs_and_small_words_make_options_different() -> None:
    options = ("2", "-2", "x+1", "x-1", "who", "the who", "none", "0")
    query = replace(QUERY, options=options, answer="-2", answers=("-2",))
    assert CHOICE.fault(query) is None
    assert [CLASSIFY.read(option, query) for option in options] == list(options)


# ---- ranking ----


def test_the_most_probable_option_is_the_answer_and_the_first_of_equal_ones() -> None:
    assert scored(answer("blue", -3.0, -1.0, -2.0), choice_by="rank").prediction == "red"
    assert scored(answer("red", -1.0, -1.0, -2.0), choice_by="rank").prediction == "blue"


def test_log_probs_per_token_do_not_punish_long_options() -> None:
    long = answer("blue", -3.0, -2.9, -4.0, tokens=(1, 1, 4))
    assert scored(long, choice_by="rank").prediction == "red"
    assert scored(long, choice_by="rank-per-token").prediction == "dark green"


def test_the_margin_is_that_of_the_right_option_over_the_best_wrong_one() -> None:
    made = scored(answer("red", -3.0, -0.5, -2.0))
    assert made.margin == pytest.approx(1.5)
    kept = ScoredPointer.from_json(made.to_json(), (0, 1))
    assert kept == made
    assert pointer_reward(made, mode="margin") == pytest.approx(1.5)
    assert pointer_reward(made.to_json(), mode="margin", soft_weight=2) == pytest.approx(3.0)
    assert pointer_reward(made, mode="log_prob") == pytest.approx(-0.5, abs=1e-5)


def test_a_probability_of_0_is_the_lowest_reward() -> None:
    assert pointer_reward(scored(answer("red", -1.0, -900.0, -2.0)), mode="log_prob") == -50
    assert pointer_reward(scored(answer("red", -1.0, -900.0, -2.0)), mode="margin") == -50


# ---- faults ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ()}, "it has 0 options"),
        ({"options": ("red", "blue", "Red.")}, "'Red.' twice"),
        ({"answers": ("pink",)}, "'pink' is none of its options"),
        ({"options": (*(f"red {n}" for n in range(26)), "red")}, "--no-show-options"),
    ],
)
def test_unfit_options_are_told(changes: dict, message: str) -> None:
    fault = CHOICE.fault(replace(QUERY, **changes))
    assert fault is not None and message in fault


def test_fit_options_and_queries_without_an_answer_have_no_fault() -> None:
    assert CHOICE.fault(QUERY) is None
    assert CHOICE.fault(replace(QUERY, answer="", answers=())) is None
