import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.tasks.similarity import edit_similarity, relevance, token_f1


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


def test_no_answers_is_an_error_for_relevance_too():
    with pytest.raises(ValueError, match="at least one"):
        relevance("x", [])


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_relevance_is_between_0_and_1_and_grows_with_the_answers(prediction, answers):
    some, all_ = relevance(prediction, answers[:1]), relevance(prediction, answers)
    for few, many in zip(some, all_, strict=True):
        assert 0.0 <= few <= many <= 1.0
    assert all_.score == max(all_.token_f1, all_.edit_similarity)
