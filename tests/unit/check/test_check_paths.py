"""Which of the named datasets a folder or file is checked as."""

import json
from pathlib import Path

import pytest

from icdsel.check import dataset as kinds
from icdsel.check.findings import Checked
from icdsel.check.paths import NOT_READ, check
from icdsel.data.datasets import load_split
from icdsel.data.world import files
from icdsel.settings.loading import settings_from

FIELDS = {"okvqa": {"answers": [{"answer": "cat", "raw_answer": "cats"}] * 10}}
FIELDS["vqav2"] = FIELDS["okvqa"] | {"multiple_choice_answer": "cat"}
PREFIX = {"okvqa": "", "vqav2": "v2_"}


def official(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, split in enumerate(("train", "val")):
        record = {"question_id": i, "image_id": i}
        for file, key, more in (("OpenEnded_", "questions", {"question": "?"}), ("", "annotations", FIELDS[name])):
            path = folder / f"{PREFIX[name]}{file}mscoco_{split}2014_{key}.json"
            path.write_text(json.dumps({key: [record | more]}))


def preprocessed(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, split in enumerate(("train", "val")):
        record = {"question_id": i, "image_id": i, "question": "?"} | FIELDS[name]
        (folder / f"vqav2_mscoco_{split}2014.json").write_text(json.dumps({"annotations": [record]}))


def checked(path: Path, dataset: str = "world") -> list[tuple[str, int]]:
    """For each dataset that was read, the line about it, and how much of it cannot be read."""
    return [
        (one.about, count(one, kinds.UNREADABLE))
        for one in check(settings_from({"data": {"dataset": dataset}}), [path])
    ]


def count(checked: Checked, kind: kinds.Kind) -> int:
    return sum(finding.count for finding in checked.findings if finding.problem == kind.problem)


BOTH = "questions: train 1, validation 1"


@pytest.mark.parametrize("name", ["okvqa", "vqav2"])
@pytest.mark.parametrize("folder", ["y", "{}", "{}_hf", "x/{}_hf", "x/{}/{}_hf"])
def test_preprocessed_files_are_recognised_by_their_folder_or_their_records(tmp_path, name: str, folder: str):
    place = tmp_path / folder.format(name, name)
    preprocessed(place, name)
    for path in (tmp_path / folder.split("/")[0].format(name), place / "vqav2_mscoco_val2014.json"):
        assert checked(path) == [(BOTH, 0)]


def test_a_folder_named_for_the_other_dataset_is_rejected_as_by_every_command(tmp_path):
    preprocessed(tmp_path / "okvqa", "vqav2")
    assert checked(tmp_path / "okvqa", "vqav2") == [("questions: train 0, validation 0", 2)]


def test_every_dataset_of_a_folder_is_checked(tmp_path):
    official(tmp_path / "both", "okvqa")
    official(tmp_path / "both", "vqav2")
    assert checked(tmp_path / "both") == [(BOTH, 0)] * 2
    assert [one.name for one in check(settings_from({}), [tmp_path / "both"])] == [
        f"{tmp_path / 'both'} ({name})" for name in ("okvqa", "vqav2")
    ]
    official(tmp_path / "data/okvqa", "okvqa")
    preprocessed(tmp_path / "data/vqav2_hf", "vqav2")
    assert checked(tmp_path / "data") == [(BOTH, 0)] * 2


@pytest.mark.parametrize("name", ["okvqa", "vqav2"])
def test_a_file_is_checked_with_the_dataset_that_it_belongs_to(tmp_path, name: str):
    official(tmp_path, "okvqa")
    official(tmp_path, "vqav2")
    cut = tmp_path / f"{PREFIX[name]}OpenEnded_mscoco_train2014_questions.json"
    cut.write_text(cut.read_text()[:16])
    for path in (cut, tmp_path / f"{PREFIX[name]}mscoco_val2014_annotations.json"):
        assert checked(path, "okvqa") == checked(path, "vqav2") == [("questions: validation 1", 1)]


def test_a_file_that_no_command_reads_is_not_passed_as_valid(tmp_path):
    official(tmp_path / "okvqa", "okvqa")
    preprocessed(tmp_path, "okvqa")
    official(tmp_path, "okvqa")
    for name in ("mscoco_val2014_annotations.json", "vqav2_mscoco_val2014.json"):
        [found] = check(settings_from({}), [tmp_path / name])
        assert found.findings[0].problem == NOT_READ.problem and found.errors
        assert "okvqa (validation) is read from" in found.findings[0].examples[0]
    [found] = check(settings_from({}), [tmp_path / "okvqa/mscoco_val2014_annotations.json"])
    assert not count(found, NOT_READ)


def test_files_named_like_the_worlds_belong_to_it_only_in_its_own_folder(tmp_path):
    (tmp_path / "questions_train.json").write_text("{}")
    for path in (tmp_path, tmp_path / "questions_train.json"):
        [found] = check(settings_from({}), [path])
        assert "holds no list of objects" in found.findings[0].examples[0]
    assert [path.name for path in tmp_path.iterdir()] == ["questions_train.json"]


def test_worlds_are_recognised_by_the_names_of_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SPLIT_SIZES", {"train": 0, "tuning": 2, "validation": 3})
    names = ["world:train=4", "world-hard:train=5,seed=7"]
    for name in names:
        load_split(settings_from({"data": {"dataset": name, "data_dir": tmp_path}}).data, "train")
    easy, hard = (tmp_path / folder for folder in ("world_train=4", "world-hard_train=5_seed=7"))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {easy.name, hard.name}
    counted = "questions: train 5, tuning 2, validation 3"
    for path in (hard, hard / "questions_train.json"):
        [found] = check(settings_from({}), [path])
        assert counted in found.about and not found.errors
    [by_name] = check(settings_from({"data": {"dataset": names[1], "data_dir": tmp_path}}))
    assert counted in by_name.about and not by_name.errors
    both = check(settings_from({}), [tmp_path])
    assert [found.name for found in both] == [f"{tmp_path} ({name})" for name in reversed(names)]


def test_a_world_that_is_incomplete_is_not_created_by_a_check(tmp_path):
    folder = tmp_path / "world-hard_train=1000000"
    folder.mkdir()
    (folder / "questions_train.json").write_text("{}")
    for path in (folder, tmp_path, folder / "questions_train.json"):
        check(settings_from({}), [path])
    assert [path.name for path in folder.iterdir()] == ["questions_train.json"]


def test_a_problem_in_both_of_two_files_that_belong_together_is_reported_once(tmp_path):
    official(tmp_path, "okvqa")
    asked = [{"question_id": i, "image_id": i, "question": "?"} for i in (0, 10, 10, 11, 12, 13)] + [
        {"question_id": 14}
    ]
    annotations = [{"question_id": i, "image_id": i} | FIELDS["okvqa"] for i in (0, 10, 10, 14, 15, 16)] + [
        {"question_id": 11}
    ]
    (tmp_path / "OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": asked}))
    (tmp_path / "mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
    [found] = check(settings_from({}), [tmp_path])
    assert count(found, kinds.REPEATED_IDS) == 1
    assert count(found, kinds.UNREADABLE) == 2  # question 14 and the annotation of question 11
    assert count(found, kinds.UNPAIRED) == 4
