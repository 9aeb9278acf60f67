"""Certificates from files of predictions: what they certify, what they record, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icdsel.cli.tables import certificate_table
from icdsel.comparison.certificate import GRID, OFFSETS, certificate_of, require_delta
from icdsel.errors import RunError, SettingsError
from icdsel.records import Shots, stop_offset
from icdsel.tasks.base import TASKS

N = 600
IDENTITY = {"split": "tuning", "data.pool_size": 64, "queries": "q1", "dataset": "d1", "model": "m1"}
Scored = tuple[float | None, int]
"""A score, None for a failed call, and how many ICDs were shown."""


def write(path: Path, rows: dict[Shots, list[Scored]], per_image: int = 1, **more: Any) -> Path:
    """A file of predictions."""
    lines = []
    for shots, answers in rows.items():
        for query, (score, shown) in enumerate(answers):
            line = {"question_id": query, "image_id": query // per_image, "shots": shots, "icds": [7] * shown}
            lines.append(line | ({"error": "x"} if score is None else {"prediction": "a", "accuracy": score}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    side = {"identity": IDENTITY | more.pop("identity", {}), "name": path.stem, "set": f"tuning-{N}", "settings": {}}
    path.with_suffix(".meta.json").write_text(json.dumps(side | more))
    return path


def zero_shot(folder: Path, score: Callable[[int], float | None] = lambda query: 0.6, **how: Any) -> Path:
    rows: dict[Shots, list[Scored]] = {0: [(score(query), 0) for query in range(N)]}
    return write(folder / "zero-shot.jsonl", rows, identity={"selector": "zero-shot"}, **how)


def policy(folder: Path, score: Callable[[int], float | None], grid: tuple[Shots, ...] = GRID, **how: Any) -> Path:
    """A policy whose queries need ICDs from 8 to -8: at an offset, it shows one to those whose need is above it."""
    rows: dict[Shots, list[Scored]] = {}
    for shots in grid:
        needs = [8 - 16 * query / N for query in range(N)]
        shown = [need > stop_offset(str(shots)) for need in needs]
        rows[shots] = [(score(query) if own else 0.6, int(own)) for query, own in enumerate(shown)]
    identity = {"selector": "policy", "checkpoint": "c1"} | how.pop("identity", {})
    return write(folder / "policy-run-rce_epoch1.jsonl", rows, identity=identity, **how)


def better_then_worse(query: int) -> float:
    """ICDs help the half of the queries that needs them most, and harm the others."""
    return 1.0 if query < N / 2 else 0.0


def test_the_offsets_go_from_showing_nothing_to_showing_always() -> None:
    assert list(OFFSETS) == sorted(OFFSETS, reverse=True) and {0, 10, -10, 0.5} <= set(OFFSETS)
    assert [stop_offset(str(shots)) for shots in GRID] == list(OFFSETS)


def test_the_certified_offset_shows_as_much_as_the_tolerance_allows(tmp_path: Path) -> None:
    found = certificate_of(zero_shot(tmp_path), policy(tmp_path, better_then_worse), 3.0, seed=42)
    assert found.offset is not None and found.offset < 0  # all who gain, and some who lose
    step = next(step for step in found.steps if step.shots == found.shots)
    shown = [query for query in range(N) if 8 - 16 * query / N > found.offset]
    gain = sum(better_then_worse(query) - 0.6 for query in shown) / N
    assert step.difference == pytest.approx(100 * gain, abs=1e-3) and step.difference > -3
    assert (step.mean_shots, step.shown_none) == pytest.approx((len(shown) / N, 100 * (1 - len(shown) / N)), abs=1e-3)
    certified = [step.certified for step in found.steps]
    count = sum(certified)
    assert certified == [True] * count + [False] * (len(GRID) - count) and found.steps[count - 1] is step
    assert found.steps[count].p_value > 0.05
    assert (found.n, found.images, found.split, found.set) == (N, N, "tuning", f"tuning-{N}")
    assert found.fingerprints == {"checkpoint": "c1", "model": "m1", "dataset": "d1", "queries": "q1"}


def test_a_larger_tolerance_certifies_more_and_the_same_predictions_the_same(tmp_path: Path) -> None:
    files = zero_shot(tmp_path), policy(tmp_path, better_then_worse)
    one, other = (certificate_of(*files, delta, seed=42) for delta in (1.0, 5.0))
    assert one.offset is not None and other.offset is not None and other.offset < one.offset
    assert certificate_of(*files, 1.0, seed=42) == one
    one.write(tmp_path / "certificate.json")
    written = json.loads((tmp_path / "certificate.json").read_text())
    assert written["shots"] == one.shots and written["steps"][0]["p_value"] == one.steps[0].p_value
    assert written["files"] == [str(file) for file in files] and written["command"]


def test_a_policy_that_harms_is_certified_for_nothing(tmp_path: Path) -> None:
    found = certificate_of(zero_shot(tmp_path), policy(tmp_path, lambda query: 0.0), 1.0, seed=42)
    # Showing ICDs to hardly anybody keeps the tolerance all the same.
    assert found.steps[0].difference == 0.0 and found.steps[-1].difference == -60.0
    assert not found.steps[-1].certified and (found.offset is None or found.offset > 6)


def test_queries_that_share_images_count_by_image(tmp_path: Path) -> None:
    files = zero_shot(tmp_path, per_image=6), policy(tmp_path, lambda query: 0.6, per_image=6)
    found = certificate_of(*files, 1.0, seed=42)
    assert (found.n, found.images, found.shots, found.offset) == (N, 100, 0, None)  # too few for a point
    assert certificate_of(*files, 10.0, seed=42).shots == GRID[-1]


def test_failed_calls_are_left_out_of_every_row(tmp_path: Path) -> None:
    files = (
        zero_shot(tmp_path, lambda query: None if query < 5 else 0.6),
        policy(tmp_path, lambda query: None if query == 9 else 1.0),
    )
    found = certificate_of(*files, 1.0, seed=42)
    assert found.n == N - 6
    assert found.steps[-1].difference == 40.0


def test_the_table_names_the_offset_and_the_queries(tmp_path: Path) -> None:
    from rich.console import Console

    def text(delta: float, **how: Any) -> str:
        files = zero_shot(tmp_path, **how), policy(tmp_path, better_then_worse, **how)
        console = Console(width=100, record=True, file=(tmp_path / "screen").open("w"))
        console.print(certificate_table(certificate_of(*files, delta, seed=42), TASKS["vqa"]))
        return " ".join(console.export_text().split())

    said = text(3.0)
    assert "At most 3 points worse than zero-shot?" in said
    assert "With 95% confidence, --shots auto-" in said and f"queries like these {N} (tuning-{N})" in said
    assert "Nothing but zero-shot itself is certified" in text(1.0, per_image=6)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [-1.0, 100.0, float("nan"), float("inf")])
def test_a_tolerance_out_of_range_is_refused(delta: float, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--certify takes a tolerance of 0 to below 100 points"):
        require_delta(delta, TASKS["vqa"])
    with pytest.raises(SettingsError):
        certificate_of(zero_shot(tmp_path), policy(tmp_path, better_then_worse), delta, seed=42)


def test_scores_without_bounds_are_refused() -> None:
    unbounded = replace_task(bounds=(0.0, float("inf")))
    with pytest.raises(SettingsError, match="--certify needs scores within bounds"):
        require_delta(1.0, unbounded)


def replace_task(**changes: Any) -> Any:
    """The VQA task with other attributes."""
    task = type("Changed", (type(TASKS["vqa"]),), changes)
    return task()


def test_missing_offsets_and_other_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no answers at auto-10: create them with `icdsel infer --certify`"):
        certificate_of(zero_shot(tmp_path), policy(tmp_path, better_then_worse, GRID[:-1]), 1.0, seed=42)
    few = write(tmp_path / "few.jsonl", {0: [(0.6, 0)] * (N - 1)}, identity={"selector": "zero-shot"})
    with pytest.raises(RunError, match="not over the same queries"):
        certificate_of(few, policy(tmp_path, better_then_worse), 1.0, seed=42)


def test_queries_that_the_policy_was_trained_on_are_refused(tmp_path: Path) -> None:
    zero = zero_shot(tmp_path)
    trained = policy(tmp_path, better_then_worse, identity={"split": "train"})
    with pytest.raises(RunError, match="which the policy was trained on"):
        certificate_of(zero, trained, 1.0, seed=42)
    data, run = tmp_path / "rl.jsonl", tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"identity": {"rl_data": ["f1"]}, "rl_data": [str(data)]}))
    own = policy(tmp_path, better_then_worse, checkpoint=str(run / "rce_epoch1.pt"))
    for queries, refused in (("q2", False), ("q1", True)):
        (tmp_path / "rl.meta.json").write_text(json.dumps({"identity": {"queries": queries}}))
        if refused:
            with pytest.raises(RunError, match=r"trained on the tuning queries .*rl\.jsonl"):
                certificate_of(zero, own, 1.0, seed=42)
        else:
            assert certificate_of(zero, own, 1.0, seed=42).n == N
