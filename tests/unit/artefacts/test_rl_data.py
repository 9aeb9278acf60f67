"""Files of RL data: read, rejected where they are invalid, summarised and merged."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from icdsel.artefacts.rl_data import complete_units, has_rl_data, merge, question_id_of, read_rl_data, summary_of
from icdsel.errors import RlDataError
from icdsel.records import QueryGroup, ScoredPointer
from icdsel.store.journal import Journal


def line(candidates: list[dict[str, Any]], **changes: object) -> str:
    group = {"question_id": 5, "image_id": 5, "question": "?", "answers": ["a"], "candidate_pool_ids": [11, 12, 13]}
    return json.dumps(group | {"pointer_candidates": candidates} | changes) + "\n"


VALID = {"pointer": [11, 12], "vqa_acc_score": 1.0}
FAILED = {"pointer": [12, 11], "eval_failed": True, "error": "x"}


# --- reading ----------------------------------------------------------------------------------------------


def test_a_pool_of_the_whole_split_is_given_by_what_it_excludes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    candidates = [VALID, {"pointer": [11, 13], "vqa_acc_score": 1.0}]
    path.write_text(line(candidates, candidate_pool_ids="all", excluded_ids=[5, 13]))
    data = read_rl_data(path)
    assert (data.groups[0].pool, data.groups[0].excluded) == (None, (5, 13))
    assert [candidate.pointer for candidate in data.groups[0].candidates] == [(11, 12)]
    assert data.rejected == {"an ICD is not in the pool": 1}


def test_candidates_that_cannot_be_trained_on_are_rejected_and_counted(tmp_path: Path) -> None:
    candidates = [
        VALID,
        FAILED,
        {"pointer": [11, 99], "vqa_acc_score": 1.0},
        {"pointer": [11, 11], "vqa_acc_score": 1.0},
        {"pointer": [], "vqa_acc_score": 1.0},
        {"pointer": [13, 11], "vqa_acc_score": math.nan},
        {"pointer": [13, 11], "vqa_acc_score": 900},
        {"pointer": [13, 11], "vqa_acc_score": True},
        {"pointer": [13, 11], "vqa_acc_score": 1.0, "vqa_correct": "yes"},
        {"pointer": [13, 11], "vqa_acc_score": 1.0, "vqa_gt_prob": math.nan},
        {"pointer": [13, 11], "vqa_acc_score": 1.0, "vqa_rel_score": "a"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text(line(candidates) + line([FAILED], question_id=6))
    data = read_rl_data(path)
    kept = (ScoredPointer((11, 12), correct=1, score=1.0), ScoredPointer((), correct=1, score=1.0))
    assert [group.candidates for group in data.groups] == [kept]
    assert data.rejected == {
        "the VLM call failed": 2,
        "an ICD is not in the pool": 1,
        "an ICD is repeated": 1,
        "a score is not a number, or is out of range": 6,
    }


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\ufeff" + line([VALID]))
    assert read_rl_data(path).groups[0].question_id == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[1]\n", "line 1: not an object"),
        (line([VALID]) + "{", "line 2 is damaged: Expecting property name"),
        (line([]), "no candidate can be used"),
        (line([{"vqa_acc_score": 1.0}]), "line 1: the pointer of a candidate is missing"),
        (line([], candidate_pool_ids=[1.5]), "line 1: one of its ids"),
        (line([], candidate_pool_ids=[5, 6]), "the query itself"),
        (line([], candidate_pool_ids=[6, 6]), "an example twice"),
        (line([VALID], task="vaq"), "line 1: unknown task 'vaq': did you mean 'vqa'"),
    ],
)
def test_damaged_files_are_rejected_with_the_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(RlDataError) as caught:
        read_rl_data(path)
    assert message in str(caught.value)


def test_a_missing_file_names_what_exists_and_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "rl_data_other.jsonl").write_text("")
    with pytest.raises(RlDataError, match=r"rl_data_other\.jsonl.*icdsel gen-rl-data"):
        read_rl_data(tmp_path / "rl_data_x.jsonl")


@pytest.mark.parametrize(("expected", "how"), [(3, "it was cut"), (1, "some are repeated")])
def test_a_file_with_more_or_fewer_queries_than_its_metadata_says_is_rejected(
    tmp_path: Path, expected: int, how: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line([VALID]) + line([VALID], question_id=6))
    path.with_suffix(".meta.json").write_text(json.dumps({"identity": {}, "queries": expected}))
    with pytest.raises(RlDataError, match=rf"holds 2 of {expected} queries: {how}\. Rename it to x\.jsonl\.part"):
        read_rl_data(path)


def test_rl_data_are_recognised_by_their_keys() -> None:
    assert has_rl_data(line([]).encode())
    assert not has_rl_data(b'{"question": "pointer_candidates", "answers": ["candidate_pool_ids"]}')


# --- files of generation ----------------------------------------------------------------------------------


def test_a_summary_counts_pointers_correct_ones_signals_and_failures(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    wrong = {"pointer": [13, 11], "vqa_acc_score": 0.0, "vqa_correct": 0}
    path.write_text(line([VALID, wrong, FAILED]) + line([VALID, VALID], question_id=6))
    assert str(summary_of(path)) == (
        f"{path}: 4 scored pointers of 2 queries, 75.0% answered correctly, 50.0% of the queries have a signal, "
        "1 calls failed"
    )


def test_a_summary_of_rejected_candidates_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line([VALID]) + line([{"pointer": [11, 99], "vqa_acc_score": 1.0}], question_id=6))
    with pytest.raises(RlDataError, match=r"line 2: an ICD is not in the pool\. `icdsel check .* lists everything"):
        summary_of(path)


def test_a_journal_is_complete_up_to_the_first_unit_that_is_not(tmp_path: Path) -> None:
    queries = [SimpleNamespace(question_id=i) for i in range(20, 25)]
    units: Any = [queries[:2], queries[2:4], queries[4:]]
    part = tmp_path / "x.jsonl.part"
    lines = [line([VALID], question_id=i) for i in range(20, 24)]
    part.write_text("".join(lines) + lines[0][:9])
    journal = Journal(part)
    assert complete_units(journal, units) == 2
    journal.trim()
    assert part.read_text() == "".join(lines)
    part.write_text("".join(lines[:3]))
    journal = Journal(part)
    assert complete_units(journal, units) == 1
    journal.trim()
    assert part.read_text() == "".join(lines[:2])
    part.write_text("".join([lines[1], lines[0]]))  # in another order
    assert complete_units(Journal(part), units) == 0
    assert complete_units(Journal(tmp_path / "none"), units) == 0


def test_a_line_with_a_rejected_candidate_is_not_one_of_generation() -> None:
    assert question_id_of(json.loads(line([VALID, FAILED]))) == 5
    assert question_id_of(json.loads(line([VALID, {"pointer": [11, 99], "vqa_acc_score": 1.0}]))) is None
    assert question_id_of([]) is None


def test_only_generation_has_to_say_whether_a_pointer_is_correct(tmp_path: Path) -> None:
    unknown = VALID | {"vqa_correct": None}
    path = tmp_path / "x.jsonl"
    path.write_text(line([unknown]))
    [group] = read_rl_data(path).groups  # from another program: training counts it as not correct
    assert group.candidates[0].correct is None
    assert question_id_of(json.loads(line([unknown]))) is None
    with pytest.raises(RlDataError, match="is damaged: a score is not a number"):
        summary_of(path)


# --- merging files ----------------------------------------------------------------------------------------


def group(question_id: int, pool: tuple[int, ...], scored: Mapping[tuple[int, ...], float]) -> QueryGroup:
    candidates = tuple(ScoredPointer(pointer, score=score) for pointer, score in scored.items())
    return QueryGroup(question_id, question_id, "?", ("yes",), pool, candidates)


SMALL = group(10, (50, 30, 70), {(30, 50): 0.6, (70, 30): 0.0})
LARGE = group(20, (90, 10, 60, 30, 80), {(10, 60): 1.0, (90, 80): 0.3})


def test_merging_unites_the_pointers_of_a_query() -> None:
    first = [LARGE, SMALL]
    second = [
        group(10, (50, 30, 70), {(30, 50): 1.0, (50, 30): 0.9}),  # (30, 50) is known, (50, 30) is another pointer
        group(5, (10, 20), {(10, 20): 0.3}),
    ]
    third = [group(10, (50, 30, 70), {(50, 30): 0.0, (50, 70): 0.6})]
    merged = merge([first, second, third])
    assert [made.question_id for made in merged] == [5, 10, 20]
    # The first file with a pointer counts.
    scores = {candidate.pointer: candidate.score for candidate in merged[1].candidates}
    assert scores == {(30, 50): 0.6, (70, 30): 0.0, (50, 30): 0.9, (50, 70): 0.6}
    assert len(merged[1].candidates) == 4
    assert merged[2] == LARGE
    assert (merged[1].pool, merged[1].question, merged[1].answers) == (SMALL.pool, "?", ("yes",))


def test_merging_one_file_only_sorts_it() -> None:
    assert merge([[LARGE, SMALL]]) == [SMALL, LARGE]


def test_files_with_different_pools_are_not_merged() -> None:
    other = group(10, (50, 30, 80), {(30, 50): 0.6})
    with pytest.raises(RlDataError, match=r"query 10 .*sampler, pool size or seed"):
        merge([[SMALL], [other]])
    without_pool = QueryGroup(10, 10, "?", ("yes",), None, SMALL.candidates, (10,))
    with pytest.raises(RlDataError, match="different candidate pools"):
        merge([[without_pool], [SMALL]])


def test_pools_derived_from_pointers_are_united() -> None:
    first = replace(group(10, (30, 50), {(30, 50): 1.0}), derived=True)
    second = replace(group(10, (50, 70), {(70, 50): 0.0}), derived=True)
    (merged,) = merge([[first], [second]])
    assert merged.pool == (30, 50, 70)
    assert [candidate.pointer for candidate in merged.candidates] == [(30, 50), (70, 50)]
    with pytest.raises(RlDataError, match="different candidate pools"):
        merge([[first], [replace(second, derived=False)]])
