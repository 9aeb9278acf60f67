"""Weights & Biases offline: its files are read back, without its server."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from wandb_files import history, offline_runs, records, run_of, summary

from icdsel.errors import SettingsError
from icdsel.trackers import Subject, require, track

pytest.importorskip("wandb")
EPOCHS = [{"loss": 2.0, "kl_beta": 0.1}, {"loss": 1.5, "kl_beta": 0.1}, {"loss": 1.25, "kl_beta": 0.05}]


def log(subject: Subject, until: int) -> None:
    """Logs epochs up to a number, as a training does that starts or resumes."""
    with track(("wandb",), subject) as tracking:
        for number, metrics in enumerate(EPOCHS[:until], 1):
            tracking.log_epoch(number, metrics)
        if until == len(EPOCHS):
            tracking.log_recommended("rce_epoch2.pt")


def steps(path: Path) -> list[dict[str, float]]:
    return sorted(history(path), key=lambda row: row["_step"])


def test_a_resumed_training_is_one_run_with_every_epoch_once(subject, connections, capfd, monkeypatch):
    monkeypatch.chdir(subject.folder.parent)
    monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))  # at which W&B advertises Weave
    log(subject, 2)
    [first] = offline_runs(subject.folder)
    assert steps(first) == [{"_step": number} | EPOCHS[number - 1] for number in (1, 2)]
    log(subject, 3)
    second = offline_runs(subject.folder)[-1]
    assert second != first or len(offline_runs(subject.folder)) == 1
    assert steps(second) == [{"_step": number} | EPOCHS[number - 1] for number in (1, 2, 3)]
    assert {run_of(path).run_id for path in (first, second)} == {subject.id}
    run = run_of(second)
    assert (run.display_name, run.project, run.run_group, run.job_type) == ("mine", "icdsel", "world", "training")
    config = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in run.config.update}
    del config["_wandb"]
    assert config == {"data.dataset": "world", "train.rce_lr": 1e-4, "train.tracker": ["wandb"]}
    assert summary(second)["recommended_checkpoint"] == "rce_epoch2.pt"
    assert connections == []
    assert list(subject.folder.parent.iterdir()) == [subject.folder]  # nothing in the working directory
    shown = capfd.readouterr()
    assert shown.out == "" and all(line.startswith("Weights & Biases is offline") for line in shown.err.splitlines())


def test_neither_code_nor_machine_is_recorded(subject, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hidden-in-the-environment")
    log(subject, 3)
    [path] = offline_runs(subject.folder)
    kinds = {record.WhichOneof("record_type") for record in records(path)}
    assert not kinds & {"environment", "stats", "output", "output_raw", "artifact"}
    assert not run_of(path).HasField("git") and not run_of(path).host
    files = [file for file in (path.parent / "files").rglob("*") if file.is_file()]
    assert not {file.name for file in files} & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"}
    for file in path.parent.rglob("*"):
        assert file.is_dir() or b"hidden-in-the-environment" not in file.read_bytes(), file


def test_a_comparison_is_a_table(subject):
    rows = [{"name": "a", "shots": 1, "accuracy": 50.5}, {"name": "b", "shots": "auto", "accuracy": None}]
    with track(("wandb",), dataclasses.replace(subject, kind="comparison")) as tracking:
        tracking.log_rows(rows)
    [path] = offline_runs(subject.folder)
    [row] = history(path)
    table = json.loads((path.parent / "files" / row["comparison/path"]).read_text())
    assert [dict(zip(table["columns"], line, strict=True)) for line in table["data"]] == rows


def test_its_mode_and_project_are_those_of_its_variables(subject, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "other")
    log(subject, 1)
    [path] = offline_runs(subject.folder)
    assert run_of(path).project == "other"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log(subject, 3)
    assert offline_runs(subject.folder) == [path]
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(SettingsError, match="WANDB_MODE is 'ofline': set it to one of offline, online"):
        require(("wandb",))


def test_online_without_a_key_is_an_error_before_any_work(connections, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):  # where it looks for keys
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(
        SettingsError, match=r"Weights & Biases cannot be used:.*`wandb login`, or set WANDB_MODE=offline"
    ):
        require(("wandb",))


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_its_process_ends_with_the_command(subject, ending):
    code = f"""
import os, sys
from pathlib import Path
from types import ModuleType
from icdsel.trackers import Subject, track
folder = Path(sys.argv[1])
with track(("wandb",), Subject("training", "mine", "world", folder, folder, {{}}, "0123456789abcdef")) as tracking:
    tracking.log_epoch(1, {{"loss": 2.0}})
    {ending}
"""
    started = subprocess.Popen([sys.executable, "-c", code, str(subject.folder)], stderr=subprocess.DEVNULL)
    started.wait(timeout=60)
    until = time.monotonic() + 20
    while left := background_of(started.pid):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def background_of(process: int) -> list[list[bytes]]:
    """The command lines of W&B's own processes that belong to a process; empty where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended in the meantime
            found.append(path.read_bytes().split(b"\0"))
    return [words for words in found if words[0].endswith(b"wandb-core") and str(process).encode() in words]


def test_it_has_a_process_until_then(subject):
    with track(("wandb",), subject) as tracking:
        tracking.log_epoch(1, EPOCHS[0])
        if Path("/proc/self/cmdline").exists():
            assert background_of(os.getpid())
    assert background_of(os.getpid()) == []
