import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.tasks.normalisation import comparable, normalize_answer, spelling


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


@given(st.text(alphabet="a1 .,'-!\n[Theon", max_size=20))
@settings(max_examples=100, deadline=None)
def test_normalized_answers_are_lower_case_words_with_single_spaces(text):
    normalized = normalize_answer(text)
    assert normalized == normalized.lower()
    assert normalized == " ".join(normalized.split())
    assert not set(normalized) & set(",-![")
    assert not set(normalized.split()) & {"a", "an", "the", "one"}


@given(st.text(max_size=30))
@settings(max_examples=3000, deadline=None)
def test_the_comparable_form_is_its_own_and_empty_only_for_a_blank_text(text):
    form = comparable(text)
    assert bool(form) == any(not sign.isspace() and unicodedata.category(sign) != "Cf" for sign in text)
    assert comparable(unicodedata.normalize("NFD", text)) == comparable(unicodedata.normalize("NFC", text)) == form


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=20))
@settings(max_examples=3000, deadline=None)
def test_the_comparable_form_of_ascii_is_the_official_one_if_that_is_not_empty(text):
    official = normalize_answer(text)
    assert not official or comparable(text) == official


def test_spelling_keeps_the_text_but_for_composition_and_spaces():
    assert spelling(" Cafe\u0301  No.\u00a05 ") == "Café No. 5"
    assert spelling("Don’t １２") == "Don’t １２"
