"""Short names of rows, over predictions and runs made by hand."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from icdsel.artefacts.predictions import predictions_dir
from icdsel.artefacts.run_folder import runs_dir
from icdsel.comparison.compare import Comparison, compare
from icdsel.comparison.headline import headlines
from icdsel.comparison.tables import screen_tables, write_markdown
from icdsel.settings.loading import Settings, load_settings

MISSION = "v3_RandSampler_Qwen2_5-VL-3B-Instruct_grpo-epochs-3_freeze-backbone"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"data": {"results_dir": str(tmp_path / "results")}})


def answer(
    settings: Settings,
    selector: str,
    scores: Sequence[float],
    *,
    name: str = "",
    policy: Path | None = None,
    pool: object = 64,
) -> None:
    """Predictions at 2 shots."""
    name = name or selector
    folder = predictions_dir(settings).with_name(f"RandSampler_tiny-vlm{'' if pool == 64 else f'_pool-size-{pool}'}")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"question_id": i, "shots": 2, "icds": [], "prediction": "yes", "accuracy": s} for i, s in enumerate(scores)
    ]
    path = folder / f"{name}_validation-{len(scores)}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    side = {
        "identity": {"selector": selector, "data.pool_size": pool},
        "name": name,
        "set": f"validation-{len(scores)}",
    }
    if policy:
        side["identity"]["checkpoint"] = str(policy)  # type: ignore[index]
        side["checkpoint"] = str(policy)
    path.with_suffix(".meta.json").write_text(json.dumps(side))


def learned(
    settings: Settings, run: str, number: int, scores: Sequence[float], epoch: str = "grpo_epoch3", **how: object
) -> None:
    """A run with its number, and the predictions of a checkpoint."""
    folder = runs_dir(settings) / run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"identity": {}, "finished": number}))
    answer(settings, "policy", scores, name=f"policy-{run}-{epoch}", policy=folder / f"{epoch}.pt", **how)  # type: ignore[arg-type]


def labels(rows: Comparison) -> set[str]:
    return {row.label for row in rows}


def test_a_run_of_a_long_name_is_shown_by_its_number(settings: Settings) -> None:
    learned(settings, MISSION, 3, [1.0, 0.6])
    learned(settings, "demo", 4, [1.0, 0.3])
    answer(settings, "nearest-both", [0.3, 0.3])
    rows = compare(settings, reference="policy run 3")  # which the flag takes too
    assert labels(rows) == {"policy run 3", "policy demo", "nearest-both"}
    assert {row.name for row in rows if row.learned} == {f"policy-{MISSION}-grpo_epoch3", "policy-demo-grpo_epoch3"}
    assert {row.reference for row in rows} == {f"policy-{MISSION}-grpo_epoch3"}
    assert "policy run 3 (pool 64, 2 shots), has 80.0" in str(headlines(rows)[0])


def test_checkpoints_of_one_run_are_told_apart(settings: Settings) -> None:
    learned(settings, MISSION, 3, [1.0, 0.6])
    learned(settings, MISSION, 3, [1.0, 0.0], epoch="rce_epoch5")
    learned(settings, "demo", 4, [1.0, 0.0])
    assert labels(compare(settings)) == {"policy run 3 grpo 3", "policy run 3 rce 5", "policy demo"}


def test_seeds_are_shown_by_their_runs(settings: Settings) -> None:
    for k, seed in enumerate(["", "_train-seed-43", "_train-seed-44"]):
        learned(settings, f"{MISSION}{seed}", k + 5, [1.0, 0.6])
        learned(settings, f"demo{seed}", k + 9, [1.0, 0.6])
    answer(settings, "random", [0.3, 0.3], name="random-42")
    answer(settings, "random", [0.3, 0.0], name="random-43")
    assert labels(compare(settings)) == {
        *("policy runs 5, 6, 7, mean of 3", "policy run 5", "policy run 6", "policy run 7"),
        *("policy demo, mean of 3", "policy demo", "policy demo, seed 43", "policy demo, seed 44"),
        *("random, mean of 2", "random-42", "random-43"),
    }


def test_what_a_row_chose_from_stands_in_its_own_column(settings: Settings) -> None:
    for pool in (64, "all"):
        learned(settings, "demo", 1, [1.0, 0.6], pool=pool)
    rows = compare(settings)
    assert [(row.label, row.pool) for row in rows] == [("policy demo", "64"), ("policy demo", "all")]
    assert len({row.name for row in rows}) == 2


def test_a_run_that_is_gone_keeps_the_ends_of_its_name(settings: Settings) -> None:
    learned(settings, MISSION, 1, [1.0, 0.6])
    (runs_dir(settings) / MISSION / "run.json").unlink()
    assert labels(compare(settings)) == {"policy v3_RandS…ze-backbone"}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_names_of_the_mission_stay_in_one_line(settings: Settings, tmp_path: Path, width: int) -> None:
    for seed in ("", "_train-seed-43"):
        learned(settings, f"{MISSION}{seed}", 7 + len(seed), [1.0, 0.6, 0.0])
    answer(settings, "nearest-both-all", [0.3, 0.3, 1.0])
    rows = compare(settings)
    screen = Console(width=width, file=io.StringIO())
    screen.print(screen_tables(rows, [str(own) for own in headlines(rows)]))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "v3_" not in text and "…-" not in text
    lines = [line for line in text.splitlines() if line.startswith("policy runs 7, 21, mean of 2 ")]
    assert "  64      53.3 " in lines[0] and " … " in lines[0]
    assert len(lines) == 2  # once in each table, whose figures are whole
    assert all(line.split()[-1][-1].isdigit() or line.split()[-1][-1] in "*)" for line in lines)
    assert ("Not shown at this width" in text) == (width < 120)
    write_markdown(rows, tmp_path / "table.md")
    assert "| policy runs 7, 21, mean of 2 | 64 | 2 |  | 53.3 |" in (tmp_path / "table.md").read_text()
