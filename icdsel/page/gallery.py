"""The gallery: for some queries what each selector chose and what came of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from icdsel.page.choices import Choice, Chosen
from icdsel.page.thumbnails import Thumbnails
from icdsel.records import Example


@dataclass(frozen=True)
class Demonstration:
    """A training example as it is shown; without the dataset nothing but its `question_id` is known."""

    question_id: int
    image: int | None
    question: str
    answer: str


@dataclass(frozen=True)
class Line:
    """What one selector chose for a query at one number of shots, and what the VLM said."""

    name: str
    label: str
    demonstrations: tuple[Demonstration, ...]
    choice: Choice

    @property
    def verdict(self) -> str:
        """`right`, `partly`, `wrong` or `failed`."""
        if self.choice.accuracy is None:
            return "failed"
        return "right" if self.choice.accuracy >= 1 else "partly" if self.choice.accuracy > 0 else "wrong"


@dataclass(frozen=True)
class Card:
    """A query with the lines of all selectors, by number of shots.

    `scores` has for each selector its accuracies by number of shots, for the filters.
    """

    question_id: int
    image: int | None
    question: str
    answers: tuple[tuple[str, int], ...]
    lines: tuple[tuple[int, tuple[Line, ...]], ...]
    scores: tuple[Mapping[int, float], ...]


def spread(question_ids: Sequence[int], count: int) -> list[int]:
    """`count` of the sorted ids at even distances, so that they stand for all; all where there are no more."""
    ordered = sorted(question_ids)
    if count >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // count] for i in range(count)]


def demonstration(question_id: int, train: Mapping[int, Example], thumbnails: Thumbnails) -> Demonstration:
    """The training example of this id, its image put among the thumbnails."""
    example = train.get(question_id)
    if example is None:
        return Demonstration(question_id, None, "", "")
    return Demonstration(question_id, thumbnails.place(example.image), example.question, example.answer)


def cards(
    chosen: Sequence[Chosen],
    shown: Sequence[int],
    queries: Mapping[int, Example],
    train: Mapping[int, Example],
    thumbnails: Thumbnails,
) -> list[Card]:
    """A card for each query of `shown`, in order; images are put among the thumbnails.

    Args:
        chosen: All choices, in the order in which selectors are shown.
        shown: The queries' ids.
        queries: The examples that are known of them.
        train: The training examples that are known.
        thumbnails: Where images go.
    """
    names = list(dict.fromkeys(row.name for row in chosen))
    by_shots = sorted(chosen, key=lambda row: row.shots)  # stable: selectors keep their order
    made = []
    for question_id in shown:
        query = queries.get(question_id)
        image = thumbnails.place(query.image) if query else None
        scores: list[dict[int, float]] = [{} for _ in names]
        groups = []
        for shots, rows in groupby(by_shots, key=lambda row: row.shots):
            lines = []
            for row in rows:
                choice = row.by_query.get(question_id)
                if choice is None:
                    continue
                place = names.index(row.name)
                icds = tuple(demonstration(icd, train, thumbnails) for icd in choice.icds)
                lines.append(Line(row.name, row.label, icds, choice))
                if choice.accuracy is not None:
                    scores[place][shots] = choice.accuracy
            if lines:
                groups.append((shots, tuple(lines)))
        made.append(
            Card(
                question_id,
                image,
                query.question if query else "",
                _counted(query.written_answers) if query else (),
                tuple(groups),
                tuple(scores),
            )
        )
    return made


def _counted(answers: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Each answer with how many people gave it, the most frequent first."""
    return tuple(Counter(answers).most_common())
