"""The file that evaluation servers for VQA take."""

from collections.abc import Sequence

from icdsel.records import Example
from icdsel.store.files import json_bytes
from icdsel.submissions.base import Answered, Format


class VqaServer(Format):
    """VQA's official results: `[{"question_id": 1, "answer": "red"}, ...]`, for every question of a split.

    VQA's evaluation rejects a file in which a question of the split is missing, or whose ids are not the dataset's.
    lmms-eval writes its submissions for VQAv2 in the same form.
    """

    name = "submission"
    ending = "submission.json"
    needs_all = True
    needs_split = True

    def unfit(self, queries: Sequence[Example]) -> str:
        """VQA's ids are integers."""
        texts = [query.question_id for query in queries if isinstance(query.question_id, str)]
        if not texts:
            return ""
        return (
            f"VQA's servers want integers as question_ids, and {len(texts)} of {len(queries)} are texts, such as "
            f"{texts[0]!r}"
        )

    def content(self, answers: Sequence[Answered]) -> bytes:
        """One list."""
        return json_bytes(
            [
                {"question_id": answered.query.question_id, "answer": answered.prediction.prediction}
                for answered in answers
            ]
        )
