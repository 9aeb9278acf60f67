"""A few of the ends that `python -m tests.faults.kills` makes by the hundred, and what else goes wrong around them."""

import json
import random
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from icdsel.data import world

from .instants import EndAt
from .runs import GOES_ON, Undisturbed, Workshop
from .stages import differing, results

STAGES = ("gen-rl-data", "train", "infer")
DATA = "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    place = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SPLIT_SIZES", {"train": 100, "tuning": 2, "validation": 70})
        world.write_world(place / "data/world")
    return Workshop(place / "shop", STAGES, place / "data")


def command(shop: Workshop, stage: str) -> Undisturbed:
    return next(command for command in shop.commands if command.stage.name == stage)


def end(shop: Workshop, command: Undisturbed, folder: Path, number: int, on: str) -> None:
    """Gives a command in a folder and kills it at an operation on a file of this name."""
    running = shop.run(command.stage, command.words, folder, EndAt(folder, number, on=on))
    assert running.wait(60) == -signal.SIGKILL


def given(shop: Workshop, command: Undisturbed, folder: Path, *words: object) -> tuple[int | None, str]:
    """Gives a command, perhaps with more words; its exit code and what it said."""
    code = shop.run(command.stage, (*command.words, *words), folder).wait(60)
    return code, " ".join(shop.said.read_text().split())


@pytest.fixture
def folder(shop: Workshop, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the stage that the test is about begins."""
    shutil.copytree(command(shop, request.param).start, tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_it_ends_with_the_same_files(shop: Workshop, stage: str) -> None:
    tally = shop.end_again_and_again(command(shop, stage), random.Random(stage), signal.SIGKILL, at_most=2)
    assert tally.wrong == []


def test_a_signal_ends_it_with_a_message_and_it_goes_on(shop: Workshop) -> None:
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
def test_an_end_does_not_wait_for_threads(shop: Workshop, folder: Path) -> None:
    made = command(shop, "gen-rl-data")
    stuck = StuckAndEnded(EndAt(folder, 5, signal.SIGTERM))
    assert shop.run(made.stage, made.words, folder, stuck).wait(60) == 128 + signal.SIGTERM
    assert GOES_ON in shop.said.read_text()
    stuck.end_at.number = 0
    assert shop.run(made.stage, (*made.words, "--seed", "x"), folder, stuck).wait(60) == 2
    code, said = given(shop, made, folder)
    assert code == 0, said
    assert differing(results(folder), made.results) == []


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_renamed_before_it_is_synced(shop: Workshop, stage: str) -> None:
    assert command(shop, stage).broken_rules == []


def test_it_goes_on_after_a_power_cut(shop: Workshop) -> None:
    made = command(shop, "gen-rl-data")
    images = shop.images(made, frozenset({round(made.operations * share) for share in (0.4, 0.7)}))
    for image in {kept: image for _, _, kept, image in images if kept != "killed"}.values():
        assert shop.goes_on(made, image, cut=True) == []


@pytest.mark.parametrize(
    ("folder", "on"),
    [("train", "metrics.jsonl"), ("infer", ".jsonl.part")],
    indirect=["folder"],
)
def test_of_two_processes_the_second_is_refused(shop: Workshop, folder: Path, on: str, request) -> None:
    made = command(shop, request.node.callspec.params["folder"])
    first = shop.run(made.stage, made.words, folder, EndAt(folder, 2, signal.SIGSTOP, on=on)).process
    try:
        while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.02)
        code, said = given(shop, made, folder)
        assert code == 2 and f"is being written by process {first.pid} on" in said and "Traceback" not in said
    finally:
        first.kill()
    code, said = given(shop, made, folder)  # the lock is gone with its process
    assert code == 0, said
    assert differing(results(folder), made.results) == []


@pytest.mark.parametrize("folder", ["gen-rl-data"], indirect=True)
def test_what_was_killed_is_not_gone_on_with_under_other_settings(shop: Workshop, folder: Path) -> None:
    made = command(shop, "gen-rl-data")
    end(shop, made, folder, 7, on=".jsonl.part")  # the third unit: created, twice written and synced, opened
    journal = folder / f"{DATA}.part"
    before = journal.read_bytes()
    assert before.count(b"\n") == 64
    code, said = given(shop, made, folder, "--seed", 1)
    assert code == 2 and "data.seed: 42 then, 1 now" in said and "--overwrite" in said
    assert journal.read_bytes() == before
    # What cannot have been written by icdsel to its end: no UTF-8, a letter cut in two.
    for torn in (
        b'{"question_id": 5, "question": "\xff\xfe',
        '{"question_id": 5, "question": "caf\u00e9'.encode()[:-1],
    ):
        journal.write_bytes(before + torn)
        code, said = given(shop, made, folder)
        assert code == 0, said
        assert differing(results(folder), made.results) == []
        (folder / DATA).unlink()
    code, said = given(shop, made, folder, "--seed", 1, "--overwrite")
    assert code == 0, said
    assert (folder / DATA).read_bytes() != made.results[DATA]


@pytest.mark.parametrize("folder", ["train"], indirect=True)
def test_a_run_whose_state_is_damaged_is_refused_with_the_remedy(shop: Workshop, folder: Path) -> None:
    made = command(shop, "train")
    end(shop, made, folder, 5, on="metrics.jsonl")
    run = folder / "results/world/model_cpk/plain"
    state = run / "resume.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    code, said = given(shop, made, folder)
    assert code == 2 and "resume.pt" in said and "Traceback" not in said
    state.unlink()  # the remedy
    code, said = given(shop, made, folder)
    assert code == 0, said
    assert differing(results(folder), made.results) == []
    assert json.loads((run / "run.json").read_text())["finished"] == 1
