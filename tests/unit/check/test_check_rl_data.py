"""What `check` finds in handmade RL data."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from icdsel.artefacts.rl_data import read_rl_data
from icdsel.check import rl_data as kinds
from icdsel.check.findings import Checked, Kind
from icdsel.check.paths import check
from icdsel.data.datasets import load_split
from icdsel.errors import RlDataError
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings, settings_from
from icdsel.store.fingerprints import fingerprint_examples
from icdsel.tasks.scoring import SCORER_VERSION

POOL = list(range(10, 20))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A dataset of 40 questions, two about each image: 0 and 1, 2 and 3, …"""
    records = [
        {"question_id": i, "image_id": i // 2, "image": f"{i // 2}.png", "question": f"What {i}?", "answers": ["x"]}
        for i in range(40)
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return settings_from({"data": {"dataset": str(path)}})


def query(question_id: int, *pointers: Any, **changes: Any) -> dict[str, Any]:
    candidates = [
        pointer if isinstance(pointer, dict) else scored(pointer, i % 2) for i, pointer in enumerate(pointers)
    ]
    record = {"question_id": question_id, "image_id": question_id // 2, "question": f"What {question_id}?"}
    fields = {"answers": ["x"], "candidate_pool_ids": POOL, "pointer_candidates": candidates}
    return record | fields | changes


def scored(pointer: Any, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"pointer": pointer, "vqa_acc_score": accuracy, "vqa_correct": int(accuracy > 0)} | more


def checked(settings: Settings, *records: Any, side: dict[str, Any] | None = None, name: str = "rl.jsonl") -> Checked:
    """RL data of a valid query and these, with matching metadata."""
    folder = Path(settings.data.dataset).parent
    path = folder / name
    lines = [query(0, [10, 12], [12, 10]), *records]
    text = "".join((line if isinstance(line, str) else json.dumps(line) + "\n") for line in lines)
    path.write_text(text)
    inputs = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init"])
    inputs |= {"scorer": SCORER_VERSION, "init": None, "train_embeddings": None, "model": "not known here"}
    inputs |= {"dataset": fingerprint_examples(load_split(settings.data, "train"))}
    (folder / "rl.meta.json").write_text(json.dumps({"identity": inputs | (side or {})}))
    [found] = check(settings, [path])
    return found


def counts(found: Checked) -> dict[str, int]:
    return {finding.problem: finding.count for finding in found.findings}


def test_nothing_is_wrong_with_valid_data(settings):
    found = checked(settings, query(2, [10, 12], [12, 10]))
    assert (found.is_a, found.findings, found.about) == ("RL data", (), "queries: 2, pointers: 4")


FAILED = {"pointer": [12, 14], "eval_failed": True, "error": "out of memory"}


@pytest.mark.parametrize(
    ("record", "kind", "count"),
    [
        ("{\n", kinds.DAMAGED, 1),
        ("[1]\n", kinds.NO_RECORD, 1),
        ({"question_id": 2, "candidate_pool_ids": "all"}, kinds.NO_RECORD, 1),
        (query(2, [10, 12], [12, 10], candidate_pool_ids=[*POOL, 2]), kinds.NO_RECORD, 1),
        (query(0, [10, 14], [14, 10]), kinds.REPEATED_QUERY, 1),
        (query(2, [10, 12], [12, 10], question="Why?"), kinds.OTHER_QUERY, 1),
        (query(2, [10, 12], [12, 10], [10, 12]), kinds.REPEATED_POINTER, 1),
        (query(2, [10, 12], [12, 10], FAILED), kinds.FAILED, 1),
        (query(2, [10, 12], [12, 10], candidate_pool_ids=POOL[:5]), kinds.POOL_SIZES, 1),
        (query(2, [10, 12], [12, 10], candidate_pool_ids="all"), kinds.MIXED_POOLS, 1),
        (query(2, scored([10, 12], 0.3), scored([12, 10], 0.3)), kinds.NO_SIGNAL, 1),
        (query(14, [10, 15], [12, 10], candidate_pool_ids=POOL), kinds.NO_RECORD, 1),
        (query(20, [10, 21], [21, 10], candidate_pool_ids=[*POOL[:-1], 21]), kinds.OWN_IMAGE, 2),
    ],
)
def test_each_kind_is_found_and_counted(settings, record: Any, kind: Kind, count: int):
    found = checked(settings, record)
    problems = counts(found)
    assert problems.pop(kind.problem) == count
    [finding] = [finding for finding in found.findings if finding.problem == kind.problem]
    assert finding.severity == kind.severity
    # Of a query whose pool holds itself, a pointer may hold an ICD with its image too.
    assert set(problems) <= {kinds.OWN_IMAGE.problem}


def test_pointers_that_hold_the_query(settings):
    problems = counts(checked(settings, query(2, [10, 2], [2, 12], [10, 12], scored([12, 10], 1))))
    assert problems == {kinds.OWN_QUERY.problem: 2, "candidates: an ICD is not in the pool": 2}


@pytest.mark.parametrize("line", ["\n", " \t\r\n", "\v\n", "\f\n", "\u00a0\n", "{}\n", "\ufeff\n", "null\n"])
def test_lines_are_blank_if_training_skips_them(settings, tmp_path, line: str):
    found = checked(settings, line)
    try:
        read_rl_data(tmp_path / "rl.jsonl")
    except RlDataError:
        assert found.errors == 1
    else:
        assert found.errors == 0


@pytest.mark.parametrize("text", ["\\ud800", "\\udc00\\ud800", "\\uDBFFx"])
def test_half_of_a_pair_of_code_units_is_damage_as_in_training(settings, tmp_path, text: str):
    line = json.dumps(query(2, [10, 12], scored([12, 10], 1, vqa_pred_answer="TEXT")))
    assert counts(checked(settings, line.replace("TEXT", text) + "\n")) == {kinds.DAMAGED.problem: 1}
    with pytest.raises(RlDataError, match="line 2 is damaged"):
        read_rl_data(tmp_path / "rl.jsonl")
    assert counts(checked(settings, line.replace("TEXT", "\\ud83d\\ude00") + "\n")) == {}


@pytest.mark.parametrize(
    ("change", "example"),
    [
        ({"question": "Why?"}, "query 2: 'Why?', in the dataset 'What 2?'"),
        ({"image_id": 7}, "query 2: image 7, in the dataset image 1"),
    ],
)
def test_differences_to_the_dataset_are_shown(settings, change: dict[str, Any], example: str):
    [finding] = checked(settings, query(2, [10, 12], [12, 10], **change)).findings
    assert (finding.problem, finding.examples) == (kinds.OTHER_QUERY.problem, (example,))


def test_a_candidate_with_a_remark_is_not_a_failed_call(settings, tmp_path):
    assert counts(checked(settings, query(2, [10, 12], scored([12, 10], 1, error="none")))) == {}
    assert sum(len(group.candidates) for group in read_rl_data(tmp_path / "rl.jsonl").groups) == 4


@pytest.mark.parametrize(("shared", "count"), [("image_id", None), ("image", 4)])
def test_the_same_image_is_that_of_the_same_path_as_in_pools(settings, shared: str, count: int | None):
    path = Path(settings.data.dataset)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for i, record in enumerate(records):
        record |= {"image": f"{i}.png", "image_id": i} | (
            {"image_id": 1} if shared == "image_id" else {"image": "1.png"}
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = checked(settings, query(2, [10, 12], [12, 10], image_id=records[2]["image_id"]))
    assert counts(found).get(kinds.OWN_IMAGE.problem) == count


def test_rejected_candidates_and_failed_calls_are_counted_by_reason(settings):
    errors = [{"pointer": [12, 14], "eval_failed": True, "error": "too long"}] * 2 + [FAILED]
    found = checked(settings, query(2, [10, 12], [12, 10], scored([14, 10], math.nan), [14, 14], *errors))
    problems = counts(found)
    assert problems["candidates: a score is not a number, or is out of range"] == 1
    assert problems["candidates: an ICD is repeated"] == 1
    [failed] = [finding for finding in found.findings if finding.problem == kinds.FAILED.problem]
    assert (failed.count, failed.examples) == (3, ("2: too long", "1: out of memory"))


def test_ids_of_another_dataset(settings):
    problems = counts(checked(settings, query(900, [10, 901], [12, 10], candidate_pool_ids=[*POOL, 901])))
    assert problems[kinds.OTHER_SPLIT.problem] == problems[kinds.UNKNOWN_ICD.problem] == 1
    assert problems[kinds.UNKNOWN_IN_POOL.problem] == 1


def test_pointers_of_several_lengths_and_lacking_scores(settings):
    found = checked(settings, query(2, [10, 12], [12, 10, 14], []))
    assert counts(found) == {} and "of 0 to 3 ICDs" in found.about
    mode = settings.model_copy(update={"reward": settings.reward.model_copy(update={"mode": "hard01_plus_gtprob"})})
    assert counts(checked(mode))[kinds.NO_SCORE.problem] == 2


def test_without_any_signal_nothing_can_be_learned(settings, tmp_path):
    path = tmp_path / "flat.jsonl"
    path.write_text(json.dumps(query(0, scored([10, 12], 0), scored([12, 10], 0))) + "\n")
    [found] = check(settings, [path])
    problems = counts(found)
    assert (
        problems[kinds.NO_SIGNAL_AT_ALL.problem]
        == problems[kinds.NO_CORRECT.problem]
        == problems[kinds.NO_SIGNAL.problem]
        == 1
    )
    assert found.errors == 1 and kinds.NO_METADATA.problem in problems


@pytest.mark.parametrize(
    ("side", "kind"),
    [
        ({"data.dataset": "okvqa"}, kinds.OTHER_DATASET),
        ({"dataset": "0123456789abcdef"}, kinds.STALE_DATASET),
        ({"vlm.max_new_tokens": 9, "scorer": -1}, kinds.OTHER_SETTINGS),
    ],
)
def test_data_with_other_inputs(settings, side, kind):
    found = checked(settings, side=side)
    assert counts(found) == {kind.problem: len(side)}
    assert "then" in found.findings[0].examples[0]


@pytest.mark.parametrize(("dtype", "said"), [("server", "answered by servers then (--vlm-url)"), ("float32", None)])
def test_data_that_servers_answered(settings, dtype: str, said: str | None):
    found = checked(settings, side={"dtype": dtype})
    assert counts(found) == ({kinds.OTHER_SETTINGS.problem: 1} if said else {})
    assert not said or found.findings[0].examples[0].startswith(said)


def test_a_damaged_metadata_file_and_a_torn_journal(settings, tmp_path):
    checked(settings)
    (tmp_path / "rl.meta.json").write_text("{")
    (tmp_path / "rl.jsonl.part").write_text(json.dumps(query(2, [10, 12], [12, 10])) + '\n{"question_id": 4, "im')
    [complete] = check(settings, [tmp_path / "rl.jsonl"])
    assert counts(complete) == {kinds.BAD_METADATA.problem: 1, kinds.UNFINISHED.problem: 1}
    [part] = check(settings, [tmp_path / "rl.jsonl.part"])
    assert counts(part) == counts(complete) | {kinds.TORN.problem: 1}


def test_without_its_dataset_the_rest_is_still_checked(settings):
    checked(settings)
    folder = Path(settings.data.dataset).parent
    Path(settings.data.dataset).unlink()
    [found] = check(settings, [folder / "rl.jsonl"])
    assert counts(found) == {kinds.NO_DATASET.problem: 1} and found.about == "queries: 1, pointers: 2"


def test_data_of_lever_plus(settings, tmp_path):
    def theirs(pointer: list[int], accuracy: float, **more: Any) -> dict[str, Any]:
        return scored(pointer, accuracy, gen_method="beam", **more)

    rows = {
        "0": {"pointer_candidates": [theirs([10, 12], 1), theirs([12, 10], 0), theirs([0, 4], 1)]},
        "2": {"pointer_candidates": [theirs([10, 3], 1), theirs([10, 99], 0), theirs([4, 6], 0, eval_failed=True)]},
    }
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(rows))
    [found] = check(settings, [path])
    problems = counts(found)
    assert found.is_a == "RL data of Lever-Plus" and found.errors == 2
    assert (
        problems["candidates: the query is its own ICD"]
        == problems["candidates: a row outside the training split"]
        == 1
    )
    assert problems["candidates: the VLM call failed"] == problems[kinds.OWN_IMAGE_ALLOWED.problem] == 1
    path.write_text(json.dumps({"0": {"id_list": [[4, 2, 0]], "score_list": [0.5]}}))
    [found] = check(settings, [path])
    assert (found.is_a, found.findings) == ("InfoScore data of Lever-Plus", ())
    path.write_text(json.dumps(rows)[:80])
    [found] = check(settings, [path])
    assert found.errors == 1
