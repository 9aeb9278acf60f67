"""The answers that a question gives to choose from, and which of them an answer means."""

import ast
import json
import re
import string
from collections.abc import Mapping
from typing import Any

from icdsel.data.image_marks import names_image
from icdsel.data.parsing import Texts, has_value, quoted, text_of

LETTERS = string.ascii_uppercase
"""The letters of options, also as columns."""

_IGNORE = "; --columns options= ignores options"
_MOST_OPTIONS = 100_000  # ImageNet-21K has 22,000 classes
_LONGEST_LIST = 1_000_000  # characters of a list that is a text
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


class Choices:
    """The options of a row, and the letters that name them.

    Attributes:
        texts: The options.
        marked: The same if any of them names an image (`image_marks`); else empty.

    Args:
        given: A list of texts or numbers, such a list as a text of Python or JSON, or texts by letter.
        texts: Validates the texts.
        letters: Whether letters name options that are a list; they do not name the classes of a dataset.

    Raises:
        ValueError: It is something else, or two options are the same.
    """

    def __init__(self, given: Any, texts: Texts, letters: bool = True) -> None:
        self._lettered = isinstance(given, Mapping)
        by_letter = {str(key): text for key, text in given.items() if has_value(text)} if self._lettered else {}
        values = [*by_letter.values()] if self._lettered else _listed(given)
        if len(values) > _MOST_OPTIONS:
            raise ValueError(f"it has {len(values):,} options; at most {_MOST_OPTIONS:,} are allowed")
        self._numbers = any(isinstance(value, int | float) for value in values)
        as_texts = [str(value) if type(value) in (int, float) else value for value in values]
        try:
            self.texts = tuple(text_of({"options": one}, "options", texts).strip() for one in as_texts)
        except ValueError as error:
            raise ValueError(f"{error}: options are texts{_IGNORE}") from None
        self._known = frozenset(self.texts)
        if len(self._known) < len(self.texts):
            twice = next(text for number, text in enumerate(self.texts) if text in self.texts[:number])
            raise ValueError(f"its option {quoted(twice)} occurs twice: leave one of them out{_IGNORE}")
        self._by_letter = dict(zip(by_letter or (LETTERS if letters else ""), self.texts, strict=False))
        self.marked = self.texts if any(map(names_image, self.texts)) else ()

    def chosen(self, answer: Any) -> str:
        """The option that an answer means: its text, its letter, or its number from 0.

        Raises:
            ValueError: It is none of the options, or may be two of them.
        """
        # As pandas stores integers where some are missing.
        if type(answer) is float and answer.is_integer() and not self._numbers:
            answer = int(answer)
        if type(answer) is int and not self._numbers and not self._lettered:
            return self._at(answer)
        text = str(answer).strip() if isinstance(answer, str | int | float) else ""
        letter = _LETTER.fullmatch(text)
        by_letter = self._by_letter.get(letter[1].upper()) if letter else None
        by_text = text if text in self._known else None
        if self._lettered and by_letter is not None:
            return by_letter
        if by_letter is not None and by_text is not None and by_letter != by_text:
            raise ValueError(
                f"its answer {quoted(text)} is one of its options and also the letter of another, {quoted(by_letter)}: "
                "give the number of the option, from 0"
            )
        found = by_text or by_letter
        if found is None and type(answer) is str and text.isdecimal() and len(text) < 6:
            return self._at(int(text))
        if found is None:
            raise ValueError(
                f"its answer {quoted(answer)} is none of its options {quoted(list(self.texts))}: an answer is an "
                f"option's text, its letter, or its number from 0{_IGNORE}"
            )
        return found

    def _at(self, number: int) -> str:
        if not 0 <= number < len(self.texts):
            raise ValueError(
                f"its answer is the number {number} of an option, but it has {len(self.texts)} options, which count "
                f"from 0: give one of 0 to {len(self.texts) - 1}{_IGNORE}"
            )
        return self.texts[number]


def _listed(given: Any) -> list[Any]:
    if isinstance(given, str) and len(given) <= _LONGEST_LIST:
        for parse in (json.loads, ast.literal_eval):  # the second for lists that Python wrote
            try:
                given = parse(given.strip())
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if not isinstance(given, list | tuple):
        raise ValueError(f"its options are {quoted(given)}, not a list of texts{_IGNORE}")
    return list(given)
