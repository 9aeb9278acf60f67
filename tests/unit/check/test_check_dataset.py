"""What `check` finds in handmade datasets."""

import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from icdsel.check import answers
from icdsel.check import dataset as kinds
from icdsel.check.findings import Checked, Findings, Kind
from icdsel.check.paths import check
from icdsel.records import Example
from icdsel.settings.loading import settings_from
from icdsel.tasks.base import TASKS

TEN = ["cat"] * 9 + ["dog"]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def line(question_id: int, **more: Any) -> dict[str, Any]:
    return {"question_id": question_id, "image": f"{question_id}.png", "question": "What?", "answers": TEN} | more


def checked(folder: Path, *lines: Any, images: bool = False, draw: bool = True) -> Checked:
    """A dataset of these lines and one more of each split, an image drawn for every name."""
    records = [line(1), line(2, split="validation"), *lines]
    for record in records if draw else ():
        if isinstance(record, dict) and not (folder / record["image"]).exists():
            picture(folder / record["image"], sum(map(ord, record["image"])))
    path = folder / "set.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    [found] = check(settings_from({}), [path], images)
    return found


def counts(found: Checked) -> dict[str, int]:
    return {finding.problem: finding.count for finding in found.findings}


def test_nothing_is_wrong_with_a_clean_set(tmp_path):
    found = checked(tmp_path, images=True)
    assert (found.is_a, found.findings) == ("dataset", ())
    assert (found.about, found.metric) == ("questions: train 1, validation 1", "normalised")


@pytest.mark.parametrize(
    ("more", "kind", "count"),
    [
        ([line(3, question=" ")], kinds.NO_QUESTION, 1),
        ([line(3, answers=["?", " ", ""] + ["."] * 7)], answers.NO_ANSWER, 1),
        ([line(3, answers=["", " "] + ["cat"] * 8)], answers.EMPTY_ANSWERS, 1),
        ([line(3, answer=" ")], answers.NOTHING_SHOWN, 1),
        ([line(3, answer="bird"), line(4, answer="Dog.")], answers.WRONG_SHOWN, 1),
        ([line(3, answers=["cat"] * 9)], answers.few_answers(TASKS["vqa"]), 1),
        ([line(3, image="1.png", question="what? ")], kinds.SAME_QUESTION, 1),
        ([line(3), line(3, question="Why?"), line(4), line(4, question="Why?")], kinds.REPEATED_IDS, 2),
        ([line(1, image="5.png", split="val")], kinds.SHARED_IDS, 1),
        ([line(3, image="1.png", split="val")], kinds.LEAK_ID, 1),
        ([line(3, image_id=9), line(4, image_id=9, split="tuning")], kinds.LEAK_ID, 1),
        (["{", line(3, answers=[]), line(4, question=None), "[]"], kinds.UNREADABLE, 4),
        ([line(10**400, image="3.png")], kinds.UNREADABLE, 1),
        ([line(3, question="x" * 5000), line(4, answers=["x" * 5000])], kinds.UNREADABLE, 2),
        (["[" * 100_000], kinds.UNREADABLE, 1),
    ],
)
def test_each_kind_is_found_and_counted(tmp_path, more: list[Any], kind: Kind, count: int):
    found = checked(tmp_path, *more)
    assert counts(found) == {kind.problem: count}
    [finding] = found.findings
    assert finding.severity == kind.severity and finding.examples and finding.remedy
    assert found.errors == (kind.severity == "error")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.sampled_from("uvwxyz")), max_size=30))
def test_shared_examples_are_counted_for_each_pair_of_splits(entries: list[tuple[str, int, str]]):
    splits: dict[str, list[tuple[int, str]]] = {}
    for split, image_id, name in entries:
        splits.setdefault(split, []).append((image_id, name))
    assert kinds.in_two_splits(splits) == [
        ((one, other), keys)
        for one, other in combinations(splits, 2)
        for keys in dict.fromkeys(splits[other])
        if any(keys[0] == image_id or keys[1] == name for image_id, name in splits[one])
    ]


def test_answers_that_are_signs_are_answers(tmp_path):
    assert counts(checked(tmp_path, line(3, answers=["😀"] * 10), line(4, answers=["♥"] * 10))) == {}
    assert counts(checked(tmp_path, line(3, answers=["?", *["😀"] * 9]), line(4, answers=["A"] * 9 + ["B"]))) == {}


def test_a_file_of_thousands_of_splits_is_checked_in_linear_time(tmp_path):
    many = 20_000
    lines = [line(3, image="1.png", split=f"s{number}") for number in range(many)]
    started = time.process_time()
    found = checked(tmp_path, *lines)
    assert time.process_time() - started < 60
    assert found.errors and counts(found)[kinds.LEAK_ID.problem] > many
    assert len(found.about) < 300


def test_answers_are_checked_in_linear_time():
    many = 10_000
    examples = [Example(i, i, Path(f"{i}.png"), "What?", "", tuple(f"{i} {n}" for n in range(10))) for i in range(many)]
    found = Findings()
    started = time.process_time()
    placed, task = [(str(i), example) for i, example in enumerate(examples)], TASKS["vqa"]
    answers.check_answers(found, placed, many, task, task.metrics["normalised"], exact=True)
    assert time.process_time() - started < 6
    assert found.found(answers.NOTHING_SHOWN) == many


