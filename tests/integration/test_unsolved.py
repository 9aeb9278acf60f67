"""Later rounds of RL data: only for the queries that have no right pointer yet."""

import json
from pathlib import Path

import pytest
from worlds import write_small_world

from icdsel.artefacts.rl_data import metadata_path, read_rl_data
from icdsel.errors import RlDataError
from icdsel.policy.rewards import is_correct
from icdsel.settings.loading import settings_from
from icdsel.stages.generate import generate
from icdsel.store.metadata import read_metadata


@pytest.fixture(scope="module")
def rounds(tmp_path_factory) -> tuple[Path, Path, dict]:
    folder = tmp_path_factory.mktemp("rounds")
    write_small_world(folder / "data", train=200, tuning=2, validation=2)
    values = {
        "data": {"data_dir": str(folder / "data"), "results_dir": str(folder / "results"), "pool_size": 16},
        "proposals": {"queries": 24},
    }
    first, second = folder / "first.jsonl", folder / "second.jsonl"
    generate(settings_from(values), first)
    values["proposals"] |= {"random": 6, "beam": 0, "retrieval": 0, "samples": 0}
    generate(settings_from(values), second, unsolved=[first])
    return first, second, values


def solved(path: Path) -> set:
    return {g.question_id for g in read_rl_data(path).groups if any(is_correct(c) for c in g.candidates)}


def test_only_queries_without_a_right_pointer_are_scored_again(rounds):
    first, second, _ = rounds
    everyone = {group.question_id for group in read_rl_data(first).groups}
    again = {group.question_id for group in read_rl_data(second).groups}
    assert 0 < len(again) < len(everyone)
    assert again == everyone - solved(first)


def test_the_files_belong_to_what_decides_the_result(rounds):
    first, second, values = rounds
    recorded = read_metadata(metadata_path(second)).inputs["unsolved"]
    assert isinstance(recorded, list) and len(recorded) == 1
    with pytest.raises(RlDataError, match="unsolved"):
        generate(settings_from(values), second)
    assert "unsolved" not in read_metadata(metadata_path(first)).inputs


def test_a_round_that_is_not_needed_is_refused(rounds, tmp_path):
    first, _, values = rounds
    right = [line for line in first.read_text().splitlines() if json.loads(line)["question_id"] in solved(first)]
    (tmp_path / "right.jsonl").write_text("\n".join(right) + "\n")
    count = len(right)
    settings = settings_from({**values, "proposals": values["proposals"] | {"queries": 2}})
    asked = generate(settings, tmp_path / "asked.jsonl")
    assert asked.queries == 2 and count > 0
    everything = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    for group in everything:
        for pointer in group["pointer_candidates"]:
            pointer |= {"vqa_correct": 1, "vqa_acc_score": 1.0}
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(group) + "\n" for group in everything))
    with pytest.raises(RlDataError, match="another round is not needed"):
        generate(settings, tmp_path / "more.jsonl", unsolved=[tmp_path / "all.jsonl"])
