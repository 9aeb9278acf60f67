"""VQA accuracy (Antol et al. 2015, arXiv 1505.00468), in the variants that are in use.

It compares a prediction with ten human answers: it is the mean, over the ten ways to leave one annotator out, of
``min(matches among the other nine / 3, 1)``. So 1, 2, 3, and 4 or more matches out of ten result in 0.3, 0.6, 0.9
and 1. The variants differ in what counts as a match:

* ``normalised``, the rule for data without published results: texts are normalised, whatever the answers are, and in a
  way that suits letters ("A") and Unicode too (`comparable`). If the dataset stores an answer in another form than the
  annotator wrote (OK-VQA stems: "ride" for "riding"), either form matches.
* ``official``, the VQA evaluation code since 2021-03-11: texts are normalised only if the human answers differ from one
  another. (The earlier version, which LAVIS still uses, always normalises the prediction, but of the answers only the
  punctuation, and only if they differ. No variant here is that version.)
* ``openflamingo``, current OpenFlamingo and projects derived from it, including Lever-Plus: always normalises texts.
* ``lemmatised``, as ``normalised``, but the dictionary form of the prediction matches too. OK-VQA's stored answers are
  stemmed, and people and models do not write that way; LAVIS and OpenFlamingo lemmatise predictions for that reason.

With ten answers, ``official`` and ``openflamingo`` are the published code to the last bit. For other numbers nothing
was published that could be followed: with fewer than four answers no prediction could reach 1, so the accuracy is
divided by what can be reached, and texts are normalised as by ``normalised``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from icdsel.tasks.lemmas import lemmatise
from icdsel.tasks.normalisation import comparable, normalize_answer, spelling, strip

_PUBLISHED = 10
"""The number of human answers that the published code is made for."""
_ENOUGH = 3
"""The number of other annotators whose agreement makes an answer fully right."""


@dataclass(frozen=True)
class Variant:
    """What counts as a match.

    Attributes:
        form: Returns the function that prepares texts for comparison with these human answers.
        lemmas: Whether the prediction's dictionary form matches too.
        as_written: Whether an answer matches also in the form in which the annotator wrote it.
    """

    form: Callable[[Sequence[str]], Callable[[str], str]]
    lemmas: bool = False
    as_written: bool = False

    def accuracy(self, prediction: str, answers: Sequence[str], written: Sequence[str] = ()) -> float:
        """Returns the VQA accuracy of a prediction, in [0, 1].

        Args:
            prediction: The model's answer.
            answers: The human answers.
            written: The same answers as the annotators wrote them, in the same order, if the dataset has both.

        Raises:
            ValueError: There is no answer.
        """
        require_answers(answers)
        form = self.form(answers)
        stored = [form(answer) for answer in answers]
        same = {form(prediction)}
        if self.lemmas:
            same.add(form(lemmatise(prediction)))
        if self.as_written:
            same |= {kept for kept, text in zip(stored, map(form, written), strict=False) if text in same}
        return _accuracy([answer in same for answer in stored])


def _if_they_differ(answers: Sequence[str]) -> Callable[[str], str]:
    return strip if len(set(map(strip, answers))) == 1 else _always(answers)


def _always(answers: Sequence[str]) -> Callable[[str], str]:
    return normalize_answer if len(answers) == _PUBLISHED else comparable


def _comparable(_: Sequence[str]) -> Callable[[str], str]:
    return comparable


NORMALISED = "normalised"
VARIANTS = {
    NORMALISED: Variant(_comparable, as_written=True),
    "official": Variant(_if_they_differ),
    "openflamingo": Variant(_always),
    "lemmatised": Variant(_comparable, lemmas=True, as_written=True),
}
"""The variants of the VQA accuracy by name; the first is the one for data without published results."""


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: str = "official") -> float:
    """Returns the VQA accuracy of a prediction, in [0, 1].

    With ten answers, "official" and "openflamingo" are bit-identical to the published code. The last bit depends on the
    order of the answers: the sum over the left-out annotators is taken in their order, without compensation.

    Args:
        prediction: The model's answer.
        answers: The human answers, at least one; ten in VQA and OK-VQA. With one, the accuracy is 0 or 1; with two or
            three, the share that matches.
        variant: One of ``VARIANTS``.

    Raises:
        ValueError: `answers` is empty, or the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown VQA accuracy variant {variant!r}; choose one of: {', '.join(VARIANTS)}")
    return VARIANTS[variant].accuracy(prediction, answers)


def answer_weights(answers: Sequence[str], written: Sequence[str] = ()) -> dict[str, float]:
    """Returns the human answers of one question, each with the normalised accuracy that it would get as a prediction.

    Args:
        answers: The human answers.
        written: The same answers as the annotators wrote them, in the same order, if the dataset has both.

    Returns:
        The accuracy of each distinct text, the written ones first, in the order of first occurrence. Texts that differ
        only in their `spelling` are one, since tokenizers make them equal and their probability would count twice.

    Raises:
        ValueError: There is no answer.
    """
    require_answers(answers)
    stored = [comparable(answer) for answer in answers]
    counts = Counter(stored)
    stored_as: dict[str, set[str]] = {}
    for kept, text in zip(stored, written, strict=False):
        stored_as.setdefault(comparable(text), set()).add(kept)
    known: dict[tuple[frozenset[str], int], float] = {}
    weights = {}
    for text in dict.fromkeys(map(spelling, (*written, *answers))):
        form = comparable(text)
        same = frozenset({form} | stored_as.get(form, set()))
        total = sum(counts[answer] for answer in same)
        # Only for two or three matches does the last bit of the sum depend on their positions.
        kind = (same if total in (2, 3) else frozenset(), min(total, 4))
        if kind not in known:
            known[kind] = _accuracy([answer in same for answer in stored])
        weights[text] = known[kind]
    return weights


def require_answers(answers: Sequence[str]) -> None:
    """Checks that there are human answers.

    Raises:
        ValueError: There is none.
        TypeError: They are a single string.
    """
    if isinstance(answers, str):  # it would be treated as a sequence of one-letter answers
        raise TypeError(f"answers must be a list of strings, not the string {answers!r}")
    if not answers:
        raise ValueError("answers is empty: at least one human answer is needed")


def _accuracy(matches: Sequence[bool]) -> float:
    """Returns the accuracy of a prediction, given whether it matches each of the human answers, in their order."""
    if len(matches) == 1:
        return float(matches[0])
    total, enough = sum(matches), min(_ENOUGH, len(matches) - 1)
    accuracy = 0.0
    for match in matches:  # not sum(): since Python 3.12 it compensates rounding errors, which changes the last bit
        accuracy += min(1.0, (total - match) / enough)
    return accuracy / len(matches)
