"""Visual question answering: VQA accuracy, and the similarity of a wrong answer to a correct one.

VQA accuracy (Antol et al. 2015, arXiv 1505.00468) compares a prediction with ten human answers: it is the
mean, over the ten ways to leave one annotator out, of ``min(matches among the other nine / 3, 1)``. So 1, 2, 3, and
4 or more matches out of ten result in 0.3, 0.6, 0.9 and 1. Two variants are in use, which differ in when strings are
normalised:

* ``official``, the VQA evaluation code: only if the human answers differ from one another (a later version in its
  repository always normalises the prediction, and only the punctuation of the answers; that version is not meant here);
* ``openflamingo``, current OpenFlamingo and projects derived from it, including Lever-Plus: always.

OK-VQA stores stemmed answers ("ride" for "riding"), which people do not write. LAVIS and OpenFlamingo therefore
lemmatise predictions before comparing them; the metric ``lemmatised`` does so too, and then scores as ``official``.

The normalisation follows the official code, including its quirks, so that numbers are comparable.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import lru_cache, partial
from typing import NamedTuple

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Correctness, Metric, Relevance, Task

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

_TOKEN = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"[^\W\d_]+")


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: str = "official") -> float:
    """Return the VQA accuracy of a prediction, in [0, 1].

    It is bit-identical to the result of the official evaluation code. The last bit depends on the order of the
    answers: the sum over the left-out annotators is taken in their order, without compensation.

    Args:
        prediction: The model's answer.
        answers: The human answers, at least one; ten in VQA and OK-VQA. A single answer cannot be left out and is
            compared directly, so the accuracy is 0 or 1.
        variant: One of ``VARIANTS``.

    Raises:
        ValueError: `answers` is empty, or the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown VQA accuracy variant {variant!r}; choose one of: {', '.join(VARIANTS)}")
    prepare, always = VARIANTS[variant]
    normalize = _normalizer(answers, always)
    predicted = normalize(prepare(prediction))
    return _accuracy([normalize(answer) == predicted for answer in answers])


def _accuracy(matches: Sequence[bool]) -> float:
    """Return the accuracy of a prediction, given whether it matches each of the human answers, in their order."""
    if len(matches) == 1:
        return float(matches[0])
    total = sum(matches)
    accuracy = 0.0
    for match in matches:  # not sum(): since Python 3.12 it compensates rounding errors, which changes the last bit
        accuracy += min(1.0, (total - match) / 3)
    return accuracy / len(matches)


@lru_cache(maxsize=1 << 16)
def lemmatise(text: str) -> str:
    """Return the text with every word in lower case and in its dictionary form, by simplemma's English word list.

    LAVIS lemmatises only nouns and verbs, by a tagger that reads the sentence; a word list cannot tell them apart, so
    "better" becomes "good" here, and "leaves" always "leave".
    """
    import simplemma  # imported here because it takes a tenth of a second

    return _WORD.sub(lambda word: str(simplemma.lemmatize(word[0].lower(), lang="en")), text)


class _Variant(NamedTuple):
    prepare: Callable[[str], str]  # applied to the prediction first
    always: bool  # whether strings are normalised even if all human answers are the same


VARIANTS = {
    "official": _Variant(str, False),
    "openflamingo": _Variant(str, True),
    "lemmatised": _Variant(lemmatise, False),
}
"""The variants of the VQA accuracy by name."""


def answer_weights(answers: Sequence[str]) -> dict[str, float]:
    """Return the official VQA accuracy that each human answer would get as a prediction.

    Args:
        answers: The human answers of one question.

    Returns:
        The accuracy of each distinct answer, as written, in the order of first occurrence.

    Raises:
        ValueError: There is no answer.
    """
    normalize = _normalizer(answers, always=False)
    normalized = [normalize(answer) for answer in answers]
    weights: dict[tuple[str, int], float] = {}
    of_text: dict[str, float] = {}
    for text, count in Counter(normalized).items():
        # Only for two or three matches does the last bit of the sum depend on their positions.
        kind = (text if count in (2, 3) else "", min(count, 4))
        if kind not in weights:
            weights[kind] = _accuracy([other == text for other in normalized])
        of_text[text] = weights[kind]
    return {answer: of_text[text] for answer, text in zip(answers, normalized, strict=True)}


