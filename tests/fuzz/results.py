"""Readers of predictions, metadata files and runs."""

import contextlib
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from icdsel.artefacts.run_folder import read_metrics
from icdsel.cli.tables import runs_table
from icdsel.comparison.compare import compare
from icdsel.comparison.rows import read_comparable
from icdsel.comparison.runs import list_runs
from icdsel.comparison.tables import screen_tables
from icdsel.errors import RunError
from icdsel.page.runs import _read_run
from icdsel.settings.loading import settings_from
from icdsel.store.metadata import read_metadata
from icdsel.store.slot import Slot

from .common import IDS, check_path, json_of, lines, lines_of
from .harness import Reader
from .mutate import damaged_json, damaged_lines

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def screen() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True)


def prediction(question_id: int, shots: int, **more: Any) -> dict[str, Any]:
    record = {"question_id": question_id, "shots": shots, "icds": IDS[:shots], "prediction": "a", "accuracy": 0.6}
    return record | {"accuracy_openflamingo": 1.0} | more


PREDICTIONS = [
    *(prediction(i, shots) for shots in (1, 2) for i in range(4)),
    {"question_id": 5, "shots": 2, "icds": [100, 101], "error": "no memory"},
]
SETTINGS = settings_from({})


def metadata_file(**more: Any) -> dict[str, Any]:
    identity = {"selector": "policy", "data.metric": "official", "dataset": "abc", "split": "validation", "model": "x"}
    environment = {"written": "2026-05-01T10:00:00+0000", "machine": "x", "cpus": 2}
    content = {"identity": identity, "settings": SETTINGS.model_dump(mode="json"), "environment": environment}
    return content | {"name": "policy-run-rce_epoch1", "set": "validation-4", "finished": 1} | more


def shortened(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """With few settings, so that damage hits other parts as often."""
    tables = {name: dict(list(table.items())[:4]) for name, table in metadata["settings"].items()}
    return dict(metadata) | {"settings": tables}


def prediction_files(folder: Path, mutated: str) -> Path:
    path = folder / "policy-run-rce_epoch1_validation-4.jsonl"
    path.write_bytes(lines(*PREDICTIONS))
    path.with_suffix(".meta.json").write_text(json.dumps(metadata_file()))
    other = folder / "random-1_validation-4.jsonl"
    other.write_bytes(lines(*PREDICTIONS))
    inputs = metadata_file()["identity"] | {"selector": "random"}
    other.with_suffix(".meta.json").write_text(json.dumps(metadata_file(name="random-1", identity=inputs)))
    return path.with_name(path.stem + mutated)


def use_predictions(path: Path) -> None:
    size = path.stat().st_size
    read_comparable([path.parent], allow_different=size % 2 == 0)
    if size % 64 == 0:
        screen().print(screen_tables(compare(SETTINGS, [path.parent], allow_different=True)))
    metadata = next(path.parent.glob("policy*.meta.json"))
    with contextlib.suppress(RunError):
        Slot(
            metadata.with_suffix("").with_suffix(".jsonl"), {"data.metric": "official"}, path.exists, RunError, "remedy"
        ).peek()


def run_folder(folder: Path, mutated: str) -> Path:
    run = folder / "world/model_cpk/run"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(metadata_file(pair="RandSampler_tiny-vlm", rl_data=["a.jsonl"])))
    epochs = [
        {"phase": "rce", "epoch": i, "expected_reward": i / 10, "oracle_share": i / 5, "kl_beta": 0.1} for i in (1, 2)
    ]
    (run / "metrics.jsonl").write_bytes(lines(*epochs))
    (run / "rce_epoch1.pt").write_bytes(b"x")
    return run / mutated


def use_run(path: Path) -> None:
    run, results = path.parent, path.parents[3]
    if path.stat().st_size % 8 == 1:
        check_path(run)
    found = list_runs(results)
    if path.stat().st_size % 8 == 0:
        screen().print(runs_table(found, NOON))
    read_metadata(run / "run.json")
    row = SimpleNamespace(lead="a", label="a")
    shown = _read_run(row, run)  # type: ignore[arg-type]
    for other, _ in shown.rl_data:
        other.is_file()


def use_metrics(path: Path) -> None:
    for epoch in read_metrics(path):
        f"{epoch.phase} {epoch.epoch + 1}".encode()


READERS = [
    Reader(
        "predictions",
        partial(prediction_files, mutated=".jsonl"),
        lines_of(*PREDICTIONS),
        damaged_lines,
        use_predictions,
        (RunError,),
    ),
    Reader(
        "metadata-file",
        partial(prediction_files, mutated=".meta.json"),
        json_of(
            metadata_file(),
            shortened(metadata_file(checkpoint="x.pt", work={"answering": {"seconds": 1.0, "count": 2}})),
        ),
        damaged_json,
        use_predictions,
        (RunError,),
    ),
    Reader(
        "run-json",
        partial(run_folder, mutated="run.json"),
        json_of(shortened(metadata_file(pair="x", rl_data=["a.jsonl"])), metadata_file()),
        damaged_json,
        use_run,
        (RunError,),
    ),
    Reader(
        "metrics",
        partial(run_folder, mutated="metrics.jsonl"),
        lines_of(
            {"phase": "rce", "epoch": 1, "expected_reward": 0.5, "oracle_share": 0.5}, {"phase": "grpo", "epoch": 1}
        ),
        damaged_lines,
        lambda path: (use_run(path), use_metrics(path)),
        (RunError,),
    ),
]
