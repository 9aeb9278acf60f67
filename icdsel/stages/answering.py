"""The answers of a row: pointers are chosen, the VLM is asked in units, and each unit is journalled as it comes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icdsel.artefacts.candidates import accuracies, prediction_of
from icdsel.artefacts.predictions import Prompt, prompt_of, valid_record
from icdsel.console import note, progress
from icdsel.errors import RunError
from icdsel.records import Answer, Example, Pointer
from icdsel.settings.loading import Settings
from icdsel.settings.tables import Selector
from icdsel.stages.selectors import Selectors
from icdsel.stages.session import Queries, Session
from icdsel.store.files import append_lines, cut
from icdsel.store.json_reading import whole_lines
from icdsel.tasks.vqa import majority_answer
from icdsel.vlm.engine import Request

UNIT = 128
"""Prompts that are asked, and written to the journal, together: an interruption costs no more than these."""


def answer_queries(
    session: Session,
    queries: Queries,
    choose: Selectors,
    selector: Selector,
    label: str,
    shot_counts: Sequence[int],
    part: Path,
) -> tuple[list[dict[str, Any]], int]:
    """Chooses, asks and scores: a record for each query and number of shots, and how many images were shown.

    Units are journalled in `part` as they come; whole ones that are there are not asked again.
    """
    # The majority answer is that of the nearest neighbours, the strongest choice that needs no training.
    chooser = "nearest-both" if selector == "majority" else selector
    pointers = {shots: choose.choose(chooser, shots) for shots in shot_counts}
    for shots in shot_counts:
        if all(pointer is None for pointer in pointers[shots]):
            note(f"{label}: no query has a scored pointer of {shots} ICDs, left out")
    # A query's prompts stand together: pointers that begin alike are read once up to there.
    asked = [
        (query, pointer)
        for q, query in enumerate(queries.examples)
        for shots in shot_counts
        if (pointer := pointers[shots][q]) is not None
    ]
    journal = whole_units(part)
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
            if selector == "majority":  # no VLM
                majority = (majority_answer([icd.answer for icd in icds]) for _, icds in shown)
                score(dict(enumerate(map(Answer, majority))))
            else:
                session.vlm.answer([Request(icds, query) for query, icds in shown], score)
            append_lines(part, [json.dumps(records[i], ensure_ascii=False) for i in unit])
    return [records[i] for i in range(len(asked))], sum(len(asked[i][1]) + 1 for i in todo)


def whole_units(part: Path) -> dict[Prompt, dict[str, Any]]:
    """The records of a journal's whole units by prompt; what is torn behind them is cut off.

    Raises:
        RunError: the journal cannot be read.
    """
    found: list[tuple[Prompt, dict[str, Any]]] = []
    sizes: list[int] = []
    for line, value in whole_lines(part, RunError):
        try:
            record = valid_record(value)
        except ValueError:
            break
        found.append((prompt_of(record), record))
        sizes.append(len(line))
    whole = len(found) // UNIT * UNIT  # the last unit of a row may be smaller: it is asked again
    cut(part, sum(sizes[:whole]))
    return dict(found[:whole])


def _record(settings: Settings, query: Example, pointer: Pointer, answer: Answer) -> dict[str, Any]:
    """What is written of an answer: the prediction and its accuracies, or why there is none."""
    record: dict[str, Any] = {"question_id": query.question_id, "shots": len(pointer), "icds": list(pointer)}
    if answer.error is not None:
        return record | {"error": answer.error}
    prediction = prediction_of(answer, settings.vlm)
    return record | {"prediction": prediction} | accuracies(prediction, query, settings.data.metric)
