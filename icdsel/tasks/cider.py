"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726), as coco-caption computes it.

A caption is a vector of its n-grams, n = 1 to 4, each weighted by how rare it is: by the logarithm of the number of
documents over the number of those that contain it, where a document is all references of one query. The score is 10
times the cosine of the vectors of prediction and reference, with the prediction's counts clipped to the reference's and
a penalty for another length (a Gaussian, sigma 6), averaged over n and the references. So it is from 0 to 10, and
publications print 100 times its mean over a test set.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from icdsel.tasks.ngrams import LONGEST, Tokens, ngrams

HIGHEST = 10.0
"""The score of a prediction that equals each of its references."""
_SIGMA = 6.0


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many documents of a reference set each n-gram occurs.

    Attributes:
        documents: The number of documents.
        counts: The number of documents of each n-gram that is in more than one.
    """

    documents: int
    counts: Mapping[Tokens, int]

    @classmethod
    def of(cls, documents: Iterable[Iterable[Tokens]]) -> "DocumentFrequencies":
        """Counts the n-grams of documents, each of which is the references of a query."""
        number, counts = 0, Counter[Tokens]()
        for references in documents:
            number += 1
            counts.update({ngram for reference in references for ngram in _distinct(reference)})
        return cls(number, {ngram: count for ngram, count in counts.items() if count > 1})

    def weight(self, ngram: Tokens) -> float:
        """How much an n-gram counts: the log of the inverse share of documents that contain it.

        One that is in no document weighs as much as one that is in a single one.
        """
        return math.log(self.documents) - math.log(self.counts.get(ngram, 1))


def cider_d(prediction: Tokens, references: Sequence[Tokens], frequencies: DocumentFrequencies) -> float:
    """Returns the CIDEr-D of a prediction, from 0 to `HIGHEST`.

    Args:
        prediction: The tokens of the prediction.
        references: Those of the references.
        frequencies: Those of the reference set, which contains these references.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("references is empty: at least one caption is needed")
    predicted = _Vector(prediction, frequencies)
    total = sum(predicted.similarity(_Vector(reference, frequencies)) for reference in references)
    return HIGHEST * total / len(references)


class _Vector:
    """The weighted n-grams of a caption, with the norm for each n."""

    def __init__(self, text: Tokens, frequencies: DocumentFrequencies) -> None:
        self._weighted = {ngram: count * frequencies.weight(ngram) for ngram, count in ngrams(text).items()}
        self._norms = self._sums((ngram, weight * weight) for ngram, weight in self._weighted.items())
        self._norms = [math.sqrt(total) for total in self._norms]
        self._bigrams = max(0, len(text) - 1)  # coco-caption measures length in bigrams

    def similarity(self, reference: "_Vector") -> float:
        """The mean over n of the clipped cosines, times the penalty for another length; from 0 to 1."""
        common = self._weighted.keys() & reference._weighted.keys()
        products = self._sums(
            (ngram, min(self._weighted[ngram], reference._weighted[ngram]) * reference._weighted[ngram])
            for ngram in common
        )
        norms = [one * other for one, other in zip(self._norms, reference._norms, strict=True)]
        cosines = [product / norm if norm else 0.0 for product, norm in zip(products, norms, strict=True)]
        penalty = math.exp(-((self._bigrams - reference._bigrams) ** 2) / (2 * _SIGMA**2))
        return penalty * sum(cosines) / LONGEST

    @staticmethod
    def _sums(values: Iterable[tuple[Tokens, float]]) -> list[float]:
        """The sum of the values of the n-grams of each length."""
        sums = [0.0] * LONGEST
        for ngram, value in values:
            sums[len(ngram) - 1] += value
        return sums


def _distinct(text: Tokens) -> Iterable[Tokens]:
    """The n-grams of a text, which may be repeated; not cached, since a reference set is counted once."""
    return (text[at : at + n] for n in range(1, LONGEST + 1) for at in range(len(text) - n + 1))
