import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.records import Example
from icdsel.tasks.base import TASKS, bounds_of, majority_answer
from icdsel.tasks.vqa import (
    VARIANTS,
    answer_weights,
    edit_similarity,
    lemmatise,
    normalize_answer,
    relevance,
    token_f1,
    vqa_accuracy,
)

OFFICIAL = json.loads((Path(__file__).parents[2] / "data" / "vqa_accuracy.json").read_text(encoding="utf-8"))

# Few words, so that answers coincide, some of them only once normalised.
words = st.sampled_from(["dog", "Dog", "the dog", "dog.", "a", "none", "0", "two", "2", "dont", "don't", ""])
answer_lists = st.lists(words, min_size=1, max_size=12)


def test_agrees_with_the_official_code_to_the_last_bit():
    assert len(OFFICIAL) == 400
    for case in OFFICIAL:
        assert vqa_accuracy(case["prediction"], case["answers"]) == case["accuracy"], case


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # With m matches of ten, m annotators leave m - 1 matches when left out and the 10 - m others leave m:
    # (m min(1, (m - 1)/3) + (10 - m) min(1, m/3)) / 10
    #   m = 1: (1·0 + 9/3) / 10 = 0.3      m = 2: (2/3 + 8·2/3) / 10 = 0.6
    #   m = 3: (3·2/3 + 7) / 10 = 0.9      m = 4: (4·1 + 6) / 10 = 1
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_accuracy_for_each_number_of_matches_of_ten(matches, accuracy, variant):
    answers = ["dog"] * matches + [f"cat{i}" for i in range(10 - matches)]
    assert vqa_accuracy("dog", answers, variant) == pytest.approx(accuracy, abs=1e-15)


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("dog", ["dog"], 1.0),  # one answer cannot be left out
        ("cat", ["dog"], 0.0),
        ("dog", ["dog", "cat"], 1 / 6),  # (0/3 + 1/3) / 2
        ("dog", ["dog", "dog"], 1 / 3),  # each leaves one match
        ("dog", ["dog", "dog", "cat"], 4 / 9),  # (1/3 + 1/3 + 2/3) / 3
    ],
)
def test_accuracy_for_few_answers(prediction, answers, accuracy):
    assert vqa_accuracy(prediction, answers) == pytest.approx(accuracy, abs=1e-15)


def test_the_variants_differ_where_all_answers_are_the_same_string():
    same = ["Dog"] * 10
    assert vqa_accuracy("the dog", same, "official") == 0.0
    assert vqa_accuracy("the dog", same, "openflamingo") == 1.0
    # White space at the ends makes no difference between answers; a second spelling does.
    assert vqa_accuracy("the dog", [*same[1:], " Dog\n"], "official") == 0.0
    assert vqa_accuracy("the dog", [*same[1:], "dog"], "official") == 1.0


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Dog", "dog"),
        ("  a\tcat\nand an owl ", "cat and owl"),
        ("a", ""),  # an answer "a" is empty
        ("none", "0"),
        ("Ten or zero", "10 or 0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # two apostrophes missing
        ("twas yall", "'twas y'all"),
        ("somebody'd", "somebodyd"),  # the one entry the wrong way round
        ("lets", "lets"),
        ("Im", "im"),  # the entry "Im" can never apply
        ("man's", "man's"),
        ("10:30", "10:30"),
        ("red/blue", "red blue"),  # joins two words: a space
        ("red, blue", "red blue"),  # beside a space: nothing
        ("t-shirt", "t shirt"),
        ("- t-shirt", "tshirt"),  # beside a space somewhere: removed everywhere
        ("1,000", "1000"),  # a comma in a number...
        ("1,000 t-shirts", "1000 tshirts"),  # ...removes every sign
        ("what?!", "what"),
        ("U.S.", "us"),
        ("3.5", "3.5"),
        (".5.", ".5"),
        ("2.", "2"),  # by the intended look-behind the period would stay
        ("$5", "$5"),
        ("50%", "50%"),
        ("." * 34, ".."),  # re.UNICODE, as a count, is 32
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize("function", [lambda a: vqa_accuracy("x", a), answer_weights, majority_answer])
def test_no_answers_is_an_error(function):
    with pytest.raises(ValueError, match="at least one"):
        function([])


def test_no_answers_is_an_error_for_relevance_too():
    with pytest.raises(ValueError, match="at least one"):
        relevance("x", [])


def test_one_string_is_not_a_list_of_answers():
    with pytest.raises(TypeError, match="list of strings"):
        vqa_accuracy("dog", "dog")


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match=re.escape("official, openflamingo")):
        vqa_accuracy("dog", ["dog"], "lavis")


def test_an_unknown_task_has_no_bounds() -> None:
    assert bounds_of("vqa") == (0, 1)
    with pytest.raises(ValueError, match="unknown task 'vaq': did you mean 'vqa'"):
        bounds_of("vaq")


def test_answer_weights_are_the_accuracies_of_the_answers_in_first_seen_order():
    answers = ["cat"] + ["dog"] * 5 + ["The cat"] + ["owl"] * 3
    # "cat" and "The cat" match each other once normalised: 2 of ten.
    weights = answer_weights(answers)
    assert list(weights) == ["cat", "dog", "The cat", "owl"]
    assert list(weights.values()) == pytest.approx([0.6, 1.0, 0.6, 0.9], abs=1e-15)


