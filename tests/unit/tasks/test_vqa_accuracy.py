import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.tasks.base import majority_answer
from icdsel.tasks.vqa_accuracy import VARIANTS, answer_weights, vqa_accuracy

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
        # With fewer than four, each of the others counts as much as they can: 1/1 of one, 1/2 of two.
        ("dog", ["dog", "cat"], 1 / 2),  # (0/1 + 1/1) / 2
        ("dog", ["dog", "dog"], 1.0),  # each leaves one match of one
        ("dog", ["dog", "cat", "owl"], 1 / 3),  # (0/2 + 1/2 + 1/2) / 3
        ("dog", ["dog", "dog", "cat"], 2 / 3),  # (1/2 + 1/2 + 2/2) / 3
        ("dog", ["dog", "dog", "dog"], 1.0),
        ("dog", ["dog", "cat", "owl", "cow"], 1 / 4),  # (0/3 + 3 · 1/3) / 4
        ("dog", ["dog"] * 4, 1.0),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_accuracy_for_few_answers(prediction, answers, accuracy, variant):
    assert vqa_accuracy(prediction, answers, variant) == pytest.approx(accuracy, abs=1e-15)


def test_the_example_of_the_quickstart_can_reach_1():
    assert vqa_accuracy("Cat", ["a cat", "cat"], "normalised") == 1.0
    assert answer_weights(["a cat", "cat"]) == {"a cat": 1.0, "cat": 1.0}


NAMES = """
    january february march april may june july august september october november december monday tuesday wednesday
    thursday friday saturday sunday christmas|christmas eve|easter thanksgiving halloween|valentine's day|new year's
    eve|st. patrick's day|independence day|labor day|mother's day|hanukkah|ramadan|diwali|passover|united states|united
    kingdom|netherlands|philippines|maldives|bahamas|seychelles|honduras|cyprus|france germany spain italy china japan
    india canada mexico brazil england scotland ireland wales|texas|kansas|illinois|los angeles|las vegas|new
    orleans|paris athens brussels naples james charles thomas nicholas|mercedes adidas|dr. pepper|mcdonald's|tim
    hortons|starbucks|american airlines
"""


def names() -> list[str]:
    return [
        name
        for line in " ".join(NAMES.split()).split("|")
        for name in (line.split() if len(line.split()) > 4 else [line])
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_given_by_everyone_are_right_in_every_case(variant):
    assert len(names()) > 70
    for name in names():
        for text in (name, name.title(), name.upper()):
            assert vqa_accuracy(text, [text] * 10, variant) == 1.0, (text, variant)


def any_text() -> st.SearchStrategy[str]:
    inflected = ["riding", "glasses", "Christmas", "better", "t-shirts", "feed", "s", "A", "the", "-", "?!", "Ⅳ", "ﬁsh"]
    return st.one_of(st.sampled_from(inflected), st.text(min_size=1, max_size=20))


@given(any_text(), st.sampled_from([1, 2, 3, 4, 10, 11]), st.sampled_from(list(VARIANTS)))
@settings(max_examples=300, deadline=None)
def test_what_everyone_answers_is_right(text, count, variant):
    assert vqa_accuracy(text, [text] * count, variant) == 1.0
    assert list(answer_weights([text] * count).values()) == [1.0]


LETTERS = [["A", "A", "B"], ["the", "the", "B"], ["An", "an", "B"], ["-", "-", "B"], ["?", "B"], ["a."], ["(A)", "A)"]]


@pytest.mark.parametrize("answers", LETTERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_prediction_does_not_match_an_article_or_punctuation(answers, variant):
    for nothing in ("", " ", "\n"):
        assert vqa_accuracy(nothing, answers, variant) == 0.0
    assert vqa_accuracy(answers[0], answers, variant) > 0.0


@pytest.mark.parametrize("variant", ["normalised", "lemmatised"])
def test_letters_are_answers_with_ten_answers_too(variant):
    answers = ["A"] * 9 + ["B"]
    for wrong in ("", "the", "an", "-", ".", "B"):
        assert vqa_accuracy(wrong, answers, variant) <= 0.3, wrong
    for right in ("A", "a", "A.", "(A)", " a\n"):
        assert vqa_accuracy(right, answers, variant) == 1.0, right
    assert [vqa_accuracy(text, ["-"] * 10, variant) for text in ("-", "", ".", "—")] == [1.0, 0.0, 0.0, 1.0]


def test_the_official_rule_has_its_flaw_where_it_is_defined():
    # The published code, with ten answers: "A" is an article and becomes "", which an empty answer equals.
    assert vqa_accuracy("", ["A"] * 9 + ["B"], "official") == 1.0


@pytest.mark.parametrize("variant", ["normalised", "lemmatised"])
@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("Red", "red"),
        ("yes.", "Yes"),
        ("The Dog", "dog"),
        ("two", "2"),
        ("cafe\u0301", "café"),
        ("１２", "12"),
        ("don’t know", "dont know"),
        ("“stop”", "stop"),
        ("t–shirt", "t-shirt"),
        ("ice\u00a0cream", "ice  cream"),
        ("猫。", "猫"),
        ("STRASSE", "straße"),
        ("so\u00adfa", "sofa"),
    ],
)
def test_spellings_of_one_answer_match_even_if_all_answers_are_the_same(prediction, answer, count, variant):
    assert vqa_accuracy(prediction, [answer] * count, variant) == 1.0
    assert vqa_accuracy(answer, [prediction] * count, variant) == 1.0