@lru_cache(maxsize=1 << 16)  # the same human answers are compared with every prediction for their question
def normalize_answer(text: str) -> str:
    """Normalise an answer as the official VQA evaluation does.

    White space is stripped, punctuation removed or replaced by a space, letters are lower-cased, number words up to
    ten are converted to digits ("none" to 0), articles are removed and contractions repaired. The article "a" by
    itself becomes the empty string.
    """
    words = _normalize_punctuation(_strip(text)).lower().split()
    numerals = (_NUMERALS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in numerals if word not in _ARTICLES)


def relevance(prediction: str, answers: Sequence[str]) -> Relevance:
    """Return how similar a prediction is to the most similar human answer.

    With the reward mode ``hard_plus_gtprob_plus_rel``, a wrong answer that shares words or letters with a correct one
    earns a small reward. As in Lever-Plus, strings are only stripped and lower-cased, and the relevance of an empty
    prediction is 0.

    Args:
        prediction: The model's answer.
        answers: The human answers of one question.

    Raises:
        ValueError: There is no answer.
    """
    _require_answers(answers)
    f1 = max(token_f1(prediction, answer) for answer in answers)
    edit = max(edit_similarity(prediction, answer) for answer in answers)
    return Relevance(f1, edit, max(f1, edit))


def token_f1(prediction: str, answer: str) -> float:
    """Return the F1 score between two bags of tokens, the runs of ``[a-z0-9]`` in the lower-cased strings.

    With c common tokens of p and a, F1 = 2c / (p + a); 0 if either string has no token.
    """
    predicted, expected = (Counter(_TOKEN.findall(text.lower())) for text in (prediction, answer))
    if not predicted or not expected:
        return 0.0
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def edit_similarity(prediction: str, answer: str) -> float:
    """Return ``difflib``'s ratio of the stripped, lower-cased strings, the prediction first.

    The ratio depends on the order of its arguments ("tide" and "diet" give 0.25, "diet" and "tide" 0.5), so
    Lever-Plus's order is part of the definition. It is 0 if either string is empty.
    """
    predicted, expected = (text.strip().lower() for text in (prediction, answer))
    if not predicted or not expected:
        return 0.0
    return SequenceMatcher(None, predicted, expected).ratio()


def _normalizer(answers: Sequence[str], always: bool) -> Callable[[str], str]:
    """Return the function that normalises strings before they are compared with these human answers."""
    _require_answers(answers)
    return normalize_answer if always or len(set(map(_strip, answers))) > 1 else _strip


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalize_punctuation(text: str) -> str:
    """Remove punctuation, or replace it by a space where it joins two words ("red/blue").

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


def _require_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str):  # it would be treated as a sequence of one-letter answers
        raise TypeError(f"answers must be a list of strings, not the string {answers!r}")
    if not answers:
        raise ValueError("answers is empty: at least one human answer is needed")


def _score(prediction: str, query: Example, variant: str) -> float:
    return vqa_accuracy(prediction, query.answers, variant)


class VqaTask(Task):
    """Open-ended questions with several human answers."""

    name = "vqa"
    metrics = Registry(
        "metric of the task vqa",
        (Metric(name, partial(_score, variant=name)) for name in VARIANTS),
    )
    score_name = "VQA accuracy"
    short_name = "accuracy"
    unit = "points"
    factor = 100.0
    digits = 1
    correctness = Correctness(lambda score: score > 0, "an accuracy above 0")
    usual_references = 10

    def references(self, query: Example) -> Mapping[str, float]:
        """The distinct human answers as people wrote them, each with the score it would get as a prediction."""
        return answer_weights(query.written_answers)

    def relevance(self, prediction: str, query: Example) -> Relevance:
        """Similarity to the most similar human answer."""
        return relevance(prediction, query.answers)

    def normalize(self, text: str) -> str:
        """Normalises as the official evaluation does."""
        return normalize_answer(text)


TASKS.add(VqaTask())
