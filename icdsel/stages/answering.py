"""The answers of one selector: it chooses pointers, the VLM answers in units, and each unit goes to a journal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from icdsel.artefacts.predictions import parse_prediction
from icdsel.console import note, progress
from icdsel.errors import RunError
from icdsel.records import Answer, Prediction, Prompt
from icdsel.settings.tables import Selector
from icdsel.stages.scored_unit import scorer_of
from icdsel.stages.selectors import Selectors
from icdsel.stages.session import Queries, Session
from icdsel.store.files import append_lines, cut
from icdsel.store.json_reading import whole_lines
from icdsel.tasks.base import demonstrations, majority_answer
from icdsel.vlm.base import Request

UNIT = 128
"""Prompts that are answered and written to the journal together: an interruption loses no more than these."""


def answer_queries(
    session: Session,
    queries: Queries,
    choose: Selectors,
    selector: Selector,
    label: str,
    shot_counts: Sequence[int],
    part: Path,
) -> tuple[list[Prediction], int]:
    """Chooses ICDs, has the VLM answer, and scores the answers.

    Units are appended to the journal `part` as they are answered; complete ones that it holds are not repeated.

    Returns:
        A prediction for each query and number of shots, and how many images the VLM was shown.
    """
    # The majority answer is that of the nearest neighbours, the strongest choice that needs no training.
    chooser = "nearest-both" if selector == "majority" else selector
    pointers = {shots: choose.choose(chooser, shots) for shots in shot_counts}
    for shots in shot_counts:
        if all(pointer is None for pointer in pointers[shots]):
            note(f"{label}: no query has a scored pointer of {shots} ICDs, left out")
    # A query's prompts are adjacent, so that a prefix shared by its pointers is read once.
    pairs = [
        (query, pointer)
        for q, query in enumerate(queries.examples)
        for shots in shot_counts
        if (pointer := pointers[shots][q]) is not None
    ]
    journal = complete_units(part)
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
            if selector == "majority":  # no VLM
                majority = (majority_answer([icd.answer for icd in icds]) for _, icds in shown)
                score(dict(enumerate(map(Answer, majority))))
            else:
                session.vlm.answer([Request(icds, query) for query, icds in shown], score)
            append_lines(part, [json.dumps(answered[i].to_json(), ensure_ascii=False) for i in unit])
    return [answered[i] for i in range(len(pairs))], sum(len(pairs[i][1]) + 1 for i in todo)


def complete_units(part: Path) -> dict[Prompt, Prediction]:
    """The predictions of a journal's complete units by prompt; what is torn after them is cut off.

    Raises:
        RunError: The journal cannot be read.
    """
    found: list[Prediction] = []
    sizes: list[int] = []
    for line, value in whole_lines(part, RunError):
        try:
            found.append(parse_prediction(value))
        except ValueError:
            break
        sizes.append(len(line))
    complete = len(found) // UNIT * UNIT  # the last unit of a row may be smaller: it is answered again
    cut(part, sum(sizes[:complete]))
    return {prediction.prompt: prediction for prediction in found[:complete]}
