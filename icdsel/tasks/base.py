"""The interface of a task. Does not import torch.

To add a task, write a module like `icdsel.tasks.vqa` that ends with `TASKS.add(MyTask())`, and import it in
`icdsel/tasks/__init__.py`. `--task` then accepts it, and everything downstream (rewards, tables, charts, `check`) uses
its score. In your own program, calling `TASKS.add(MyTask())` before it runs a command is enough.
"""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from icdsel.errors import SettingsError
from icdsel.records import Bounds, Example
from icdsel.registry import Registry
from icdsel.tasks.corpus import CorpusMetric

if TYPE_CHECKING:  # importing numpy would slow down `--help`
    import numpy as np
    from numpy.typing import NDArray

Aggregate = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]


def mean(scores: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The mean over the last axis."""
    average: NDArray[np.float64] = scores.mean(axis=-1)
    return average


@dataclass(frozen=True)
class Metric:
    """A way to score a prediction for a query; scores are within the bounds of the task.

    Attributes:
        name: Its name in `--metric`.
        score: Scores a prediction for a query.
        needs_references: Whether RL data that are scored by it need the probabilities of the reference answers.
        title: The name of its score in tables and charts, if that of the task does not fit.
    """

    name: str
    score: Callable[[str, Example], float]
    needs_references: bool = False
    title: str = ""


@dataclass(frozen=True)
class Correctness:
    """When a score counts as correct, and how output describes it: "queries with <meaning>"."""

    is_correct: Callable[[float], bool]
    meaning: str


class Relevance(NamedTuple):
    """Similarity of a prediction to the reference answers in [0, 1]: by tokens, by characters, and the larger one."""

    token_f1: float
    edit_similarity: float
    score: float


class Task(ABC):
    """A task: how an answer is scored, and how tables and charts name the score.

    Attributes:
        name: Its name in `--task`.
        metrics: Ways to score an answer; the first is the default.
        bounds: The lowest and the highest score; infinite if unbounded.
        score_name: The name of the score in titles and on axes, such as "VQA accuracy".
        short_name: The name of the score in table headings, such as "accuracy".
        unit: The unit that scores are displayed in, such as "points"; "" if there is none.
        factor: The factor by which a score is multiplied to be displayed in that unit.
        digits: Number of decimals displayed.
        correctness: When a score counts as correct; None if the task does not define correctness.
        aggregate: Computes the overall score [...] from the scores of queries [..., n]. Intervals and tests resample
            queries; that is slower for any function other than `mean`.
        usual_references: The number of reference answers that the metric is defined for; `check` reports queries with
            fewer.
        needs_references: Whether its RL data need the probabilities of the reference answers, whatever the reward.
        corpus_metrics: Scores of all queries together, which tables show beside the task's own.
        has_options: Whether queries name the answers to choose from (`icdsel.tasks.options`).
        listed: Whether prompts list these options, unless a setting says otherwise.
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
    needs_references: bool = False
    corpus_metrics: Registry[CorpusMetric] = Registry("corpus metric")
    has_options: bool = False
    listed: bool = False

    @abstractmethod
    def references(self, query: Example) -> Mapping[str, float]:
        """The reference answers whose log-probs the VLM gives, with their weights in `reference_prob`.

        They are asked for only where something needs them (`icdsel.policy.references`).
        """

    def with_options(self, listed: bool) -> Self:
        """The task with options listed in prompts, or not; a task without options is always the same."""
        del listed
        return self

    def prepared(self, examples: Iterable[Example]) -> Self:
        """The task for scoring queries of a split, whose examples these are.

        A score that depends on a corpus is fixed by their references. `examples` is read only by such a task.
        """
        del examples
        return self

    def question(self, example: Example) -> str:
        """The question that a prompt shows."""
        return example.question

    def demonstration(self, example: Example) -> str:
        """The answer that a demonstration shows."""
        return example.answer

    def candidates(self, query: Example) -> tuple[str, ...]:
        """What the VLM may answer, in the order of the query's options; () for a task without options."""
        del query
        return ()

    def read(self, text: str, query: Example) -> str:
        """The prediction that an answer of the VLM is, such as an option that it names by a letter."""
        del query
        return text

    def fault(self, example: Example) -> str | None:
        """What makes an example unfit for the task, and the remedy; None if nothing does."""
        del example
        return None

    def relevance(self, prediction: str, query: Example) -> Relevance | None:
        """Similarity of a prediction to the reference answers; None if the task has no such measure."""
        _ = prediction, query
        return None

    def normalize(self, text: str) -> str:
        """Normalises an answer: two answers are the same if their normalised forms are equal."""
        return text.strip().lower()

    def named_by(self, metric: str) -> Self:
        """The task with the name that this metric gives its score; the task as it is if it gives none."""
        title = self.metrics[metric].title if metric in self.metrics else ""
        if not title:
            return self
        named = copy.copy(self)
        named.score_name = named.short_name = title
        return named

    @property
    def heading(self) -> str:
        """The short name at the beginning of a title; "CIDEr" stays as it is."""
        return self.short_name[:1].upper() + self.short_name[1:]

    @property
    def default_metric(self) -> str:
        """The name of the first metric."""
        return next(iter(self.metrics))

    def is_correct(self, score: float) -> bool | None:
        """Whether a score counts as correct; None if the task does not define correctness."""
        return None if self.correctness is None else self.correctness.is_correct(score)

    def in_unit(self, score: float) -> float:
        """A score in the unit of display, such as 53.1 for 0.531; rounded, so that no sum decides a last digit."""
        return round(self.factor * score, 4)

    def text(self, score: float) -> str:
        """Formats a score for display, such as "53.1" for 0.531."""
        return f"{self.in_unit(score):.{self.digits}f}"


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


def majority_answer(answers: Sequence[str]) -> str:
    """The most common answer, as written; ties go to the first.

    Raises:
        ValueError: There is no answer.
    """
    if not answers:
        raise ValueError("answers is empty: at least one answer is needed")
    counts = Counter(answers)
    return max(counts, key=lambda answer: counts[answer])
