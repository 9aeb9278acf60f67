"""Rows whose selector decides how many ICDs it shows, and what the prompts of every row cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from icdsel.artefacts.predictions import predictions_dir
from icdsel.comparison.compare import ComparisonRow, compare
from icdsel.comparison.headline import headlines
from icdsel.comparison.tables import screen_tables, write_csv, write_markdown
from icdsel.records import Shots
from icdsel.settings.loading import Settings, load_settings

Answer = tuple[float, int, int | None]
"""An accuracy, how many ICDs were shown, and the length of the prompt."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"data": {"results_dir": str(tmp_path / "results")}})


def write(settings: Settings, name: str, answers: Mapping[Shots, Sequence[Answer]]) -> None:
    """The predictions of a row, as `infer` leaves them."""
    folder = predictions_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for shots, row in answers.items():
        for query, (accuracy, shown, tokens) in enumerate(row):
            line = {"question_id": query, "image_id": query, "shots": shots, "icds": [*range(50, 50 + shown)]}
            length = {} if tokens is None else {"prompt_tokens": tokens}
            lines.append(line | {"prediction": "yes", "accuracy": accuracy} | length)
    path = folder / f"{name}_validation-4.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    identity = {"selector": name.split("-")[0] if name != "zero-shot" else name, "data.pool_size": 64}
    path.with_suffix(".meta.json").write_text(
        json.dumps({"identity": identity, "name": name, "set": "validation-4", "failed": 0, "settings": {}})
    )


def table(settings: Settings) -> dict[tuple[str, Shots], ComparisonRow]:
    return {(row.name, row.shots): row for row in compare(settings)}


ZERO = {0: [(0.3, 0, 10), (1.0, 0, 12), (0.0, 0, 14), (0.0, 0, 16)]}
RANDOM = {2: [(0.0, 2, 30), (0.3, 2, 32), (0.3, 2, 34), (0.6, 2, 36)]}
POLICY = {
    2: [(0.6, 2, 31), (0.3, 2, 33), (0.9, 2, 35), (0.9, 2, 37)],
    "auto": [(0.6, 2, 31), (1.0, 0, 12), (0.9, 1, 25), (0.9, 2, 37)],
    "auto+1": [(0.3, 0, 10), (1.0, 0, 12), (0.9, 1, 25), (0.0, 0, 16)],
}


def test_every_row_says_how_many_icds_it_shows_and_what_its_prompts_cost(settings: Settings) -> None:
    write(settings, "zero-shot", ZERO)
    write(settings, "random-42", RANDOM)
    write(settings, "policy-run-rce_epoch5", POLICY)
    rows = compare(settings)
    found = [(row.selector, row.shots, row.mean_shots, row.mean_prompt_tokens, row.pool) for row in rows]
    assert found == [
        ("zero-shot", 0, 0.0, 13.0, None),
        ("policy", 2, 2.0, 34.0, "64"),
        ("random", 2, 2.0, 33.0, "64"),
        ("policy", "auto+1", 0.25, 15.75, "64"),
        ("policy", "auto", 1.25, 26.25, "64"),
    ]
    assert all({"pool", "mean_shots", "mean_prompt_tokens"} <= row.to_json().keys() for row in rows)


def test_what_decides_itself_is_compared_with_showing_nothing(settings: Settings) -> None:
    write(settings, "zero-shot", ZERO)
    write(settings, "random-42", RANDOM)
    write(settings, "policy-run-rce_epoch5", POLICY)
    found = table(settings)
    auto = found["policy-run-rce_epoch5", "auto"]
    assert (auto.reference, auto.difference, auto.wins, auto.losses) == ("zero-shot", 52.5, 3, 0)
    assert found["policy-run-rce_epoch5", 2].reference == "random-42"
    # The headline takes the best row of the policy, whoever decides how many ICDs it shows.
    [headline] = headlines(compare(settings))
    assert headline.policy is not None and headline.policy.shots == "auto"
    assert "(pool 64, auto), has 85.0" in str(headline)


def test_means_over_seeds_average_what_is_shown(settings: Settings) -> None:
    write(settings, "zero-shot", ZERO)
    write(settings, "policy-run-rce_epoch5", {"auto": POLICY["auto"]})
    write(settings, "policy-run_train-seed-43-rce_epoch5", {"auto": POLICY["auto+1"]})
    mean = table(settings)["policy-run-rce_epoch5 (mean over seeds)", "auto"]
    assert (mean.mean_shots, mean.mean_prompt_tokens) == (0.75, 21.0)


def test_a_mean_length_is_unknown_if_that_of_one_prompt_is(settings: Settings) -> None:
    write(settings, "zero-shot", {0: [*ZERO[0][:3], (0.0, 0, None)]})
    [row] = compare(settings)
    assert (row.mean_shots, row.mean_prompt_tokens) == (0.0, None)


def test_tables_have_a_section_for_auto(settings: Settings, tmp_path: Path) -> None:
    from rich.console import Console

    write(settings, "zero-shot", ZERO)
    write(settings, "policy-run-rce_epoch5", POLICY)
    rows = compare(settings)
    console = Console(width=160, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
    console.print(screen_tables(rows))
    text = console.export_text()
    assert [line.strip() for line in text.splitlines() if line.strip() in ("0 shots", "2 shots", "auto", "auto+1")][
        :4
    ] == ["0 shots", "2 shots", "auto+1", "auto"]
    assert "1.25" in text
    write_markdown(rows, tmp_path / "t.md")
    assert "| auto | policy-run-rce\\_epoch5 | 64 | 1.25 | 26 | 85.0 |" in (tmp_path / "t.md").read_text().replace(
        "policy-run-rce_epoch5", "policy-run-rce\\_epoch5"
    )
    write_csv(rows, tmp_path / "t.csv")
    header, *lines = (tmp_path / "t.csv").read_text().splitlines()
    assert {"pool", "mean_shots", "mean_prompt_tokens"} <= set(header.split(","))
    assert [line.split(",")[2] for line in lines] == ["0", "2", "auto+1", "auto"]
    assert [row.shots for row in compare(settings, shots=["auto"])] == [0, "auto"]
