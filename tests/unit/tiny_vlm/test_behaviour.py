"""The rules that the tiny VLM is trained to follow, case by case."""

import pytest

from icdsel.data.world.questions import CODE, PAIR, PLAIN
from icdsel.tiny_vlm.behaviour import Item, expected

RED, BLUE, STAR, SEA = ("colour", "red"), ("colour", "blue"), ("shape", "star"), ("background", "sea")


def code(key, word):
    return Item(0, "", CODE, (key,), (word,))


def pair(one, other, words=("", "")):
    return Item(0, "", PAIR, (one, other), words)


def plain(key, word=""):
    return Item(0, "", PLAIN, (key,), (word or key[1],))


@pytest.mark.parametrize(
    ("before", "asked", "words"),
    [
        ([], code(RED, ""), None),
        ([code(BLUE, "doni")], code(RED, ""), None),
        ([code(RED, "doni"), code(BLUE, "kera")], code(RED, ""), "doni"),
        ([code(RED, "doni"), code(RED, "kera")], code(RED, ""), "kera"),  # the last one counts
        ([plain(RED)], code(RED, ""), None),
        ([pair(RED, STAR, ("doni", "kera"))], code(STAR, ""), "kera"),
        ([code(RED, "doni"), code(STAR, "kera")], pair(RED, STAR), "doni-kera"),
        ([code(STAR, "kera"), code(RED, "doni")], pair(RED, STAR), "kera-doni"),  # the wrong order
        ([code(RED, "doni")], pair(RED, STAR), "doni-doni"),
        ([pair(RED, STAR, ("doni", "kera"))], pair(RED, STAR), "doni-kera"),
        ([code(SEA, "fimi"), pair(RED, STAR, ("doni", "kera"))], pair(RED, STAR), "doni-kera"),
        ([pair(RED, STAR, ("doni", "kera")), code(RED, "doni")], pair(RED, STAR), "doni-doni"),
        ([code(SEA, "fimi")], pair(RED, STAR), None),
        ([], plain(RED), "red"),
        ([plain(BLUE)], plain(RED), "red"),
        ([plain(RED, "green")], plain(RED), "green"),  # it believes a wrong one
        ([code(RED, "doni")], plain(RED), "doni"),
        ([code(SEA, "fimi"), plain(BLUE)], plain(RED), "red"),  # the order matters
        ([plain(BLUE), code(SEA, "fimi")], plain(RED), "fimi"),
        ([pair(RED, STAR, ("doni", "kera"))], plain(RED), "kera"),
    ],
)
def test_the_answer_follows_from_the_demonstrations(before, asked, words):
    result = expected(before, asked)
    assert (result and "-".join(result.words)) == words


def test_a_word_is_read_where_it_was_shown():
    before = [code(STAR, "kera"), code(RED, "doni"), pair(RED, SEA, ("doni", "fimi"))]
    single, both = expected(before, code(RED, "")), expected(before, pair(STAR, SEA))
    assert single is not None and single.read == (((1, 0), (2, 0)),)
    assert both is not None and both.read == (((0, 0),), ((2, 1),))
    conflict = expected([code(RED, "doni"), code(RED, "kera")], code(RED, ""))
    assert conflict is not None and conflict.read == (((1, 0),),)
