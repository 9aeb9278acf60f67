"""Tables whose values are separated by a character: CSV for people, TSV for VLMEvalKit."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from icdsel.store.spreadsheet import harmless
from icdsel.submissions.base import Answered, Format

_FAILED = "Failed to obtain answer"
"""What VLMEvalKit writes for a call that failed, and asks again."""


class CommaSeparated(Format):
    """A table for people and their programs, a line per query; spreadsheets compute nothing in it."""

    name = "csv"
    ending = "csv"

    def content(self, answers: Sequence[Answered]) -> bytes:
        """Lists are in JSON, and what there is not is empty."""
        return _table((self._line(answered) for answered in answers), ",", csv.QUOTE_MINIMAL)

    def _line(self, answered: Answered) -> dict[str, Any]:
        query, prediction = answered.query, answered.prediction
        line = {
            "question_id": query.question_id,
            "image_id": query.image_id,
            "question": query.readable,
            "answer": query.answer,
            "prediction": prediction.prediction,
            "score": prediction.score,
            "shots": prediction.shots,
            "icds": json.dumps(prediction.icds, ensure_ascii=False),
            "prompt_tokens": prediction.prompt_tokens,
            "error": prediction.error,
        }
        return {name: harmless(value) if isinstance(value, str) else value for name, value in line.items()}


class VlmEvalKit(Format):
    """The predictions that VLMEvalKit's evaluations read, with `PRED_FORMAT=tsv`.

    `answer` is a Python list of the human answers, as in its datasets with several. Its evaluation runs a single text
    as Python to find out whether it is a list, so an answer is never written as it is.
    """

    name = "vlmevalkit"
    ending = "vlmevalkit.tsv"

    def content(self, answers: Sequence[Answered]) -> bytes:
        """All values in quotes, as VLMEvalKit writes them."""
        return _table((self._line(answered) for answered in answers), "\t", csv.QUOTE_ALL)

    def _line(self, answered: Answered) -> dict[str, Any]:
        query, prediction = answered.query, answered.prediction
        return {
            "index": query.question_id,
            "question": query.readable,
            "answer": repr(list(query.written_answers)) if query.answers else "",
            "prediction": prediction.prediction if prediction.error is None else _FAILED,
        }


def _table(lines: Iterable[Mapping[str, Any]], delimiter: str, quoting: Literal[0, 1]) -> bytes:
    text = io.StringIO(newline="")
    writer: Any = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    for number, line in enumerate(lines):
        if number == 0:
            writer.writerow(line)
        writer.writerow(line.values())
    return text.getvalue().encode(errors="backslashreplace")
