"""How similar a wrong answer is to a correct one."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from icdsel.tasks.base import Relevance
from icdsel.tasks.vqa_accuracy import require_answers

_TOKEN = re.compile(r"[a-z0-9]+")


def relevance(prediction: str, answers: Sequence[str]) -> Relevance:
    """Returns how similar a prediction is to the most similar human answer.

    With the reward mode ``hard_plus_gtprob_plus_rel``, a wrong answer that shares words or letters with a correct one
    earns a small reward. As in Lever-Plus, strings are only stripped and lower-cased, and the relevance of an empty
    prediction is 0.

    Args:
        prediction: The model's answer.
        answers: The human answers of one question.

    Raises:
        ValueError: There is no answer.
    """
    require_answers(answers)
    f1 = max(token_f1(prediction, answer) for answer in answers)
    edit = max(edit_similarity(prediction, answer) for answer in answers)
    return Relevance(f1, edit, max(f1, edit))


def token_f1(prediction: str, answer: str) -> float:
    """Returns the F1 score between two bags of tokens, the runs of ``[a-z0-9]`` in the lower-cased strings.

    With c common tokens of p and a, F1 = 2c / (p + a); 0 if either string has no token.
    """
    predicted, expected = (Counter(_TOKEN.findall(text.lower())) for text in (prediction, answer))
    if not predicted or not expected:
        return 0.0
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def edit_similarity(prediction: str, answer: str) -> float:
    """Returns ``difflib``'s ratio of the stripped, lower-cased strings, the prediction first.

    The ratio depends on the order of its arguments ("tide" and "diet" give 0.25, "diet" and "tide" 0.5), so
    Lever-Plus's order is part of the definition. It is 0 if either string is empty.
    """
    predicted, expected = (text.strip().lower() for text in (prediction, answer))
    if not predicted or not expected:
        return 0.0
    return SequenceMatcher(None, predicted, expected).ratio()
