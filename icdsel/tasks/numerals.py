"""Reads a number in a text, such as 3500.5 in "about 3,500.5 people".

The first number counts. Read are:

* digits with decimals and thousands in the English form ("3,500.5", ".5"), in any script, and exponents ("1e3");
* a fraction of two whole numbers ("3/4"; not dates such as 3/4/2020);
* number words from zero to the billions ("twelve", "twenty-five", "two hundred and six"), and "none" by itself;
* a word of scale after digits ("2.5 million");
* a sign in front of it ("-2", "minus two", "negative 2").

Whatever stands around it is ignored: units ("3k" is 3), currencies, percent signs. Not read are decimal commas ("1,5"
is 1), mixed numbers ("1 1/2" is 1), characters such as "½", ordinals in words, Roman numerals, words such as "half" and
"dozen", "inf" and "nan", and digits inside a word that begins with a letter ("B2").
"""

import math
import re

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}

_WORD = "|".join((*_SMALL, *_SCALES))
_NUMBER = re.compile(
    rf"""
    (?: (?<![\w.]) (?P<sign>[-+]|(?:minus|negative)\s+) )?
    (?:
        (?<!\w) (?P<top>\d{{1,9}}) / (?P<bottom>0*[1-9]\d{{0,8}}) (?![\d/.])
      | (?<![^\W_]) (?<![^\W_]\.)
        (?P<digits> (?: \d{{1,3}} (?:[,\u00a0\u2009\u202f]\d{{3}})+ (?!\d) | \d+ ) (?:\.\d+)? | \.\d+ )
        (?P<exponent> e[-+]?\d{{1,3}} (?![\w]) )?
        (?: \s* (?P<scale> {"|".join(_SCALES)} ) \b )?
      | \b (?P<words> (?:{_WORD}) (?: (?:\s+and\s+|[\s-]+) (?:{_WORD}) )* ) \b
    )
    """,
    re.VERBOSE,
)


def number_in(text: str) -> float | None:
    """The first number in a text; None if there is none, or if it is too large for a double."""
    text = text.strip().lower().replace("\u2212", "-")
    if text.rstrip(".!") == "none":
        return 0.0
    found = _NUMBER.search(text)
    if found is None:
        return None
    value = _size(found)
    if not math.isfinite(value):
        return None
    return -value if (found["sign"] or "+").strip() in ("-", "minus", "negative") else value


def _size(found: re.Match[str]) -> float:
    """The number without its sign."""
    if found["words"]:
        return _in_words([word for word in re.findall(r"[a-z]+", found["words"]) if word != "and"])
    if found["top"]:
        return int(found["top"]) / int(found["bottom"])
    digits = re.sub(r"[^\d.]", "", found["digits"])
    return float(digits + (found["exponent"] or "")) * _SCALES.get(found["scale"] or "", 1.0)


def _in_words(words: list[str]) -> float:
    """The value of number words up to where they go on with another number ("two three" is 2)."""
    total = part = 0.0
    smallest, open_to = math.inf, math.inf
    for word in words:
        if word in _SMALL:
            value = _SMALL[word]
            if value >= open_to or (value == 0 and word is not words[0]):
                break
            part += value
            open_to = 10 if value >= 20 else 0  # after "twenty" ones may follow, after "two" nothing
        elif word == "hundred":
            if not 0 <= part < 100:
                break
            part, open_to = (part or 1) * 100, 100
        else:
            scale = _SCALES[word]
            if scale >= smallest:
                break
            total, part, smallest, open_to = total + (part or 1) * scale, 0.0, scale, math.inf
    return total + part
