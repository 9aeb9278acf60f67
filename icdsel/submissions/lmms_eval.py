"""The samples that lmms-eval logs."""

import hashlib
from collections.abc import Sequence
from typing import Any

from icdsel.records import DEFAULT_TASK, Example
from icdsel.store.files import json_bytes
from icdsel.submissions.base import Answered, Format


class LmmsEval(Format):
    """The lines that `lmms_eval --log_samples` writes for its VQA tasks, and that its `--baseline` reads.

    `exact_match` is what its VQA tasks call the VQA accuracy. Its comparison with a baseline reads `score`, and without
    it would compare answers letter by letter.
    """

    name = "lmms-eval"
    ending = "lmms-eval.jsonl"
    needs_all = True  # lmms-eval knows no failed call

    def content(self, answers: Sequence[Answered]) -> bytes:
        """One line of JSON per query."""
        return b"".join(json_bytes(self._line(answered)) for answered in answers)

    def _line(self, answered: Answered) -> dict[str, Any]:
        query, prediction = answered.query, answered.prediction
        tokens = None if prediction.prompt_tokens is None else {"input_tokens": prediction.prompt_tokens}
        line: dict[str, Any] = {
            "doc_id": answered.row,
            "target": query.answer,
            "filtered_resps": prediction.prediction,
            "token_counts": [tokens],
            "doc_hash": _digest(query),
            "submission": {"question_id": query.question_id, "answer": prediction.prediction},
            "input": query.readable,
        }
        if prediction.score is not None:
            exact = {"exact_match": prediction.score} if prediction.task == DEFAULT_TASK else {}
            line |= exact | {"score": prediction.score}
        return line


def _digest(query: Example) -> str:
    """The SHA-256 of the query, by which lines of the same query are found."""
    content = [query.question_id, query.image_id, query.readable, query.written_answers]
    return hashlib.sha256(json_bytes(content)).hexdigest()
