"""Marks in a text that say where images stand, such as `<image>` and `<image 2>`, become `PLACE`."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from icdsel.data.parsing import quoted
from icdsel.records.examples import PLACE

PLAIN = "<image>"
"""The mark that names no image: each stands for the next one."""

_NUMBERED = r"<image[ _]?(\d{1,4})>|<\|image_(\d{1,4})\|>"
_MARK = re.compile(f"{PLAIN}|{PLACE}|{_NUMBERED}")
_NAMED = re.compile(_NUMBERED)


class Marked(NamedTuple):
    """A question whose images have their places.

    Attributes:
        question: The question.
        options: The answers to choose from.
        order: The images in the order in which they are shown, by number.
    """

    question: str
    options: tuple[str, ...]
    order: tuple[int, ...]


def place_images(question: str, options: tuple[str, ...], numbers: Sequence[int]) -> Marked:
    """Replaces the marks of a question by places. Images without any marks stand in front.

    Numbered marks put the images into the order in which they name them; a mark that names an image again becomes text
    ("image 2"). Images have no places in options: if those name any, all images stand in front, in order, and every
    mark becomes text.

    Args:
        question: The question.
        options: The answers to choose from, if any of them names an image.
        numbers: The numbers of the images, from 1.

    Raises:
        ValueError: Marks and images do not fit.
    """
    marks = [mark[0] for mark in _MARK.finditer(question)]
    in_options = [_number(mark) for option in options for mark in _NAMED.finditer(option)]
    if not marks and not in_options:
        return Marked(question, options, tuple(numbers))
    named = [_number(mark) for mark in _NAMED.finditer(question)]
    if not named and not in_options:
        if len(marks) != len(numbers):
            raise _unfit(f"its question has {_count(len(marks), 'mark')} of images ({quoted(marks[0])})", numbers)
        return Marked(_MARK.sub(PLACE, question), options, tuple(numbers))
    if len(named) < len(marks):
        raise _unfit("its question has marks of images with numbers and without", numbers)
    order = tuple(dict.fromkeys([*named, *in_options]))
    if {*order} != {*numbers}:
        told = ", ".join(map(str, sorted(order)))
        raise _unfit(f"the marks in its question{' and options' if in_options else ''} name images {told}", numbers)
    if in_options:
        told_of = {number: f"image {place}" for place, number in enumerate(numbers, 1)}
        texts = [_NAMED.sub(lambda mark: told_of[_number(mark)], text) for text in (question, *options)]
        return Marked(texts[0], tuple(texts[1:]), tuple(numbers))
    seen: set[int] = set()

    def placed(mark: re.Match[str]) -> str:
        number = _number(mark)
        if number in seen:
            return f"image {order.index(number) + 1}"
        seen.add(number)
        return PLACE

    return Marked(_NAMED.sub(placed, question), options, order)


def names_image(text: str) -> bool:
    """Whether a text has a mark with the number of an image."""
    return _NAMED.search(text) is not None


def _number(mark: re.Match[str]) -> int:
    return int(mark[1] or mark[2])


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _unfit(found: str, numbers: Sequence[int]) -> ValueError:
    given = ", ".join(map(str, numbers))
    named = f" ({'number' if len(numbers) == 1 else 'numbers'} {given})" if "name" in found else ""
    return ValueError(
        f"{found}, but it has {_count(len(numbers), 'image')}{named}. Name each image in one mark, as in "
        f'"<image 1> <image 2>" or "<image> <image>", or leave out all marks: images then stand in front'
    )
