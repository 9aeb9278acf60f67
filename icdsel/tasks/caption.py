"""The task of captions: any number of captions that people wrote, compared by their n-grams."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Metric, Relevance, Task
from icdsel.tasks.bleu import COUNTS, bleu, bleu_counts
from icdsel.tasks.cider import HIGHEST, DocumentFrequencies, cider_d
from icdsel.tasks.corpus import CorpusMetric, Judged, Statistic
from icdsel.tasks.ngrams import Tokens, tokens
from icdsel.tasks.rouge import rouge_l
from icdsel.tasks.similarity import relevance

if TYPE_CHECKING:  # importing numpy would slow down `--help`
    from icdsel.tasks.corpus import Floats


def _bleu_statistic(judged: Judged, query: Example) -> Statistic | None:
    return bleu_counts(tokens(judged.prediction), _references(query)) if query.answers else None


def _bleu(statistics: "Sequence[Statistic]", counts: "Floats") -> "Floats":
    """The BLEU-4 of samples [R], from the counts of U predictions and how often each occurs in a sample [R, U]."""
    import numpy as np

    sums = counts @ np.array(statistics, dtype=np.float64)  # (R, 10)
    return np.array([bleu(total) for total in sums.tolist()])


BLEU_4 = CorpusMetric("BLEU-4", _bleu_statistic, (float,) * COUNTS, _bleu)


class CaptionTask(Task):
    """Captions, scored by CIDEr-D or ROUGE-L; nothing is right or wrong.

    CIDEr-D needs the document frequencies of a reference set, the references of all queries of a split: `prepared`
    returns the task with them.

    Args:
        frequencies: The document frequencies; None if they are not known yet.
    """

    name = "caption"
    bounds = (0.0, HIGHEST)
    score_name = "CIDEr-D"
    short_name = "CIDEr-D"
    unit = "points"
    factor = 100.0
    digits = 1
    usual_references = 5
    corpus_metrics = Registry("corpus metric of the task caption", [BLEU_4])

    def __init__(self, frequencies: DocumentFrequencies | None = None) -> None:
        self._frequencies = frequencies
        self.metrics = Registry(
            "metric of the task caption",
            [Metric("cider-d", self._cider_d), Metric("rouge-l", _rouge_l, title="ROUGE-L")],
        )

    def prepared(self, examples: Iterable[Example]) -> Self:
        """The task with the document frequencies of the examples' references.

        Each example with references is a document, whatever its image.
        """
        return type(self)(DocumentFrequencies.of(_references(example) for example in examples if example.answers))

    def references(self, query: Example) -> Mapping[str, float]:
        """The distinct captions, with equal weights that add up to 1."""
        captions = dict.fromkeys(query.written_answers)
        return dict.fromkeys(captions, 1 / len(captions)) if captions else {}

    def relevance(self, prediction: str, query: Example) -> Relevance:
        """Similarity to the most similar caption."""
        return relevance(prediction, query.answers)

    def normalize(self, text: str) -> str:
        """The tokens of a caption, which all metrics compare."""
        return " ".join(tokens(text))

    def _cider_d(self, prediction: str, query: Example) -> float:
        if self._frequencies is None:
            raise ValueError(
                "CIDEr-D depends on a reference set: score with the task that TASKS['caption'].prepared(examples) "
                "returns for the examples of the split"
            )
        if self._frequencies.documents < 2:  # every n-gram would weigh nothing
            raise DataError(
                "CIDEr-D weighs words by how few other queries have them in their captions, and the split has captions "
                "for a single query: use one with more"
            )
        return cider_d(tokens(prediction), _references(query), self._frequencies)


def _references(query: Example) -> tuple[Tokens, ...]:
    return tuple(tokens(answer) for answer in query.answers)


def _rouge_l(prediction: str, query: Example) -> float:
    return rouge_l(tokens(prediction), _references(query))


TASKS.add(CaptionTask())
