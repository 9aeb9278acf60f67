"""Visual question answering: VQA accuracy, and how similar a wrong answer is to a right one.

VQA accuracy (Antol et al. 2015, arXiv 1505.00468) compares a prediction with ten human answers: it is the
mean, over the ten ways to leave one annotator out, of ``min(matches among the other nine / 3, 1)``. So 1, 2,
3 and at least 4 matches of ten give 0.3, 0.6, 0.9 and 1. Two variants are in use, and they differ in when
the strings are normalised:

* ``official``, the VQA evaluation code: only if the human answers differ from one another (a later version of
  its repository always normalises the prediction, and only the punctuation of the answers; it is not this one);
* ``openflamingo``, today's OpenFlamingo and its descendants, Lever-Plus among them: always.

OK-VQA stores stemmed answers ("ride" for "riding"), which no one says. LAVIS and OpenFlamingo therefore lemmatise
predictions before they compare them; the metric ``lemmatised`` does so too, then scores as ``official``.

The normalisation follows the official code including its quirks, so that numbers are comparable.
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
# The official pattern, `(?!<=\d)(\.)(?!\d)`, mistypes a look-behind: what it matches is any period that no
# digit follows. It also hands `re.UNICODE` to `sub` as the count, so only the first 32 periods go.
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
# The official table repairs a word in which one apostrophe is missing. Its one other entry breaks a correct
# word, and its entries with a capital ("Im") can never apply, since words are lower-cased first.
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

    It equals the official evaluation code's to the last bit, which depends on the order of the answers: the
    sum over the left-out annotators is taken in their order, without compensation.

    Args:
        prediction: The model's answer.
        answers: The human answers, ten in VQA and OK-VQA; any number from one on. A single answer cannot be
            left out and is compared directly, so the accuracy is 0 or 1.
        variant: One of ``VARIANTS``.

    Raises:
        ValueError: There is no answer, or the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown VQA accuracy variant {variant!r}; choose one of: {', '.join(VARIANTS)}")
    prepare, always = VARIANTS[variant]
    normalize = _normalizer(answers, always)
    predicted = normalize(prepare(prediction))
    return _accuracy([normalize(answer) == predicted for answer in answers])


def _accuracy(matches: Sequence[bool]) -> float:
    """Return the accuracy of a prediction that matches some of the human answers, in their order."""
    if len(matches) == 1:
        return float(matches[0])
    total = sum(matches)
    accuracy = 0.0
    for match in matches:  # not sum(): from Python 3.12 on it compensates, which changes the last bit
        accuracy += min(1.0, (total - match) / 3)
    return accuracy / len(matches)


@lru_cache(maxsize=1 << 16)
def lemmatise(text: str) -> str:
    """Return the text with every word in lower case and in its dictionary form, by simplemma's English word list.

    LAVIS lemmatises only nouns and verbs, by a tagger that reads the sentence; a word list cannot tell them apart, so
    "better" becomes "good" here, and "leaves" always "leave".
    """
    import simplemma  # which takes a tenth of a second

    return _WORD.sub(lambda word: str(simplemma.lemmatize(word[0].lower(), lang="en")), text)


class _Variant(NamedTuple):
    prepare: Callable[[str], str]  # what is done to the prediction first
    always: bool  # whether strings are normalised even if all human answers are the same


VARIANTS = {
    "official": _Variant(str, False),
    "openflamingo": _Variant(str, True),
    "lemmatised": _Variant(lemmatise, False),
}
"""The variants of the VQA accuracy by name."""


def answer_weights(answers: Sequence[str]) -> dict[str, float]:
    """Return the official VQA accuracy that each human answer would have as a prediction.

    Args:
        answers: The human answers of one question.

    Returns:
        Each distinct answer, as written and in first-seen order, with its accuracy.

    Raises:
        ValueError: There is no answer.
    """
    normalize = _normalizer(answers, always=False)
    normalized = [normalize(answer) for answer in answers]
    weights: dict[tuple[str, int], float] = {}
    of_text: dict[str, float] = {}
    for text, count in Counter(normalized).items():
        # The positions of the matches change the sum, in its last bit, only if there are two or three.
        kind = (text if count in (2, 3) else "", min(count, 4))
        if kind not in weights:
            weights[kind] = _accuracy([other == text for other in normalized])
        of_text[text] = weights[kind]
    return {answer: of_text[text] for answer, text in zip(answers, normalized, strict=True)}


@lru_cache(maxsize=1 << 16)  # the same human answers are compared with every prediction for their question
def normalize_answer(text: str) -> str:
    """Normalise an answer as the official VQA evaluation does.

    White space is stripped, punctuation removed or replaced by a space, letters lower-cased, the number words
    up to ten ("none" among them, as 0) written as digits, articles dropped and contractions repaired.
    The article "a" alone becomes the empty string.
    """
    words = _normalize_punctuation(_strip(text)).lower().split()
    numerals = (_NUMERALS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in numerals if word not in _ARTICLES)


def relevance(prediction: str, answers: Sequence[str]) -> Relevance:
    """Return how similar a prediction is to the most similar human answer.

    A wrong answer that shares words or letters with a right one earns a little (see the reward mode
    ``hard_plus_gtprob_plus_rel``). As in Lever-Plus, strings are stripped and lower-cased, not normalised
    further, and an empty prediction is relevant to nothing.

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
    """Return how strings are normalised before they are compared with these human answers."""
    _require_answers(answers)
    return normalize_answer if always or len(set(map(_strip, answers))) > 1 else _strip


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalize_punctuation(text: str) -> str:
    """Remove punctuation, or replace it by a space where it joins two words ("red/blue").

    A sign that has a space beside it anywhere in the text is removed everywhere without leaving a space; so is every
    sign if the text has a comma between digits ("1,000").
    """
    has_number_comma = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        # The text as it was decides, not what earlier signs have left of it.
        drop = has_number_comma or f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if drop else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _require_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str):  # a sequence of strings too, one a letter
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
        """The distinct human answers as people wrote them, with what each would score as a prediction."""
        return answer_weights(query.written_answers)

    def relevance(self, prediction: str, query: Example) -> Relevance:
        """Similarity to the most similar human answer."""
        return relevance(prediction, query.answers)

    def normalize(self, text: str) -> str:
        """As the official evaluation normalises answers."""
        return normalize_answer(text)


TASKS.add(VqaTask())
