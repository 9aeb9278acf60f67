"""Tokens and n-grams of captions, as the metrics of captions count them. Does not import torch.

The tokens are those of coco-caption, the evaluation code of MS COCO: Stanford's tokenizer for the Penn Treebank (PTB)
in lower case, without a list of punctuation marks. That tokenizer is a Java program; `tokens` follows its rules for
what occurs in captions. docs/tasks.md gives the measured difference.
"""

import re
import sys
import unicodedata
from collections import Counter
from functools import lru_cache

LONGEST = 4
"""The length of the longest n-grams that are counted."""

Tokens = tuple[str, ...]
"""The tokens of a text, or some adjacent ones of them: an n-gram."""

# Signs that the tokenizer writes in another way. It leaves brackets in ("-lrb-"), and so does coco-caption: its list of
# punctuation has them in capital letters.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURRENCIES = str.maketrans({"\u00a3": "#", "\u20ac": "$", "\u2019": "'", "\u2018": "'", "\u00b4": "'"})
_SPLIT = re.compile(r"\b(can)(not)\b|\b(gon|wan|got)(na|ta)\b|(?<=\w)(n't|'(?:s|re|ve|m|d|ll))\b")
_TOKEN = re.compile(
    r"""
    https?://\S+ | [\w.+-]+@\w+(?:\.\w+)+                                 # addresses
    | (?:[^\W\d_]\.){2,}                                                  # u.s., a.m.
    | (?:mr|mrs|ms|dr|st|jr|sr|prof|etc|vs|no|inc|co|ave|blvd|ft|mt)\.(?!\w)  # abbreviations
    | n't\b | '(?:s|re|ve|m|d|ll)\b                                       # what was split off
    | \d+(?:[.,:/]\d+)+(?!\w)                                             # 3,500.5, 10:30, 1/2
    | (?:\#(?=[^\W\d]))?\w+(?:[-/.'&_!?]\w+)*                             # black-and-white, red/green, o'clock
    | [!?]{2,}                                                            # coco-caption removes single ones alone
    | [^\s\w.?!,:;'"`\u201c\u201d\u2013\u2014\u2026-]                     # other signs, one by one
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=1 << 16)  # the same references are compared with every prediction for their image
def tokens(text: str) -> Tokens:
    """Splits a caption into tokens: in lower case, without punctuation, with clitics split off ("do", "n't")."""
    text = unicodedata.normalize("NFC", text).lower().translate(_CURRENCIES)
    split = _SPLIT.sub(lambda found: " ".join(part for part in found.groups() if part).join((" ", " ")), text)
    # A word is one object, however often it occurs: reference sets hold millions of n-grams.
    return tuple(sys.intern(_BRACKETS.get(token, token)) for token in _TOKEN.findall(split))


@lru_cache(maxsize=1 << 14)
def ngrams(text: Tokens) -> Counter[Tokens]:
    """How often each n-gram of up to `LONGEST` tokens occurs."""
    return Counter(text[at : at + n] for n in range(1, LONGEST + 1) for at in range(len(text) - n + 1))
