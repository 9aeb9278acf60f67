"""Cleaners: functions that prepare a VLM's answer for scoring.

To add a cleaner, add it to `CLEANERS`; `--clean-answers` then accepts it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from icdsel.registry import Registry


@dataclass(frozen=True)
class Cleaner:
    """Converts the text of an answer to a prediction."""

    name: str
    clean: Callable[[str], str]


_NEXT_PROMPT = re.compile("Question|Answer|Short")


def cut_answer(text: str) -> str:
    """Cuts an answer where the VLM continues with another prompt, then at the first comma followed by a space.

    This is exactly Lever-Plus's rule: outer spaces and case are kept, a word that merely begins like a prompt counts as
    one ("Shortbread" becomes ""), and lists are shortened ("red, white and blue" becomes "red"). Lever-Plus applies it
    also to the human answers that it writes as `gt_answers_norm`.
    """
    return _NEXT_PROMPT.split(text, maxsplit=1)[0].split(", ", maxsplit=1)[0]


CLEANERS: Registry[Cleaner] = Registry("cleaner", [Cleaner("strip", str.strip), Cleaner("lever-plus", cut_answer)])
"""All cleaners, the default first."""
