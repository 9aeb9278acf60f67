"""The answers of one selector: it chooses pointers, the VLM answers in units, and each unit goes to a journal."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icdsel.artefacts.predictions import parse_prediction
from icdsel.console import note, progress
from icdsel.records import Answer, Example, Pointer, Prediction, Prompt, Shots, stop_offset
from icdsel.selection import Selector
from icdsel.selection.context import Context
from icdsel.stages.answer_cache import ask
from icdsel.stages.scored_unit import require_references
from icdsel.stages.scorers import scorer_of
from icdsel.stages.session import Session
from icdsel.store.journal import Journal
from icdsel.vlm.engine import Request
from icdsel.vlm.task_prompts import TaskPrompts

UNIT = 128
"""How many prompts are answered and journaled together: the most that an interruption loses."""


class _AnsweredUnit(NamedTuple):
    """The predictions of a unit by the place of their prompt, and how many prompts and images the VLM was shown."""

    predictions: dict[int, Prediction]
    asked: int
    images: int


class Prompts:
    """The prompts of a row: the pointers that a selector chooses, query by query.

    A query's prompts are adjacent, so that a prefix shared by its pointers is read once.

    Args:
        session: The training split, and the answers that exist.
        context: What the selector chooses by.
        selector: The selector.
        label: The name of the row.
        shot_counts: The numbers of shots.
    """

    def __init__(
        self, session: Session, context: Context, selector: Selector, label: str, shot_counts: Sequence[Shots]
    ) -> None:
        self._session, self._scorer = session, scorer_of(session.settings)
        self._prompts = TaskPrompts(self._scorer.task)
        self.selector, self.label = selector, label
        pointers = {shots: _chosen(selector, context, shots) for shots in shot_counts}
        for shots in shot_counts:
            if all(pointer is None for pointer in pointers[shots]):
                note(f"{label}: no query has a scored pointer of {shots} ICDs, left out")
        self.chosen: list[tuple[Example, Shots, Pointer]] = [
            (query, shots, pointer)
            for q, query in enumerate(context.queries)
            for shots in shot_counts
            if (pointer := pointers[shots][q]) is not None
        ]
        """Each query with a pointer, at each number of shots."""

    def request(self, place: int) -> Request:
        """What the VLM is asked."""
        query, _, pointer = self.chosen[place]
        ranked = self._scorer.task.candidates(query) if self._scorer.ranks else ()
        return self._prompts.request(map(self._session.train.by_id, pointer), query, ranked)

    @property
    def needs_vlm(self) -> bool:
        """Whether a prompt was never answered."""
        known = self._session.answers if self.selector.needs_vlm else None
        if known is None:
            return self.selector.needs_vlm
        starts = range(0, len(self.chosen), UNIT)
        units = ([self.request(i) for i in range(at, min(at + UNIT, len(self.chosen)))] for at in starts)
        return any(len(known.find(unit)) < len(unit) for unit in units)


def answer_prompts(session: Session, prompts: Prompts, log: Journal) -> tuple[list[Prediction], int]:
    """Has the VLM answer prompts, and scores the answers; those that are cached are not asked again.

    Units are appended to the journal `log` as they are answered; complete ones that it holds are not repeated.

    Returns:
        A prediction for each prompt, and how many images the VLM was shown.
    """
    selector, label, chosen = prompts.selector, prompts.label, prompts.chosen
    journal = complete_units(log)
    keys: list[Prompt] = [(query.question_id, shots, tuple(pointer)) for query, shots, pointer in chosen]
    answered = {i: journal[key] for i, key in enumerate(keys) if key in journal}
    todo = [i for i in range(len(chosen)) if i not in answered]
    if answered:
        note(f"{label}: resuming after {len(answered)} prompts of an interrupted run")
    scorer = session.scorer(session.settings.infer.split)
    if scorer.ranks and selector.needs_vlm and todo:
        require_references(session)
    scores = [prediction.score for prediction in answered.values() if prediction.score is not None]
    count, total = len(scores), float(sum(scores))
    asked = images = 0
    with progress(label, len(chosen)) as advance:
        advance(len(answered))

        def answer(unit: Sequence[int]) -> _AnsweredUnit:
            requests = [prompts.request(i) for i in unit]
            predictions: dict[int, Prediction] = {}

            def score(answers: Mapping[int, Answer]) -> None:
                nonlocal count, total
                for place, answer in answers.items():
                    query, shots, pointer = chosen[unit[place]]
                    made = predictions[unit[place]] = scorer.prediction(query, pointer, answer, shots)
                    if made.score is not None:
                        count, total = count + 1, total + made.score
                mean = f"{scorer.task.short_name} {scorer.task.text(total / count)}" if count else ""
                advance(len(answers), mean)

            if not selector.needs_vlm:
                pointers = (chosen[i][2] for i in unit)
                shown = (list(map(session.train.by_id, pointer)) for pointer in pointers)  # not as prompts show them
                score({place: Answer(selector.answer(icds)) for place, icds in enumerate(shown)})
                return _AnsweredUnit(predictions, 0, 0)
            new = ask(session, requests, score)
            return _AnsweredUnit(predictions, len(new), sum(len(requests[place].shown) for place in new))

        units = [todo[at : at + UNIT] for at in range(0, len(todo), UNIT)]
        with session.in_order(answer, units) as results:
            for unit, done in zip(units, results, strict=True):
                answered |= done.predictions
                asked, images = asked + done.asked, images + done.images
                log.append(answered[i].to_json() for i in unit)
    if selector.needs_vlm and asked < len(todo):
        note(f"{label}: {len(todo) - asked} of {len(todo)} answers are reused from the same prompts before")
    return [answered[i] for i in range(len(chosen))], images


def _chosen(selector: Selector, context: Context, shots: Shots) -> list[Pointer | None]:
    """What the selector chooses.

    Raises:
        ValueError: It is not a pointer, or None, for each query.
    """
    if isinstance(shots, str):
        chosen = selector.choose_auto(context, stop_offset(shots))
    else:
        chosen = selector.choose(context, shots)
    if len(chosen) != len(context.queries):
        raise ValueError(f"{selector.name} chose {len(chosen)} pointers for {len(context.queries)} queries")
    for query, pointer in zip(context.queries, chosen, strict=True):
        if unknown := [icd for icd in pointer or () if icd not in context.train.row]:
            raise ValueError(
                f"{selector.name} chose {unknown[0]} for query {query.question_id}, which is no question_id of the "
                "training split; context.pointers(rows) turns rows into question_ids"
            )
    return chosen


def complete_units(journal: Journal) -> dict[Prompt, Prediction]:
    """The predictions of a journal's complete units by prompt; only these are kept.

    Raises:
        RunError: The journal cannot be read.
    """
    predictions = list(journal.read(parse_prediction))
    complete = len(predictions) // UNIT * UNIT  # the last unit of a row may be smaller: it is answered again
    journal.keep(complete)
    return {prediction.prompt: prediction for prediction in predictions[:complete]}
