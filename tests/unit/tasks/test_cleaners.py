import pytest
from hypothesis import given
from hypothesis import strategies as st

from icdsel.errors import SettingsError
from icdsel.tasks.cleaners import CLEANERS, cut_answer


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Shortbread", ""),
        ("red, white and blue", "red"),
        ("a dog Question: What is", "a dog "),  # the space is kept
        ("two\nShort answer: three", "two\n"),
        ("cat Answer Question", "cat "),  # at the first of the words
        ("red, blue Short", "red"),
        ("a Short, b", "a "),  # the comma comes after the word
        ("1,000", "1,000"),  # a comma without a space
        ("no question, no answer", "no question"),  # lower case words are no prompt
        (" Yes ", " Yes "),
        (", ", ""),
        ("", ""),
    ],
)
def test_an_answer_is_cut_as_in_lever_plus(text: str, cut: str) -> None:
    assert cut_answer(text) == CLEANERS.named("lever-plus").clean(text) == cut


@given(st.lists(st.sampled_from(["Question", "Answer", "Short", ", ", ",", " ", "a", "é"])).map("".join))
def test_the_result_is_the_start_of_the_answer_up_to_the_first_cut(text: str) -> None:
    cut = cut_answer(text)
    assert text.startswith(cut)
    assert not any(word in cut for word in ("Question", "Answer", "Short", ", "))
    # It is not cut too early: what follows begins with one of them.
    assert text == cut or text[len(cut) :].startswith(("Question", "Answer", "Short", ", "))
    assert cut_answer(cut) == cut


def test_by_default_only_outer_spaces_are_stripped() -> None:
    assert next(iter(CLEANERS)) == "strip"
    assert CLEANERS.named("strip").clean(" red, white\n") == "red, white"


def test_an_unknown_cleaner_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="strip, lever-plus"):
        CLEANERS.named("cut")
