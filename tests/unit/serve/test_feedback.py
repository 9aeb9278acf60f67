import json
import time
from pathlib import Path

import pytest
from fake_chooser import candidates_in, png

from icdsel.artefacts.rl_data import merge, read_rl_data
from icdsel.errors import RlDataError
from icdsel.records import Example
from icdsel.serve.errors import ApiError
from icdsel.serve.feedback import Feedback, Served

IMAGE = png()


@pytest.fixture
def icds(tmp_path: Path) -> list[Example]:
    return candidates_in(tmp_path, 5)[0]


def served(icds, question="q", age=0.0) -> Served:
    query = Example(f"query-{question}", "image", Path("gone"), question, "", ())
    return Served(query, tuple(icds), IMAGE, time.monotonic() - age)


def test_scores_are_rl_data_of_the_shown_pointers(tmp_path, icds):
    path = tmp_path / "feedback.jsonl"
    feedback = Feedback(path, "vqa")
    feedback.remember("a", served(icds[:2]))
    feedback.remember("b", served(icds[2:4]))
    feedback.remember("c", served([], "other"))
    for request_id, score in (("a", 1.0), ("b", 0.0), ("c", 0.25)):
        feedback.score(request_id, score)
    feedback.close()
    groups = merge([read_rl_data(path).groups])
    assert [group.question for group in groups] == ["other", "q"]
    assert [(c.pointer, c.score, c.correct, c.method) for c in groups[1].candidates] == [
        ((100, 101), 1.0, 1.0, "served"),
        ((102, 103), 0.0, 0.0, "served"),
    ]
    assert groups[0].candidates[0].pointer == () and groups[0].candidates[0].score == 0.25
    line = json.loads(path.read_text().splitlines()[0])
    assert (tmp_path / line["image"]).read_bytes() == IMAGE


def test_a_request_is_scored_once_and_unknown_ones_are_refused(tmp_path, icds):
    feedback = Feedback(tmp_path / "f.jsonl", "vqa")
    feedback.remember("a", served(icds))
    feedback.score("a", 1)
    for unknown in ("a", "b"):
        with pytest.raises(ApiError) as caught:
            feedback.score(unknown, 1)
        assert caught.value.status == 404
    feedback.close()


def test_old_requests_are_forgotten(tmp_path, icds):
    feedback = Feedback(tmp_path / "f.jsonl", "vqa", most=2, minutes=1)
    feedback.remember("old", served(icds, age=61))
    with pytest.raises(ApiError):
        feedback.score("old", 1)
    for name in "abc":
        feedback.remember(name, served(icds))
    with pytest.raises(ApiError):
        feedback.score("a", 1)
    feedback.score("b", 1)
    feedback.close()


def test_the_memory_for_images_is_bounded(tmp_path, icds):
    feedback = Feedback(tmp_path / "f.jsonl", "vqa", image_mb=2.5 * len(IMAGE) / 2**20)
    for name in "abc":
        feedback.remember(name, served(icds))
    with pytest.raises(ApiError):
        feedback.score("a", 1)
    feedback.score("c", 1)
    feedback.close()


def test_an_existing_journal_is_continued_and_a_torn_line_dropped(tmp_path, icds):
    path = tmp_path / "f.jsonl"
    for name in ("one", "two"):
        feedback = Feedback(path, "vqa")
        feedback.remember("a", served(icds, name))
        feedback.score("a", 1)
        feedback.close()
        path.write_text(path.read_text() + '{"torn')
    feedback = Feedback(path, "vqa")
    assert feedback.scores == 2
    feedback.remember("a", served(icds, "three"))
    feedback.score("a", 0)
    feedback.close()
    assert [json.loads(line)["question"] for line in path.read_text().splitlines()] == ["one", "two", "three"]


def test_two_processes_do_not_write_the_same_journal(tmp_path):
    first = Feedback(tmp_path / "f.jsonl", "vqa")
    with pytest.raises(RlDataError, match="is being written by"):
        Feedback(tmp_path / "f.jsonl", "vqa")
    first.close()
    Feedback(tmp_path / "f.jsonl", "vqa").close()


def test_another_name_is_refused(tmp_path):
    with pytest.raises(RlDataError, match=r"must end in \.jsonl"):
        Feedback(tmp_path / "f.json", "vqa")
