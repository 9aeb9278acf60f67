"""What Lever-Plus does to a VLM's answer before it is compared with the human ones."""

import re

_NEXT_PROMPT = re.compile("Question|Answer|Short")


def cut_answer(text: str) -> str:
    """The answer up to where the VLM goes on with another prompt, then up to the first comma and space.

    To the letter of the original (specification §7.2), which keeps outer spaces and case, takes words that
    merely begin so for another prompt ("Shortbread" becomes "") and shortens lists ("red, white and blue"
    becomes "red"). It does the same to the human answers where it writes `gt_answers_norm`.
    """
    return _NEXT_PROMPT.split(text, maxsplit=1)[0].split(", ", maxsplit=1)[0]
