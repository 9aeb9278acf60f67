"""The gallery: for some queries, what each selector chose and the answer that came of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from icdsel.page.choices import Chosen
from icdsel.page.thumbnails import Thumbnails
from icdsel.records import Example, Prediction, QuestionId, Shots, id_order, shots_order
from icdsel.tasks.base import Task


@dataclass(frozen=True)
class Demonstration:
    """A training example as it is shown; without the dataset only its `question_id` is known."""

    question_id: QuestionId
    images: tuple[int, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Line:
    """What one selector chose for a query at one number of shots, and the VLM's answer.

    Attributes:
        name: The selector's row in the comparison.
        place: The place of the selector in `Card.scores`.
        label: The short name that the page shows.
        demonstrations: The ICDs.
        prediction: The VLM's answer.
        verdict: `right`, `partly`, `wrong` or `failed`; `scored` if the task has no notion of correct.
    """

    name: str
    place: int
    label: str
    demonstrations: tuple[Demonstration, ...]
    prediction: Prediction
    verdict: str


@dataclass(frozen=True)
class Card:
    """A query with the lines of all selectors, by number of shots.

    Attributes:
        question_id: The query.
        images: The numbers of its thumbnails.
        question: Its question.
        answers: The reference answers, each with how many people gave it.
        lines: For each number of shots the lines of all selectors.
        scores: For each selector its scores by number of shots, as text, for the filters.
        correct: In the same form, whether they are correct; empty if the task has no notion of correct.
    """

    question_id: QuestionId
    images: tuple[int, ...]
    question: str
    answers: tuple[tuple[str, int], ...]
    lines: tuple[tuple[Shots, tuple[Line, ...]], ...]
    scores: tuple[Mapping[str, float], ...]
    correct: tuple[Mapping[str, bool], ...]


def spread(question_ids: Sequence[QuestionId], count: int) -> list[QuestionId]:
    """`count` evenly spaced ids of the sorted ids, so that they represent all; all if there are no more."""
    ordered = sorted(question_ids, key=id_order)
    if count >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // count] for i in range(count)]


def demonstration(
    question_id: QuestionId, train: Mapping[QuestionId, Example], task: Task, thumbnails: Thumbnails
) -> Demonstration:
    """The training example of this id; its images are added to the thumbnails."""
    example = train.get(question_id)
    if example is None:
        return Demonstration(question_id, (), "", "")
    images = tuple(map(thumbnails.place, example.images))
    return Demonstration(question_id, images, example.readable, task.demonstration(example))


def verdict_on(prediction: Prediction, task: Task) -> str:
    """The verdict of `Line` on a prediction."""
    if prediction.score is None:
        return "failed"
    if task.correctness is None:
        return "scored"
    if prediction.score >= task.bounds[1]:
        return "right"
    return "partly" if task.correctness.is_correct(prediction.score) else "wrong"


def cards(
    chosen: Sequence[Chosen],
    shown: Sequence[QuestionId],
    queries: Mapping[QuestionId, Example],
    train: Mapping[QuestionId, Example],
    task: Task,
    thumbnails: Thumbnails,
) -> list[Card]:
    """A card for each query of `shown`, in order; images are added to the thumbnails.

    Args:
        chosen: All choices, in the order in which selectors are shown.
        shown: The queries' ids.
        queries: The known queries.
        train: The known training examples.
        task: The task.
        thumbnails: The thumbnails.
    """
    names = list(dict.fromkeys(row.name for row in chosen))
    by_shots = sorted(chosen, key=lambda row: shots_order(row.shots))  # stable: selectors keep their order
    found = []
    for question_id in shown:
        query = queries.get(question_id)
        images = tuple(map(thumbnails.place, query.images)) if query else ()
        scores: list[dict[str, float]] = [{} for _ in names]
        groups = []
        for shots, rows in groupby(by_shots, key=lambda row: row.shots):
            lines = []
            for row in rows:
                prediction = row.by_query.get(question_id)
                if prediction is None:
                    continue
                icds = tuple(demonstration(icd, train, task, thumbnails) for icd in prediction.icds)
                place = names.index(row.name)
                lines.append(Line(row.name, place, row.label, icds, prediction, verdict_on(prediction, task)))
                if prediction.score is not None:
                    scores[place][str(shots)] = prediction.score
            if lines:
                groups.append((shots, tuple(lines)))
        found.append(
            Card(
                question_id,
                images,
                query.readable if query else "",
                _counted(query.written_answers) if query else (),
                tuple(groups),
                tuple(scores),
                _correct(scores, task),
            )
        )
    return found


def _correct(scores: Sequence[Mapping[str, float]], task: Task) -> tuple[Mapping[str, bool], ...]:
    rule = task.correctness
    if rule is None:
        return ()
    return tuple({shots: rule.is_correct(score) for shots, score in by_shots.items()} for by_shots in scores)


def _counted(answers: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Each answer with how many people gave it, the most frequent first."""
    return tuple(Counter(answers).most_common())
