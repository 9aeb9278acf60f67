import json
from pathlib import Path

import pytest

from icdsel.artefacts.rl_data_sharing import card, shared
from icdsel.errors import RlDataError

POINTER = {"pointer": [1, 2], "gen_method": "random", "vqa_pred_answer": "a", "vqa_correct": 1, "vqa_acc_score": 1.0}
FAILED = {"pointer": [2, 1], "gen_method": "random", "eval_failed": True}


def write(folder: Path, *lines: dict, **metadata: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"data": {"data_dir": "/home/me/data", "pool_size": "all"}, "vlm": {"model": str(folder)}}
    inputs = {"data.dataset": "mine", "dataset": "f00", "vlm.url": "/home/me/socket", "init": None}
    content = {"identity": inputs, "settings": settings, "queries": len(lines), "environment": {"revision": "me"}}
    (folder / "mine.meta.json").write_text(json.dumps(content | metadata))
    return path


def line(question_id: object = 7, image_id: object = 7, **fields: object) -> dict:
    query = {"question_id": question_id, "image_id": image_id, "question": "What?", "answers": ["a"]}
    return query | {"candidate_pool_ids": "all", "pointer_candidates": [POINTER]} | fields


def test_paths_servers_and_unknown_fields_stay_here(tmp_path):
    reasons = [FAILED | {"error": f"{place} failed"} for place in ("/home/me/1.jpg", "http://gpu1:8000")]
    path = write(tmp_path, line(image_id="/home/me/1.jpg", pointer_candidates=[POINTER, *reasons[:1]], mine="secret"))
    data = shared(path)
    everything = (data.lines + data.metadata).decode() + card(data, "o/n", "mit")
    for private in ("/home/me", "gpu1", "secret", "data_dir", str(tmp_path), '"revision"'):
        assert private not in everything
    assert data.vlm == tmp_path.name  # the folder's own name
    assert json.loads(data.metadata)["identity"]["vlm.url"] == "socket"


def test_examples_of_one_image_keep_sharing_it(tmp_path):
    images = ("/a/1.jpg", "/a/1.jpg", "/a/2.jpg")
    data = shared(write(tmp_path, *(line(number, image) for number, image in enumerate(images))))
    one, two, three = (json.loads(each)["image_id"] for each in data.lines.splitlines())
    assert one == two != three


def test_the_card_says_what_the_data_are(tmp_path):
    data = shared(
        write(tmp_path, line("q1", 1, candidate_pool_ids=["q2"], pointer_candidates=[POINTER | {"pointer": ["q2"]}]))
    )
    text = card(data, "owner/name", "cc-by-4.0")
    assert text.startswith("---\nlicense: cc-by-4.0\n")
    assert "path: rl_data.jsonl" in text
    assert "- name: question_id\n    dtype: string" in text and "- name: image_id\n    dtype: int64" in text
    assert "icdsel train --rl-data hub:owner/name --dataset mine" in text
    assert "| Queries | 1 of" in text and "| Scored pointers | 1 |" in text


def test_ids_of_several_types_are_not_declared(tmp_path):
    data = shared(write(tmp_path, line(1), line("a")))
    assert data.types is None
    assert "features" not in card(data, "o/n", "")


def test_what_is_incomplete_or_without_metadata_is_not_shared(tmp_path):
    path = write(tmp_path, line(1), queries=2)
    with pytest.raises(RlDataError, match="holds 1 of 2 queries"):
        shared(path)
    (tmp_path / "mine.meta.json").unlink()
    with pytest.raises(RlDataError, match=r"mine\.meta\.json is missing"):
        shared(path)
    with pytest.raises(RlDataError, match="does not exist"):
        shared(tmp_path / "other.jsonl")
