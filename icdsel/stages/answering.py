"""The answers of a row: pointers are chosen, the VLM is asked in units, and each unit is journalled as it comes."""

from collections.abc import Mapping, Sequence
from typing import Any

from icdsel.artefacts.candidates import accuracies, prediction_of
from icdsel.artefacts.predictions import Prompt, prompt_of, valid_record
from icdsel.console import note, progress
from icdsel.records import Answer, Example, Pointer
from icdsel.selection import Selector
from icdsel.selection.context import Context
from icdsel.settings.loading import Settings
from icdsel.stages.session import Session
from icdsel.store.journal import Journal
from icdsel.vlm.base import Request

UNIT = 128
"""Prompts that are asked, and written to the journal, together: an interruption costs no more than these."""


def answer_queries(
    session: Session,
    context: Context,
    selector: Selector,
    label: str,
    shot_counts: Sequence[int],
    log: Journal,
) -> tuple[list[dict[str, Any]], int]:
    """Chooses, asks and scores: a record for each query and number of shots, and how many images were shown.

    Units are appended to the journal `log` as they come; whole ones that are there are not asked again.
    """
    pointers = {shots: selector.choose(context, shots) for shots in shot_counts}
    for shots in shot_counts:
        if all(pointer is None for pointer in pointers[shots]):
            note(f"{label}: no query has a scored pointer of {shots} ICDs, left out")
    # A query's prompts stand together: pointers that begin alike are read once up to there.
    asked = [
        (query, pointer)
        for q, query in enumerate(context.queries)
        for shots in shot_counts
        if (pointer := pointers[shots][q]) is not None
    ]
    journal = whole_units(log)
    prompts: list[Prompt] = [(query.question_id, tuple(pointer)) for query, pointer in asked]
    kept = {i: journal[prompt] for i, prompt in enumerate(prompts) if prompt in journal}
    records = dict(kept)
    todo = [i for i in range(len(asked)) if i not in kept]
    if kept:
        note(f"{label}: going on after {len(kept)} prompts of an interrupted run")
    fine = [record["accuracy"] for record in kept.values() if "error" not in record]
    answered, total = len(fine), float(sum(fine))
    train = session.train
    with progress(label, len(asked)) as advance:
        advance(len(kept))

        def score(answers: Mapping[int, Answer]) -> None:
            nonlocal answered, total
            for place, answer in answers.items():
                i = unit[place]
                records[i] = _record(session.settings, *asked[i], answer)
                if answer.error is None:
                    answered, total = answered + 1, total + records[i]["accuracy"]
            advance(len(answers), f"accuracy {100 * total / answered:.1f}" if answered else "")

        for at in range(0, len(todo), UNIT):
            unit = todo[at : at + UNIT]
            shown = [(asked[i][0], tuple(map(train.by_id, asked[i][1]))) for i in unit]
            if selector.needs_vlm:
                session.vlm.answer([Request(icds, query) for query, icds in shown], score)
            else:
                score({place: Answer(selector.answer(icds)) for place, (_, icds) in enumerate(shown)})
            log.append(records[i] for i in unit)
    return [records[i] for i in range(len(asked))], sum(len(asked[i][1]) + 1 for i in todo)


def whole_units(journal: Journal) -> dict[Prompt, dict[str, Any]]:
    """The records of a journal's whole units by prompt; these alone are kept.

    Raises:
        RunError: the journal cannot be read.
    """
    records = list(journal.read(valid_record))
    whole = len(records) // UNIT * UNIT  # the last unit of a row may be smaller: it is asked again
    journal.keep(whole)
    return {prompt_of(record): record for record in records[:whole]}


def _record(settings: Settings, query: Example, pointer: Pointer, answer: Answer) -> dict[str, Any]:
    """What is written of an answer: the prediction and its accuracies, or why there is none."""
    record: dict[str, Any] = {"question_id": query.question_id, "shots": len(pointer), "icds": list(pointer)}
    if answer.error is not None:
        return record | {"error": answer.error}
    prediction = prediction_of(answer, settings.vlm)
    return record | {"prediction": prediction} | accuracies(prediction, query, settings.data.metric)
