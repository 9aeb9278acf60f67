import pytest
from hypothesis import given
from hypothesis import strategies as st

from icdsel.tasks.lever_plus_answers import cut_answer


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Shortbread", ""),
        ("red, white and blue", "red"),
        ("a dog Question: What is", "a dog "),  # the space stays
        ("two\nShort answer: three", "two\n"),
        ("cat Answer Question", "cat "),  # the first of the words, whichever it is
        ("red, blue Short", "red"),
        ("a Short, b", "a "),  # the comma lay behind the word
        ("1,000", "1,000"),  # a comma without a space
        ("no question, no answer", "no question"),  # in lower case the words are harmless
        (" Yes ", " Yes "),
        (", ", ""),
        ("", ""),
    ],
)
def test_an_answer_is_cut_as_the_original_cuts_it(text: str, cut: str) -> None:
    assert cut_answer(text) == cut


@given(st.lists(st.sampled_from(["Question", "Answer", "Short", ", ", ",", " ", "a", "é"])).map("".join))
def test_what_is_left_is_the_start_and_holds_no_place_to_cut(text: str) -> None:
    cut = cut_answer(text)
    assert text.startswith(cut)
    assert not any(word in cut for word in ("Question", "Answer", "Short", ", "))
    # Nothing was cut too early: what follows begins with one of them (or stands in the way of one).
    assert text == cut or text[len(cut) :].startswith(("Question", "Answer", "Short", ", "))
    assert cut_answer(cut) == cut
