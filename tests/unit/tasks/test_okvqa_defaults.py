"""What OK-VQA's demonstrations show and what predictions are compared with belong together."""

import json
from pathlib import Path

import pytest

from icdsel.data.datasets import load_split
from icdsel.records import Answer
from icdsel.selection import SELECTORS
from icdsel.settings.loading import settings_from
from icdsel.tasks.scoring import Scorer

STEMS = {"riding": "ride", "glasses": "glass", "hot dogs": "hot dog", "Christmas": "christmas", "skis": "ski"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """OK-VQA in small: annotators wrote the keys, the dataset stores the values."""
    for split in ("train", "val"):
        ids = [{"question_id": n, "image_id": n} for n in range(len(STEMS))]
        answers = [[{"answer": stem, "raw_answer": text}] * 10 for text, stem in STEMS.items()]
        questions = [one | {"question": "What?"} for one in ids]
        annotations = [one | {"answers": ten} for one, ten in zip(ids, answers, strict=True)]
        (tmp_path / f"OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps({"questions": questions}))
        (tmp_path / f"mscoco_{split}2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return tmp_path


@pytest.mark.parametrize("shown", ["raw", "stemmed"])
def test_the_majority_answer_of_neighbours_that_are_all_right_is_right(folder: Path, shown: str) -> None:
    data = settings_from({"data": {"dataset": "okvqa", "data_dir": folder, "shown_answer": shown}}).data
    train, queries = load_split(data, "train"), load_split(data, "validation")
    scorer = Scorer.named(data.task, data.metric, "strip")
    for query in queries:
        neighbour = train.by_id(query.question_id)
        text = SELECTORS["majority"].answer([neighbour] * 3)  # type: ignore[attr-defined]
        assert text == (neighbour.raw_answers if shown == "raw" else neighbour.answers)[0]
        found = scorer.prediction(query, (0,), Answer(text))
        assert found.score == 1.0, text
        assert found.other_scores["official"] == float(text in query.answers)
