"""Finds examples whose answers share words with another answer, by an index of words."""

import re
from collections.abc import Container, Iterable
from typing import NamedTuple

__all__ = ["Sharing", "WordIndex"]


class Sharing(NamedTuple):
    """Examples whose answers share words with an answer, as ascending positions.

    Attributes:
        whole: Those whose answers have all of its words.
        each: For each of its words, in their order: those whose answer is this word alone; if there are none, those
            whose answer has it.
    """

    whole: list[int]
    each: list[list[int]]


class WordIndex:
    """The examples by the words of their answers.

    Args:
        answers: The answers, by position.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        self._with: dict[str, list[int]] = {}
        self._alone: dict[str, list[int]] = {}
        for position, answer in enumerate(answers):
            words = _words(answer)
            for word in words:
                self._with.setdefault(word, []).append(position)
            if len(words) == 1:
                self._alone.setdefault(words[0], []).append(position)

    def sharing(self, answer: str, among: Container[int] | None = None) -> Sharing:
        """The examples that share words with `answer`; only those `among` these positions, if any are given."""
        words = _words(answer)
        found = {word: self._kept(self._with.get(word, []), among) for word in words}
        shared = set.intersection(*map(set, found.values())) if words else set()
        alone = {word: self._kept(self._alone.get(word, []), among) for word in words}
        return Sharing(sorted(shared), [alone[word] or found[word] for word in words])

    @staticmethod
    def _kept(positions: list[int], among: Container[int] | None) -> list[int]:
        return positions if among is None else [position for position in positions if position in among]


def _words(answer: str) -> list[str]:
    """The distinct words of an answer, in their order."""
    return list(dict.fromkeys(re.findall(r"\w+", answer.casefold())))