@given(answer_lists)
@settings(max_examples=200, deadline=None)
def test_answer_weights_are_the_accuracies_to_the_last_bit(answers):
    weights = {answer: vqa_accuracy(answer, answers) for answer in answers}
    assert list(answer_weights(answers).items()) == list(weights.items())


def test_weights_of_many_distinct_answers_take_linear_time():
    answers = [f"answer {i}" for i in range(20_000)]
    start = time.process_time()
    weights = answer_weights(answers)
    assert time.process_time() - start < 5
    assert len(weights) == 20_000
    assert weights["answer 7"] == pytest.approx(19_999 / 3 / 20_000)


def test_majority_answer_takes_the_first_seen_of_equally_common_ones():
    assert majority_answer(["a", "b", "c", "b"]) == "b"
    assert majority_answer(["owl", "cat", "cat", "owl", "dog"]) == "owl"


@pytest.mark.parametrize(
    ("prediction", "answer", "f1"),
    [
        ("red car", "red car", 1.0),
        ("red car", "blue car", 0.5),  # precision 1/2, recall 1/2
        ("car", "the red car", 0.5),  # precision 1, recall 1/3
        ("Car-port", "car", 2 / 3),  # tokens "car", "port"
        ("red red", "red", 2 / 3),  # a token counts as often as it occurs
        ("dog", "cat", 0.0),
        ("?!", "dog", 0.0),
        ("", "", 0.0),
    ],
)
def test_token_f1(prediction, answer, f1):
    assert token_f1(prediction, answer) == pytest.approx(f1, abs=1e-15)


def test_edit_similarity_takes_the_prediction_first():
    # 2 · (letters in matching blocks) / (letters of both). difflib takes the longest block that starts
    # earliest in its first argument: of "tide", "t", which ends "diet", so nothing more matches: 2·1/8. Of
    # "diet", "d", then the "e" to the right of both: 2·2/8.
    assert edit_similarity("tide", "diet") == 0.25
    assert edit_similarity("diet", "tide") == 0.5
    assert edit_similarity(" Dogs ", "dog") == pytest.approx(6 / 7)
    assert edit_similarity("", "") == 0.0


def test_relevance_is_the_best_over_the_answers():
    # "red car": F1 against "red bus" is 1/2; against "red cat" the letters "red ca" match: 2·6/14.
    assert relevance("red car", ["owl", "red bus", "red cat"]) == (0.5, pytest.approx(12 / 14), pytest.approx(12 / 14))
    assert relevance("red bus", ["red"]) == (pytest.approx(2 / 3), pytest.approx(6 / 10), pytest.approx(2 / 3))
    assert relevance(" ", ["owl", ""]) == (0.0, 0.0, 0.0)


@given(words, answer_lists, st.sampled_from(list(VARIANTS)), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_accuracy_is_a_share_and_does_not_depend_on_the_order_of_answers(prediction, answers, variant, random):
    accuracy = vqa_accuracy(prediction, answers, variant)
    assert 0.0 <= accuracy <= 1.0
    shuffled = random.sample(answers, len(answers))
    assert vqa_accuracy(prediction, shuffled, variant) == pytest.approx(accuracy, abs=1e-12)


@given(answer_lists, st.sampled_from(list(VARIANTS)))
@settings(max_examples=100, deadline=None)
def test_four_equal_answers_of_any_number_are_enough(answers, variant):
    assert vqa_accuracy("owl", [*answers, *["owl"] * 4], variant) == 1.0


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_relevance_is_between_0_and_1_and_grows_with_the_answers(prediction, answers):
    some, all_ = relevance(prediction, answers[:1]), relevance(prediction, answers)
    for few, many in zip(some, all_, strict=True):
        assert 0.0 <= few <= many <= 1.0
    assert all_.score == max(all_.token_f1, all_.edit_similarity)


@given(st.text(alphabet="a1 .,'-!\n[Theon", max_size=20))
@settings(max_examples=100, deadline=None)
def test_normalized_answers_are_lower_case_words_with_single_spaces(text):
    normalized = normalize_answer(text)
    assert normalized == normalized.lower()
    assert normalized == " ".join(normalized.split())
    assert not set(normalized) & set(",-![")
    assert not set(normalized.split()) & {"a", "an", "the", "one"}


# --- lemmatised predictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lemmas"),
    [
        ("riding", "ride"),
        ("Riding bikes.", "ride bike."),
        ("t-shirts", "t-shirt"),
        ("3 dogs", "3 dog"),
        ("", ""),
        ("école", "école"),
    ],
)
def test_lemmas(text: str, lemmas: str) -> None:
    assert lemmatise(text) == lemmas


def test_the_metrics_of_the_task_are_the_variants_the_official_one_first() -> None:
    task = TASKS["vqa"]
    query = Example(1, 1, Path("1.png"), "What do they do?", "ride", ("ride",) * 5 + ("bike",) * 5)
    assert task.default_metric == "official" and list(task.metrics) == list(VARIANTS)
    assert [metric.score("riding", query) for metric in task.metrics.values()] == [0.0, 0.0, 1.0]
    assert [metric.score("ride", query) for metric in task.metrics.values()] == [1.0, 1.0, 1.0]
    assert vqa_accuracy("riding", query.answers, "lemmatised") == 1.0


def test_an_accuracy_above_0_is_correct_and_shown_in_points() -> None:
    task = TASKS["vqa"]
    assert task.correctness is not None
    assert [task.correctness.is_correct(score) for score in (0.0, 0.3, 1.0)] == [False, True, True]
    assert (task.text(0.5312), task.unit) == ("53.1", "points")
