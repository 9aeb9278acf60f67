"""What a task is. Does not import torch.

To add a task, write a module like `icdsel.tasks.vqa` that ends with `TASKS.add(MyTask())`, and import it in
`icdsel/tasks/__init__.py`. `--task` then knows it, and everything downstream (rewards, tables, charts, `check`)
speaks of its score. A program of your own only has to call `TASKS.add(MyTask())` before it runs a command.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from icdsel.errors import SettingsError
from icdsel.records import Bounds, Example
from icdsel.registry import Registry

if TYPE_CHECKING:  # numpy would slow `--help`
    import numpy as np
    from numpy.typing import NDArray

Aggregate = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]


def mean(scores: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The mean over the last axis."""
    average: NDArray[np.float64] = scores.mean(axis=-1)
    return average


@dataclass(frozen=True)
class Metric:
    """A way to score a prediction for a query; every score lies within the bounds of the task."""

    name: str
    score: Callable[[str, Example], float]


@dataclass(frozen=True)
class Correctness:
    """When a score counts as correct, and how that is put: "queries with <meaning>"."""

    is_correct: Callable[[float], bool]
    meaning: str


class Relevance(NamedTuple):
    """How near a prediction comes to a reference answer: by tokens, by letters, and the larger; in [0, 1]."""

    token_f1: float
    edit_similarity: float
    score: float


class Task(ABC):
    """A task: how an answer is scored, and what tables and charts call the score.

    Attributes:
        name: What `--task` calls it.
        metrics: Ways to score an answer; the first is the default.
        bounds: The lowest and the highest score; infinite where there is none.
        score_name: What titles and axes call the score, such as "VQA accuracy".
        short_name: The same in table headings, such as "accuracy".
        unit: What the score is shown in, such as "points"; "" if it is shown as it is.
        factor: What a score is multiplied by to be shown in that unit.
        digits: Decimals with which it is shown.
        correctness: When a score counts as correct; None if nothing is right or wrong.
        aggregate: From the scores of queries [..., n] to the score of all together [...]. Intervals and tests resample
            queries; for anything but `mean` that takes longer.
        usual_references: Reference answers that the metric is defined for; `check` tells of queries with fewer.
    """

    name: str
    metrics: Registry[Metric]
    bounds: Bounds = (0.0, 1.0)
    score_name: str = "score"
    short_name: str = "score"
    unit: str = ""
    factor: float = 1.0
    digits: int = 2
    correctness: Correctness | None = None
    aggregate: Aggregate = staticmethod(mean)
    usual_references: int = 1

    @abstractmethod
    def references(self, query: Example) -> Mapping[str, float]:
        """The reference answers whose log-probs the VLM gives, with their weights in `reference_prob`."""

    def demonstration(self, example: Example) -> str:
        """What a demonstration answers."""
        return example.answer

    def relevance(self, prediction: str, query: Example) -> Relevance | None:
        """How near a prediction comes to a reference answer; None if the task has no such measure."""
        _ = prediction, query
        return None

    def normalize(self, text: str) -> str:
        """The form in which two answers are compared for being the same."""
        return text.strip().lower()

    @property
    def default_metric(self) -> str:
        """The name of the first metric."""
        return next(iter(self.metrics))

    def is_correct(self, score: float) -> bool | None:
        """Whether a score counts as correct; None if nothing is right or wrong."""
        return None if self.correctness is None else self.correctness.is_correct(score)

    def text(self, score: float) -> str:
        """A score as it is shown, such as "53.1" for 0.531."""
        return f"{self.factor * score:.{self.digits}f}"


TASKS: Registry[Task] = Registry("task")
"""All tasks by name, the default first."""


def bounds_of(task: str) -> Bounds:
    """The bounds of a task's scores.

    Raises:
        ValueError: There is no such task.
    """
    try:
        return TASKS.named(task).bounds
    except SettingsError as error:
        raise ValueError(str(error)) from None


def demonstrations(task: Task, icds: Iterable[Example]) -> tuple[Example, ...]:
    """The ICDs as a prompt shows them: with the answers of the task's demonstrations."""
    answers = ((icd, task.demonstration(icd)) for icd in icds)
    return tuple(icd if answer == icd.answer else replace(icd, answer=answer) for icd, answer in answers)


def majority_answer(answers: Sequence[str]) -> str:
    """The most common answer, as written; of equally common ones, the first.

    Raises:
        ValueError: There is no answer.
    """
    if not answers:
        raise ValueError("answers is empty: at least one answer is needed")
    counts = Counter(answers)
    return max(counts, key=lambda answer: counts[answer])
