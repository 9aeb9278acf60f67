"""Examples whose answers share words with another answer."""

import pytest

from icdsel.retrieval.shared_words import WordIndex

ANSWERS = ["doni", "kera", "doni-kera", "Kera", "two dogs", "dogs", "", "doni doni"]


@pytest.mark.parametrize(
    ("answer", "whole", "each"),
    [
        ("doni", [0, 2, 7], [[0, 7]]),
        ("KERA", [1, 2, 3], [[1, 3]]),
        ("doni-kera", [2], [[0, 7], [1, 3]]),
        ("two", [4], [[4]]),  # nothing is this word alone
        ("two cats", [], [[4], []]),
        ("fimi", [], [[]]),
        ("", [], []),
        ("?!", [], []),
    ],
)
def test_words_are_found_alone_before_they_are_found_among_others(answer, whole, each):
    assert WordIndex(ANSWERS).sharing(answer) == (whole, each)


def test_only_the_examples_of_a_pool_are_found():
    assert WordIndex(ANSWERS).sharing("doni-kera", among={1, 2, 7}) == ([2], [[7], [1]])
    assert WordIndex(ANSWERS).sharing("doni", among=[2]) == ([2], [[2]])
