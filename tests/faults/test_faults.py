"""A real stage from end to end: some of the ends that `python -m tests.faults.kills` makes by the hundred.

`test_slot.py` ends the slot, which all stages use, at every operation.
"""

import json
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from worlds import write_small_world

from icdsel.cli.interruption import KEPT

from .instants import EndAt
from .runs import Undisturbed, Workshop
from .stages import differing, results

STAGES = ("gen-rl-data", "train", "infer")
DATA = "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    place = tmp_path_factory.mktemp("faults")
    write_small_world(place / "data", train=100, tuning=2, validation=70)
    return Workshop(place / "shop", STAGES, place / "data")


def command(shop: Workshop, stage: str) -> Undisturbed:
    return next(command for command in shop.commands if command.stage.name == stage)


def kill_at(shop: Workshop, command: Undisturbed, folder: Path, number: int, on: str) -> None:
    """Runs a command in a folder, and kills it at an operation on a file with this name."""
    running = shop.run(command.stage, command.words, folder, EndAt(folder, number, on=on))
    assert running.wait(60) == -signal.SIGKILL


def run(shop: Workshop, command: Undisturbed, folder: Path, *words: object) -> tuple[int | None, str]:
    """Runs a command, with more words if any; its exit code and its output."""
    code = shop.run(command.stage, (*command.words, *words), folder).wait(60)
    return code, " ".join(shop.output.read_text().split())


@pytest.fixture
def folder(shop: Workshop, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder before the stage of the test."""
    shutil.copytree(command(shop, request.param).start, tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_it_ends_with_the_same_files(shop: Workshop, stage: str) -> None:
    tally = shop.end_again_and_again(command(shop, stage), random.Random(stage), signal.SIGKILL, at_most=2)
    assert tally.wrong == []


def test_a_signal_ends_it_with_a_message_and_it_is_resumed(shop: Workshop) -> None:
    tally = shop.end_again_and_again(command(shop, "gen-rl-data"), random.Random(1), signal.SIGTERM, at_most=2)
    assert tally.wrong == []


@dataclass
class StuckAndEnded:
    """A thread of the command never returns, and the command gets SIGTERM."""

    end_at: EndAt

    def __call__(self) -> None:
        threading.Thread(target=threading.Event().wait).start()
        self.end_at()


@pytest.mark.parametrize("folder", ["gen-rl-data"], indirect=True)
def test_the_end_does_not_wait_for_threads(shop: Workshop, folder: Path) -> None:
    undisturbed = command(shop, "gen-rl-data")
    stuck = StuckAndEnded(EndAt(folder, 5, signal.SIGTERM))
    assert shop.run(undisturbed.stage, undisturbed.words, folder, stuck).wait(60) == 128 + signal.SIGTERM
    assert KEPT in shop.output.read_text()
    stuck.end_at.number = 0
    assert shop.run(undisturbed.stage, (*undisturbed.words, "--seed", "x"), folder, stuck).wait(60) == 2
    code, output = run(shop, undisturbed, folder)
    assert code == 0, output
    assert differing(results(folder), undisturbed.results) == []


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_renamed_before_it_is_synced(shop: Workshop, stage: str) -> None:
    assert command(shop, stage).broken_rules == []


def test_it_is_resumed_after_a_power_cut(shop: Workshop) -> None:
    undisturbed = command(shop, "gen-rl-data")
    operations = frozenset({round(undisturbed.operations * share) for share in (0.4, 0.7)})
    images = shop.images(undisturbed, operations)
    for image in {kept: image for _, _, kept, image in images if kept != "killed"}.values():
        assert shop.resume(undisturbed, image, cut=True) == []


@pytest.mark.parametrize(
    ("folder", "on"),
    [("train", "metrics.jsonl"), ("infer", ".jsonl.part")],
    indirect=["folder"],
)
def test_of_two_processes_the_second_is_rejected(shop: Workshop, folder: Path, on: str, request) -> None:
    undisturbed = command(shop, request.node.callspec.params["folder"])
    stopped = EndAt(folder, 2, signal.SIGSTOP, on=on)
    first = shop.run(undisturbed.stage, undisturbed.words, folder, stopped).process
    try:
        while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.02)
        code, output = run(shop, undisturbed, folder)
        assert code == 2 and f"is being written by process {first.pid} on" in output and "Traceback" not in output
    finally:
        first.kill()
    code, output = run(shop, undisturbed, folder)  # the lock ended with its process
    assert code == 0, output
    assert differing(results(folder), undisturbed.results) == []


@pytest.mark.parametrize("folder", ["gen-rl-data"], indirect=True)
def test_a_killed_run_is_not_resumed_with_different_settings(shop: Workshop, folder: Path) -> None:
    undisturbed = command(shop, "gen-rl-data")
    kill_at(shop, undisturbed, folder, 7, on=".jsonl.part")  # third unit: created, twice written and synced, opened
    journal = folder / f"{DATA}.part"
    before = journal.read_bytes()
    assert before.count(b"\n") == 64
    code, output = run(shop, undisturbed, folder, "--seed", 1)
    assert code == 2 and "data.seed: 42 then, 1 now" in output and "--overwrite" in output
    assert journal.read_bytes() == before
    # What a complete write would not leave: bytes that are not UTF-8, half of a letter.
    for torn in (
        b'{"question_id": 5, "question": "\xff\xfe',
        '{"question_id": 5, "question": "caf\u00e9'.encode()[:-1],
    ):
        journal.write_bytes(before + torn)
        code, output = run(shop, undisturbed, folder)
        assert code == 0, output
        assert differing(results(folder), undisturbed.results) == []
        (folder / DATA).unlink()
    code, output = run(shop, undisturbed, folder, "--seed", 1, "--overwrite")
    assert code == 0, output
    assert (folder / DATA).read_bytes() != undisturbed.results[DATA]


@pytest.mark.parametrize("folder", ["train"], indirect=True)
def test_a_run_with_a_damaged_training_state_is_rejected_with_the_remedy(shop: Workshop, folder: Path) -> None:
    undisturbed = command(shop, "train")
    kill_at(shop, undisturbed, folder, 5, on="metrics.jsonl")
    trained = folder / "results/world/model_cpk/plain"
    state = trained / "resume.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    code, output = run(shop, undisturbed, folder)
    assert code == 2 and "resume.pt" in output and "Traceback" not in output
    state.unlink()  # the remedy
    code, output = run(shop, undisturbed, folder)
    assert code == 0, output
    assert differing(results(folder), undisturbed.results) == []
    assert json.loads((trained / "run.json").read_text())["finished"] == 1


def use_two_threads() -> None:
    """Makes a command use another number of threads by default than the one before."""
    os.environ["OMP_NUM_THREADS"] = "2"


@pytest.mark.parametrize("folder", ["train"], indirect=True)
def test_a_killed_training_keeps_its_number_of_threads(shop: Workshop, folder: Path) -> None:
    undisturbed = command(shop, "train")
    kill_at(shop, undisturbed, folder, 5, on="metrics.jsonl")
    code, output = run(shop, undisturbed, folder, "--threads", 2)
    assert code == 2 and "was started with --threads 1" in output and "--threads 1" in output, output
    assert shop.run(undisturbed.stage, undisturbed.words, folder, use_two_threads).wait(60) == 0
    assert "resuming with --threads 1" in shop.output.read_text()
    assert differing(results(folder), undisturbed.results) == []
    recorded = json.loads((folder / "results/world/model_cpk/plain/run.json").read_text())
    assert recorded["environment"]["threads"] == 1
