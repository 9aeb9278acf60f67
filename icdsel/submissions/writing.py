"""Writes the answers of a row of predictions in the formats of other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icdsel.artefacts.predictions import SUBMISSIONS, read_predictions
from icdsel.data.datasets import Split
from icdsel.records import Shots
from icdsel.store.backup import back_up
from icdsel.store.files import write_bytes
from icdsel.submissions.base import Answered, Format

_NAMED = 5  # queries in a message


@dataclass(frozen=True)
class Written:
    """What was written of a row.

    Attributes:
        paths: The files.
        refused: Why others were not written: a sentence for each.
    """

    paths: tuple[Path, ...]
    refused: tuple[str, ...]


def write_submissions(predictions: Path, split: Split, shots: Sequence[Shots], formats: Sequence[Format]) -> Written:
    """Writes a file for each number of shots and format, into the folder `submissions` beside the predictions.

    A file that is there is replaced. Where a failed call leaves none, one that is there is renamed to a backup, since
    it was made of other predictions.

    Args:
        predictions: The row's file.
        split: The split of its queries.
        shots: The numbers of shots to write.
        formats: The formats.

    Raises:
        RunError: The predictions are damaged.
        OSError: A file cannot be written.
    """
    by_shots: dict[Shots, list[Answered]] = {count: [] for count in shots}
    for prediction in read_predictions(predictions):
        if prediction.shots in by_shots:
            row = split.row[prediction.question_id]
            by_shots[prediction.shots].append(Answered(split[row], row, prediction))
    paths, refused = list[Path](), list[str]()
    for count, answers in by_shots.items():
        answers.sort(key=lambda answered: answered.row)
        failed = [str(answered.query.question_id) for answered in answers if answered.prediction.error is not None]
        for format_ in formats:
            path = predictions.parent / SUBMISSIONS / f"{predictions.stem}_{count}.{format_.ending}"
            if failed and format_.needs_all:
                back_up(path)
                refused.append(f"{path.name} is not written: {_failures(failed, len(answers), predictions)}")
            else:
                write_bytes(path, format_.content(answers))
                paths.append(path)
    return Written(tuple(paths), tuple(refused))


def _failures(failed: Sequence[str], total: int, predictions: Path) -> str:
    named = ", ".join(failed[:_NAMED]) + (f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else "")
    return (
        f"{len(failed)} of {total} calls failed (question_id {named}), and an answer is needed for every query. The "
        f"reasons are in {predictions}. Move that file away and give the same command: only the failed calls are made "
        "again"
    )