def test_normalised_is_openflamingo_where_texts_are_ascii_and_not_only_articles():
    for case in OFFICIAL:
        texts = [case["prediction"], *case["answers"]]
        if all(map(str.isascii, texts)) and not any(text.strip().lower() in ("a", "an", "the") for text in texts):
            scores = [
                vqa_accuracy(case["prediction"], case["answers"], name) for name in ("normalised", "openflamingo")
            ]
            assert scores[0] == scores[1], case


def test_the_dictionary_form_matches_besides_the_prediction_itself():
    assert [vqa_accuracy("riding", ["ride"] * 10, name) for name in ("normalised", "lemmatised")] == [0.0, 1.0]
    assert vqa_accuracy("riding", ["riding"] * 10, "lemmatised") == 1.0
    assert vqa_accuracy("two dogs", ["2 dog"] * 10, "lemmatised") == 1.0
    assert vqa_accuracy("better", ["good"] * 10, "lemmatised") == 0.0
    # Always normalised, as in LAVIS, also if all answers are the same.
    assert vqa_accuracy("The dogs.", ["dog"] * 10, "lemmatised") == 1.0


@pytest.mark.parametrize("variant", ["normalised", "lemmatised"])
def test_an_answer_matches_as_stored_and_as_written(variant):
    stored, written = ["ride"] * 6 + ["glas"] * 4, ["riding"] * 3 + ["rides"] * 3 + ["glasses"] * 4
    score = VARIANTS[variant].accuracy
    assert [score(text, stored, written) for text in ("riding", "Rides.", "ride", "glasses")] == [1.0] * 4
    assert score("bike", stored, written) == 0.0
    assert VARIANTS["official"].accuracy("riding", stored, written) == 0.0
    # "rides" by three annotators is the stem of six: as a prediction it has all of them.
    assert answer_weights(stored, written) == dict.fromkeys(["riding", "rides", "glasses", "ride", "glas"], 1.0)


def test_the_variants_differ_where_all_answers_are_the_same_string():
    same = ["Dog"] * 10
    assert vqa_accuracy("the dog", same, "official") == 0.0
    assert vqa_accuracy("the dog", same, "openflamingo") == 1.0
    # White space at the ends makes no difference between answers; a second spelling does.
    assert vqa_accuracy("the dog", [*same[1:], " Dog\n"], "official") == 0.0
    assert vqa_accuracy("the dog", [*same[1:], "dog"], "official") == 1.0


@pytest.mark.parametrize("function", [lambda a: vqa_accuracy("x", a), answer_weights, majority_answer])
def test_no_answers_is_an_error(function):
    with pytest.raises(ValueError, match="at least one"):
        function([])


def test_one_string_is_not_a_list_of_answers():
    with pytest.raises(TypeError, match="list of strings"):
        vqa_accuracy("dog", "dog")


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match=re.escape("official, openflamingo")):
        vqa_accuracy("dog", ["dog"], "lavis")


def test_answer_weights_are_the_accuracies_of_the_answers_in_first_seen_order():
    answers = ["cat"] + ["dog"] * 5 + ["The cat"] + ["owl"] * 3
    # "cat" and "The cat" match each other once normalised: 2 of ten.
    weights = answer_weights(answers)
    assert list(weights) == ["cat", "dog", "The cat", "owl"]
    assert list(weights.values()) == pytest.approx([0.6, 1.0, 0.6, 0.9], abs=1e-15)


@given(answer_lists)
@settings(max_examples=200, deadline=None)
def test_answer_weights_are_the_accuracies_to_the_last_bit(answers):
    weights = {" ".join(answer.split()): vqa_accuracy(answer, answers, "normalised") for answer in answers}
    assert list(answer_weights(answers).items()) == list(weights.items())


def test_spellings_that_tokenizers_merge_are_one_reference():
    composed, apart = "café", "cafe\u0301"
    weights = answer_weights([apart] * 5 + [composed] * 3 + ["ice  cream", "ice\u00a0cream"])
    assert weights == pytest.approx({composed: 1.0, "ice cream": 0.6})
    # Other tokens, so another event: both probabilities count.
    assert list(answer_weights(["Yes", "yes", "don’t", "don't"])) == ["Yes", "yes", "don’t", "don't"]
    assert list(answer_weights(["ride"], ["riding"])) == ["riding", "ride"]


def test_weights_of_many_distinct_answers_take_linear_time():
    answers = [f"answer {i}" for i in range(20_000)]
    start = time.process_time()
    weights = answer_weights(answers)
    assert time.process_time() - start < 5
    assert len(weights) == 20_000
    assert weights["answer 7"] == pytest.approx(19_999 / 3 / 20_000)


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
