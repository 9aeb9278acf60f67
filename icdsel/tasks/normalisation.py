"""Normalises answers: as the official VQA evaluation code does, and so that any two spellings of one answer are equal.

`normalize_answer` follows the official code, including its quirks, so that numbers are comparable. It has two
weaknesses outside VQA's own data: the letter "A" becomes the empty string, and Unicode's many spellings of one text
stay different. `comparable` has neither, and is the same for all other ASCII texts.
"""

import re
import unicodedata
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither the colon, the apostrophe nor the period
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern, `(?!<=\d)(\.)(?!\d)`, contains a mistyped look-behind: it matches any period that is not
# followed by a digit. The official code also passes `re.UNICODE` to `sub` as the count, so only the first 32 periods
# are removed.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = int(re.UNICODE)

_NUMERALS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset({"a", "an", "the"})

_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# The official table repairs words in which one apostrophe is missing. Only one entry does something else: it breaks a
# correct word. Entries with a capital letter ("Im") are omitted: words are lower-cased first, so they never apply.
_CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTED.split()
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}

# Signs that people type for the same ASCII sign. Full-width signs and most spaces are left to NFKC.
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00bf", "?"),
        **dict.fromkeys("\u00a1", "!"),
        **dict.fromkeys("\u2044", "/"),
        **dict.fromkeys("\u3001", ","),
        **dict.fromkeys("\u3002", "."),
    }
)


@lru_cache(maxsize=1 << 16)  # the same human answers are compared with every prediction for their question
def normalize_answer(text: str) -> str:
    """Normalises an answer as the official VQA evaluation does.

    White space is stripped, punctuation removed or replaced by a space, letters are lower-cased, number words up to
    ten are converted to digits ("none" to 0), articles are removed and contractions repaired. The article "a" by
    itself becomes the empty string.
    """
    return _normalize(text, _ARTICLES)


@lru_cache(maxsize=1 << 16)
def comparable(text: str) -> str:
    """The form in which two answers are equal if they are the same answer; empty only for a blank text.

    The text is normalised as by `normalize_answer`, after Unicode's spellings of the same characters (composed or not,
    full-width, curly quotes, dashes, spaces) were made equal. If nothing is left, articles are kept, so "A." is "a"; if
    there is still nothing left, punctuation is kept too.
    """
    text = _same_characters(text)
    return _normalize(text, _ARTICLES) or _normalize(text, frozenset()) or text


def spelling(text: str) -> str:
    """The text with composed characters (NFC) and single spaces: tokenizers do not tell other spellings apart."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def option_form(text: str) -> str:
    """The form in which two options, or an answer and an option, are equal: spelling, case and a full stop aside.

    Signs and small words count: -2 and 2, "who" and "the who" are different options.
    """
    return spelling(text).casefold().removesuffix(".").rstrip()


def strip(text: str) -> str:
    """Strips white space as the official code does, also where it does not normalise."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _same_characters(text: str) -> str:
    if not text.isascii():
        # Signs first, since NFKC makes a space and an accent of some. Folding can undo a composition, hence twice.
        folded = unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold()
        folded = unicodedata.normalize("NFKC", folded).translate(_SIGNS)
        text = "".join(sign for sign in folded if unicodedata.category(sign) != "Cf")  # Cf: invisible
    return " ".join(text.lower().split())


def _normalize(text: str, left_out: frozenset[str]) -> str:
    words = _normalize_punctuation(strip(text)).lower().split()
    numerals = (_NUMERALS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in numerals if word not in left_out)


def _normalize_punctuation(text: str) -> str:
    """Removes punctuation, or replaces it by a space where it joins two words ("red/blue").

    A punctuation mark with a space before or after it anywhere in the text is removed everywhere, without leaving a
    space. If the text has a comma between digits ("1,000"), so are all punctuation marks.
    """
    has_number_comma = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        # The original text decides, not the result of replacing earlier signs.
        drop = has_number_comma or f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if drop else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)
