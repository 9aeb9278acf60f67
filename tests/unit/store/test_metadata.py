"""Metadata files are validated, keep what they hold, and name what differs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import RunError
from icdsel.store.metadata import Metadata, Work, differences, environment, read_metadata, read_metadata_files

ALL: dict[str, Any] = {
    "identity": {"data.seed": 1, "init": None, "rl_data": ["0123456789abcdef"]},
    "settings": {"data": {"dataset": "world", "image_dir": None}},
    "environment": {"device": "cpu", "revision": None},
    "pair": "RandSampler_tiny-vlm",
    "rl_data": ["results/x.jsonl", os.fsdecode(b"results/\xff.jsonl")],
    "queries": 0,
    "name": "policy-run-rce_epoch1",
    "set": "validation-4",
    "checkpoint": "run/rce_epoch1.pt",
    "answers": {"1": 4, "2": 0},
    "work": {"rce": {"seconds": 1.5, "count": 40}},
    "finished": 3,
}


def write(path: Path, content: Any) -> Path:
    path.write_bytes(json.dumps(content).encode())
    return path


def test_a_file_is_written_as_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "run.json", ALL | {"of a later version": [1]})
    read_metadata(path).write(tmp_path / "copy.json")
    content = json.loads((tmp_path / "copy.json").read_bytes())
    assert content == ALL | {"of a later version": [1]} and list(content)[: len(ALL)] == list(ALL)


def test_fields_have_types(tmp_path: Path) -> None:
    metadata = read_metadata(write(tmp_path / "run.json", ALL))
    assert metadata.inputs == ALL["identity"] and metadata.finished == 3
    assert metadata.work == {"rce": Work(seconds=1.5, count=40)}
    least = read_metadata(write(tmp_path / "run.json", {"identity": {}}))
    assert (least.settings, least.environment, least.work, least.answers, least.finished) == ({}, {}, {}, {}, None)
    least.write(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_bytes()) == {"identity": {}}


def test_an_update_keeps_the_rest() -> None:
    metadata = Metadata(inputs={"a": 1}, settings={"t": {}}).updated(queries=3)
    assert metadata == Metadata(inputs={"a": 1}, settings={"t": {}}, queries=3)
    assert metadata.updated(work={"rce": {"seconds": 1, "count": 2}}).work["rce"].count == 2


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("settings", [1, [], {"data": 1}]),
        ("environment", [1, []]),
        ("pair", [1, "a\0b", "x" * 5000]),
        ("rl_data", ["a.jsonl", [1], ["a\0b"]]),
        ("queries", [-1, 1.0, True, "1", 2**63]),
        ("answers", [[], {"1": -1}, {"1": 1.5}]),
        ("work", [[], {"rce": 1}, {"rce": {"seconds": -1, "count": 1}}, {"rce": {"seconds": 1, "count": "1"}}]),
        ("work", [{"rce": {"seconds": float("nan"), "count": 1}}, {"rce": {"seconds": 1}}]),
        ("finished", [0, True, 1.5, 2**63]),
        ("checkpoint", [1, ["a"]]),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, key: str, values: list[Any]) -> None:
    for value in values:
        path = write(tmp_path / "run.json", ALL | {key: value})
        with pytest.raises(RunError, match=rf"run\.json is damaged: {key}"):
            read_metadata(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot be read"),
        (b"[]", "has no identity"),
        (b'{"identity": []}', "has no identity"),
        (b'{"identity": {', "cannot be read"),
        (b"\xff", "cannot be read"),
        (json.dumps({"identity": {str(i): i for i in range(1001)}}).encode(), "damaged: identity"),
    ],
)
def test_what_is_not_a_metadata_file_is_rejected(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=why):
        read_metadata(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.json is missing: what it describes was not written by icdsel, or"):
        read_metadata(tmp_path / "run.json")


def test_damaged_files_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = write(tmp_path / "a.json", ALL), write(tmp_path / "b.json", [])
    assert [path for path, _ in read_metadata_files([bad, good])] == [good]
    assert "b.json has no identity" in caplog.text


def test_differences_name_what_a_fingerprint_stands_for() -> None:
    old, new = {"data.seed": 1, "model": "abc", "same": 1, "gone": 2}, {"data.seed": 2, "model": "abd", "same": 1}
    assert differences(old, new) == [
        "data.seed: 1 then, 2 now",
        "gone: 2 then, None now",
        "model (the VLM's files): 'abc' then, 'abd' now",
    ]
    assert differences(old, old) == []


def test_results_of_servers_and_of_a_process_differ_in_where_they_were_answered() -> None:
    server, here = {"dtype": "server", "model": "abc", "other": 1}, {"dtype": "float32", "model": "abd", "other": 2}
    there, back = differences(server, here), differences(here, server)
    assert [line.split(":")[0] for line in (*there, *back)] == [
        "answered by servers then (--vlm-url), by the model in this process now",
        "other",
        "answered by the model in a process of icdsel then, by servers now (--vlm-url)",
        "other",
    ]
    assert differences(server, server | {"model": "abd"}) == [
        "model (the model of the servers, by its answers): 'abc' then, 'abd' now"
    ]


def test_the_environment_without_git(tmp_path: Path) -> None:
    code = "from icdsel.store.metadata import environment; print(environment('cpu', 1)['revision'])"
    variables = os.environ | {"PATH": ""}
    completed = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert completed.stdout == "None\n"
    assert {"icdsel", "torch", "machine", "cpus", "threads", "written"} < environment("cpu", 1).keys()
