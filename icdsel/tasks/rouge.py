"""ROUGE-L (Lin 2004) as coco-caption computes it: the longest common subsequence of prediction and reference."""

from collections.abc import Sequence

from icdsel.tasks.ngrams import Tokens

_BETA = 1.2  # how much more recall counts than precision


def rouge_l(prediction: Tokens, references: Sequence[Tokens]) -> float:
    """Returns the ROUGE-L of a prediction, from 0 to 1.

    With the length of the longest common subsequence as a share of the prediction (precision) and of the reference
    (recall), each the best over the references, it is (1 + b²)·p·r / (r + b²·p) with b = 1.2.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("references is empty: at least one caption is needed")
    common = [(_common(prediction, reference), len(reference)) for reference in references]
    if not any(length for length, _ in common):
        return 0.0
    precision = max(length for length, _ in common) / len(prediction)
    recall = max(length / of for length, of in common if of)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(one: Tokens, other: Tokens) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for token in one:
        diagonal = 0
        for place, own in enumerate(other, 1):
            diagonal, lengths[place] = (
                lengths[place],
                diagonal + 1 if token == own else max(lengths[place], lengths[place - 1]),
            )
    return lengths[-1]
