"""What is done to a VLM's answer before it is scored.

To add a cleaner, add it to `CLEANERS`; `--clean-answers` then knows it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from icdsel.registry import Registry


@dataclass(frozen=True)
class Cleaner:
    """From the text of an answer to the prediction."""

    name: str
    clean: Callable[[str], str]


_NEXT_PROMPT = re.compile("Question|Answer|Short")


def cut_answer(text: str) -> str:
    """The answer up to where the VLM continues with another prompt, then up to the first comma and space.

    Exactly as Lever-Plus does it: outer spaces and case are kept, words that merely begin like a prompt count as one
    ("Shortbread" becomes ""), and lists are shortened ("red, white and blue" becomes "red"). It does the same to the
    human answers that it writes as `gt_answers_norm`.
    """
    return _NEXT_PROMPT.split(text, maxsplit=1)[0].split(", ", maxsplit=1)[0]


CLEANERS: Registry[Cleaner] = Registry("cleaner", [Cleaner("strip", str.strip), Cleaner("lever-plus", cut_answer)])
"""All cleaners, the default first."""
