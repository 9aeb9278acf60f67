"""The task of visual question answering: open-ended questions with several human answers."""

from collections.abc import Mapping
from functools import partial

from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.tasks.base import TASKS, Correctness, Metric, Relevance, Task
from icdsel.tasks.normalisation import comparable
from icdsel.tasks.similarity import relevance
from icdsel.tasks.vqa_accuracy import VARIANTS, Variant, answer_weights


def _score(prediction: str, query: Example, variant: Variant) -> float:
    return variant.accuracy(prediction, query.answers, query.raw_answers)


class VqaTask(Task):
    """Open-ended questions with several human answers."""

    name = "vqa"
    metrics = Registry(
        "metric of the task vqa",
        (Metric(name, partial(_score, variant=variant)) for name, variant in VARIANTS.items()),
    )
    score_name = "VQA accuracy"
    short_name = "accuracy"
    unit = "points"
    factor = 100.0
    digits = 1
    correctness = Correctness(lambda score: score > 0, "an accuracy above 0")
    usual_references = 10

    def references(self, query: Example) -> Mapping[str, float]:
        """The distinct human answers, as people wrote them and as stored, with their normalised accuracies."""
        return answer_weights(query.answers, query.raw_answers)

    def relevance(self, prediction: str, query: Example) -> Relevance:
        """Similarity to the most similar human answer, as stored or as written."""
        return relevance(prediction, tuple(dict.fromkeys((*query.answers, *query.raw_answers))))

    def normalize(self, text: str) -> str:
        """Normalises as the metric `normalised` does."""
        return comparable(text)


TASKS.add(VqaTask())