def test_the_share_is_of_the_questions_of_all_splits(tmp_path):
    few = {"answers": ["cat"] * 9}
    [finding] = checked(tmp_path, line(3, **few), line(4, **few), line(5, split="validation", **few)).findings
    assert (finding.problem, finding.count, finding.of) == (answers.few_answers(TASKS["vqa"]).problem, 3, 5)


def test_questions_without_answers_are_counted_over_all_splits(tmp_path):
    without = {"answers": []}
    [finding] = checked(
        tmp_path, line(3, split="validation", **without), line(4, split="test", **without), line(5, split="test")
    ).findings
    assert (finding.problem, finding.count, finding.of) == (kinds.UNLABELLED.problem, 2, 5)
    assert set(finding.examples) == {"validation: 1 of 2", "test: 1 of 2"}


def test_missing_images_are_found_without_opening_any(tmp_path):
    found = checked(
        tmp_path, line(3), line(4, image="photos/4.png"), line(5, image="photos/4.png", question="Why?"), draw=False
    )
    assert counts(found) == {kinds.MISSING.problem: 4}
    assert found.findings[0].of == 4 and "questions: 1" in found.findings[0].examples[0]


def test_opened_images_show_damage_duplicates_and_leaks_by_content(tmp_path):
    picture(tmp_path / "3.png", 1)
    picture(tmp_path / "4.bmp", 1)  # the same picture in another format
    picture(tmp_path / "5.png", 1)
    (tmp_path / "6.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    lines = [line(3), line(4, image="4.bmp", split="validation"), line(5), line(6)]
    assert counts(checked(tmp_path, *lines)) == {}
    found = counts(checked(tmp_path, *lines, images=True))
    assert found == {kinds.DAMAGED.problem: 1, kinds.LEAK_CONTENT.problem: 1, kinds.TWINS.problem: 1}


def test_images_are_opened_as_commands_open_them(tmp_path):
    Image.new("RGB", (1, 50_000)).save(tmp_path / "3.png")
    assert counts(checked(tmp_path, line(3), images=True)) == {kinds.DAMAGED.problem: 1}


@pytest.mark.parametrize("word", ["icds", "pointer_candidates", "candidate_pool_ids"])
def test_names_of_other_files_may_be_answers(tmp_path, word: str):
    found = checked(tmp_path, line(3, answers=[word] * 10))
    assert (found.is_a, found.findings) == ("dataset", ())


def test_records_of_a_database_begin_with_its_own_id(tmp_path):
    """They were taken for Lever-Plus's RL data."""
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"_id": {"$oid": "5f"}} | line(i)) + "\n" for i in range(2)))
    assert check(settings_from({}), [path])[0].is_a == "dataset"
    preprocessed = tmp_path / "vqav2_mscoco_train2014.json"
    preprocessed.write_text(json.dumps({"_meta": 1, "annotations": []}))
    assert check(settings_from({}), [preprocessed])[0].is_a == "dataset"


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["set.jsonl", "rl_data_RandSampler_tiny-vlm.jsonl"])
def test_a_file_that_holds_nothing(tmp_path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    [found] = check(settings_from({}), [tmp_path / name])
    assert counts(found) == {kinds.EMPTY.problem: 1} and found.errors == 1


def test_missing_splits_and_files(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(line(3, split="test")) + "\n")
    picture(tmp_path / "3.png", 3)
    [found] = check(settings_from({}), [path])
    assert counts(found) == {kinds.NO_SPLIT.problem: 1, kinds.NO_VALIDATION.problem: 1}
    [found] = check(settings_from({"data": {"dataset": "okvqa", "data_dir": tmp_path}}))
    assert counts(found) == {kinds.UNREADABLE.problem: 2}  # both splits


def test_official_files_are_recognised_by_their_names_and_read_to_the_end(tmp_path):
    questions = [{"question_id": i, "image_id": i, "question": "What?"} for i in range(6)]
    annotations = [{"question_id": i, "image_id": i, "answers": [{"answer": a} for a in TEN]} for i in range(6)]
    annotations[2]["answers"], annotations[3]["image_id"], annotations[4] = [], 77, annotations[5]
    for name in ("train", "val"):
        shift = 0 if name == "train" else 100
        for kind, records in (("questions", questions), ("annotations", annotations)):
            prefix = "OpenEnded_" if kind == "questions" else ""
            moved = [r | {"question_id": r["question_id"] + shift, "image_id": r["image_id"] + shift} for r in records]
            (tmp_path / f"{prefix}mscoco_{name}2014_{kind}.json").write_text(json.dumps({kind: moved}))
        for i in (0, 1, 5):
            picture(tmp_path / f"{name}2014/COCO_{name}2014_{i + shift:012d}.jpg", i + shift)
    for path in (tmp_path, tmp_path / "mscoco_val2014_annotations.json"):
        [found] = check(settings_from({}), [path], images=True)
        # No answers and another image; question 4 is left without an annotation; one id twice.
        assert counts(found) == {
            kinds.UNREADABLE.problem: 4,
            kinds.UNPAIRED.problem: 2,
            kinds.REPEATED_IDS.problem: 2,
        }
        assert found.about == "questions: train 4, validation 4"
