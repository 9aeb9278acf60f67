"""What the tiny VLM is trained to answer, given the demonstrations before a question: the rules, without any network.

A *shown word* is a word of a demonstration's answer, and stands for a value of an attribute: the code or the name of
it. The rules:

* A code question is answered with the code that the last demonstration of the same value showed.
* A pair question is answered with two codes in the order in which demonstrations showed them: the first one that
  matches either value, then the last one. Two demonstrations in the wrong order give the wrong answer.
* A plain question is answered with the value's name. But if the last demonstration asked for codes, its last code is
  repeated, and a plain demonstration of the same value is believed, even if it is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from icdsel.data.world.questions import CODE, PAIR, PLAIN

Key = tuple[str, str]
"""An attribute and a value of it."""
Place = tuple[int, int]
"""A shown word: the item, and the position of the word in its answer."""


@dataclass(frozen=True)
class Item:
    """A question about an image, with the answer that it has as a demonstration.

    Attributes:
        image: The picture, as a position in the bank.
        question: The question.
        kind: `CODE`, `PAIR` or `PLAIN`.
        keys: What each word of the answer stands for.
        words: The words of the answer.
    """

    image: int
    question: str
    kind: str
    keys: tuple[Key, ...]
    words: tuple[str, ...]

    @property
    def images(self) -> tuple[int]:
        """The picture, as prompts want it."""
        return (self.image,)

    @property
    def answer(self) -> str:
        """The answer, as a demonstration shows it."""
        return "-".join(self.words)


@dataclass(frozen=True)
class Expected:
    """What the VLM should answer.

    Attributes:
        words: The words of the answer.
        read: For each word, where it was shown; empty if it was not read from a demonstration.
    """

    words: tuple[str, ...]
    read: tuple[tuple[Place, ...], ...]


def expected(before: Sequence[Item], item: Item) -> Expected | None:
    """The answer to `item` after the demonstrations `before`; None if nothing decides it."""
    if item.kind == PLAIN:
        return _plain(before, item)
    places = _places(before, item.keys, kinds=(CODE, PAIR))
    if not places:
        return None
    if item.kind == CODE:
        return Expected((_word(before, places[-1]),), (_saying_the_same(before, places),))
    ends = (places[0], places[-1])
    return Expected(tuple(_word(before, place) for place in ends), tuple((place,) for place in ends))


def _plain(before: Sequence[Item], item: Item) -> Expected:
    if before and before[-1].kind != PLAIN:
        last = (len(before) - 1, len(before[-1].words) - 1)
        return Expected((_word(before, last),), ((last,),))
    places = _places(before, item.keys, kinds=(PLAIN,))
    if places:
        return Expected((_word(before, places[-1]),), (_saying_the_same(before, places),))
    return Expected((item.keys[0][1],), ((),))


def _places(before: Sequence[Item], keys: Sequence[Key], kinds: Sequence[str]) -> list[Place]:
    return [
        (i, k) for i, item in enumerate(before) if item.kind in kinds for k, key in enumerate(item.keys) if key in keys
    ]


def _word(before: Sequence[Item], place: Place) -> str:
    return before[place[0]].words[place[1]]


def _saying_the_same(before: Sequence[Item], places: Sequence[Place]) -> tuple[Place, ...]:
    """Those of the places that show the same word as the last one."""
    return tuple(place for place in places if _word(before, place) == _word(before, places[-1]))
