"""The answers of one selector: it chooses pointers, the VLM answers in units, and each unit goes to a journal."""

from collections.abc import Mapping, Sequence

from icdsel.artefacts.predictions import parse_prediction
from icdsel.console import note, progress
from icdsel.records import Answer, Pointer, Prediction, Prompt
from icdsel.selection import Selector
from icdsel.selection.context import Context
from icdsel.stages.scored_unit import scorer_of
from icdsel.stages.session import Session
from icdsel.store.journal import Journal
from icdsel.tasks.base import demonstrations
from icdsel.vlm.engine import Request

UNIT = 128
"""How many prompts are answered and journaled together: the most that an interruption loses."""


def answer_queries(
    session: Session,
    context: Context,
    selector: Selector,
    label: str,
    shot_counts: Sequence[int],
    log: Journal,
) -> tuple[list[Prediction], int]:
    """Chooses ICDs, has the VLM answer, and scores the answers.

    Units are appended to the journal `log` as they are answered; complete ones that it holds are not repeated.

    Returns:
        A prediction for each query and number of shots, and how many images the VLM was shown.
    """
    pointers = {shots: _chosen(selector, context, shots) for shots in shot_counts}
    for shots in shot_counts:
        if all(pointer is None for pointer in pointers[shots]):
            note(f"{label}: no query has a scored pointer of {shots} ICDs, left out")
    # A query's prompts are adjacent, so that a prefix shared by its pointers is read once.
    pairs = [
        (query, pointer)
        for q, query in enumerate(context.queries)
        for shots in shot_counts
        if (pointer := pointers[shots][q]) is not None
    ]
    journal = complete_units(log)
    prompts: list[Prompt] = [(query.question_id, tuple(pointer)) for query, pointer in pairs]
    answered = {i: journal[prompt] for i, prompt in enumerate(prompts) if prompt in journal}
    todo = [i for i in range(len(pairs)) if i not in answered]
    if answered:
        note(f"{label}: resuming after {len(answered)} prompts of an interrupted run")
    scorer, train = scorer_of(session.settings), session.train
    scores = [prediction.score for prediction in answered.values() if prediction.score is not None]
    count, total = len(scores), float(sum(scores))
    with progress(label, len(pairs)) as advance:
        advance(len(answered))

        def score(answers: Mapping[int, Answer]) -> None:
            nonlocal count, total
            for place, answer in answers.items():
                query, pointer = pairs[unit[place]]
                made = answered[unit[place]] = scorer.prediction(query, pointer, answer)
                if made.score is not None:
                    count, total = count + 1, total + made.score
            mean = f"{scorer.task.short_name} {scorer.task.text(total / count)}" if count else ""
            advance(len(answers), mean)

        for at in range(0, len(todo), UNIT):
            unit = todo[at : at + UNIT]
            shown = [(pairs[i][0], demonstrations(scorer.task, map(train.by_id, pairs[i][1]))) for i in unit]
            if selector.needs_vlm:
                session.vlm.answer([Request(icds, query) for query, icds in shown], score)
            else:
                score({place: Answer(selector.answer(icds)) for place, (_, icds) in enumerate(shown)})
            log.append(answered[i].to_json() for i in unit)
    return [answered[i] for i in range(len(pairs))], sum(len(pairs[i][1]) + 1 for i in todo)


def _chosen(selector: Selector, context: Context, shots: int) -> list[Pointer | None]:
    """What the selector chooses.

    Raises:
        ValueError: It is not a pointer, or None, for each query.
    """
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
