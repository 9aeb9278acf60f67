"""BLEU-4 (Papineni et al. 2002) of a corpus, as coco-caption computes it.

BLEU is no mean over sentences: the counts of all sentences are added first. `bleu_counts` gives those of one
prediction, and `bleu` the score of their sum. For one caption of ten words it says little: most have no 4-gram in
common with a reference, so that what replaces the zero decides. Therefore it is a score of all queries together.
"""

import math
from collections import Counter
from collections.abc import Sequence

from icdsel.tasks.ngrams import LONGEST, Tokens, ngrams

COUNTS = 2 + 2 * LONGEST
"""How many counts a prediction has."""
_SMALL, _TINY = 1e-9, 1e-15  # coco-caption's, which keep quotients defined


def bleu_counts(prediction: Tokens, references: Sequence[Tokens]) -> tuple[int, ...]:
    """Returns the counts of one prediction that BLEU-4 needs.

    They are the number of its tokens, that of the reference closest in length (the shorter one of two), for n = 1 to 4
    the number of its n-grams that are in a reference, each at most as often as in any one of them, and for n = 1 to 4
    the number of its n-grams.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("references is empty: at least one caption is needed")
    length = len(prediction)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    allowed: Counter[Tokens] = Counter()
    for reference in references:
        allowed |= ngrams(reference)
    matched = [0] * LONGEST
    for ngram, count in (ngrams(prediction) & allowed).items():
        matched[len(ngram) - 1] += count
    return (length, closest, *matched, *(max(0, length - n + 1) for n in range(1, LONGEST + 1)))


def bleu(counts: Sequence[float]) -> float:
    """Returns BLEU-4, from 0 to 1.

    Args:
        counts: The sum of the `bleu_counts` of all predictions, place by place.
    """
    length, expected, *rest = counts
    matched, proposed = rest[:LONGEST], rest[LONGEST:]
    precisions = [(found + _TINY) / (all_of + _SMALL) for found, all_of in zip(matched, proposed, strict=True)]
    ratio = (length + _TINY) / (expected + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return brevity * math.prod(precisions) ** (1 / LONGEST)
