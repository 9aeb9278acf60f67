"""Trouble around a command: a full disk, a read-only folder, a closed pipe, another encoding, a clock that jumps.

After each there is one message that a person can act on, and the same command, run again, leaves what an undisturbed
one leaves.
"""

import fcntl
import io
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from worlds import write_small_world

from icdsel.cli.interruption import KEPT
from icdsel.records import Answer
from icdsel.vlm.engine import Request
from icdsel.vlm.local.qwen_vl import QwenVl
from icdsel.vlm.supervision import SupervisedEngine

from .stages import differing, results
from .warm import Command

COMMANDS = (
    ("gen-rl-data",),
    ("train", "--rce-epochs", 2),
    ("infer", "--n", 40, "--shots", "1", "--selector", "policy,random"),
    ("convert", "rce_epoch1.pt"),
)
RESUMABLE = KEPT.capitalize()


class Place:
    """A folder in which commands are run, on a world elsewhere."""

    def __init__(self, folder: Path, world: Path) -> None:
        self.folder, self.world = folder, world

    def run(self, words: tuple[object, ...], first: Callable[[], None] | None = None) -> tuple[int, str]:
        """The exit code of a command, and its output."""
        output = self.folder.parent / "output.txt"
        output.unlink(missing_ok=True)
        variables = {"COLUMNS": "200", "ICDSEL_DATA_DATA_DIR": os.fspath(self.world)}
        code = Command(words, self.folder, output, variables, first).wait(120)
        assert code is not None, f"{words} hangs: {output.read_text()}"
        return code, output.read_text(errors="replace")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The folder of an undisturbed run of all commands."""
    top = tmp_path_factory.mktemp("undisturbed")
    place = Place(top / "work", top / "data")
    place.folder.mkdir()
    write_small_world(place.world, train=300, tuning=2, validation=60)
    few = "[proposals]\nqueries = 64\nbeam = 1\nsamples = 1\nretrieval = 0\nrandom = 0\n"
    (place.folder / "icdsel.toml").write_text(few)
    for words in COMMANDS:
        code, output = place.run(words)
        assert code == 0, output
    return place


@pytest.fixture
def started(undisturbed: Place, tmp_path: Path) -> Place:
    """A new folder that holds only the embeddings."""
    place = Place(tmp_path / "work", undisturbed.world)
    place.folder.mkdir()
    _copy_embeddings(undisturbed, place.folder)
    return place


_ANSWERS = shutil.ignore_patterns("answers_*")  # with them, the VLM would not be queried again


def _copy_embeddings(undisturbed: Place, folder: Path) -> None:
    shutil.copy(undisturbed.folder / "icdsel.toml", folder)
    shutil.copytree(undisturbed.folder / "results/world/cache", folder / "results/world/cache", ignore=_ANSWERS)


@pytest.fixture
def small_disk(undisturbed: Place, tmp_path: Path) -> Iterator[Place]:
    """The same on a file system of its own."""
    place = Place(tmp_path / "disk", undisturbed.world)
    place.folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=100m", "none", str(place.folder))
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    try:
        _copy_embeddings(undisturbed, place.folder)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place.folder)], check=True)


def remount(place: Place, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place.folder)], check=True)


def used(place: Place) -> int:
    disk = os.statvfs(place.folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def run_to_the_end(place: Place, undisturbed: Place) -> None:
    for words in COMMANDS:
        code, output = place.run(words)
        assert code == 0, output
    assert differing(results(place.folder), results(undisturbed.folder)) == []


def test_a_full_disk(small_disk: Place, undisturbed: Place):
    """The disk is full several times during each command, each time a little later than before."""
    failed = []
    for words in COMMANDS:
        for room in (0, 8, 24, 72):  # KiB
            remount(small_disk, f"size={used(small_disk) + 1024 * room}")
            code, output = small_disk.run(words)
            remount(small_disk, "size=100m")
            if code:
                failed.append(words[0])
                assert code == 1 and "No space left on device. Make room" in output and RESUMABLE in output, output
                assert "Traceback" not in output
        assert small_disk.run(words)[0] == 0
    assert failed.count("gen-rl-data") > 1 and failed.count("train") > 1 and "infer" in failed
    run_to_the_end(small_disk, undisturbed)


def test_a_read_only_folder(small_disk: Place, undisturbed: Place):
    remount(small_disk, "ro")
    code, output = small_disk.run(COMMANDS[0])
    assert code == 1 and "Read-only file system. Write elsewhere (--results-dir" in output and "Traceback" not in output
    remount(small_disk, "rw")
    run_to_the_end(small_disk, undisturbed)
    remount(small_disk, "ro")
    for words in COMMANDS:  # everything exists
        code, output = small_disk.run(words)
        assert code == 0, output


def vanish(images: Path) -> None:
    """The images are gone when the VLM is queried for the second time."""
    ask, count = SupervisedEngine.answer, itertools.count()

    def answer(*given: Any) -> list[Answer]:
        if next(count) == 1:
            images.rename(images.with_name("elsewhere"))
        return ask(*given)

    SupervisedEngine.answer = answer  # type: ignore[method-assign]


def test_a_dataset_that_vanishes(started: Place, undisturbed: Place):
    images = started.world / "world" / "images"
    for words in (COMMANDS[0], COMMANDS[2]):
        if words is COMMANDS[2]:
            assert [started.run(before)[0] for before in COMMANDS[:2]] == [0, 0]
        code, output = started.run(words, partial(vanish, images))
        images.with_name("elsewhere").rename(images)
        assert code == 1 and "is missing. Completed work is kept: fix the cause and run" in output, output
        assert "VLM calls failed, more than --max-failed 0.1 allows" in output and "Traceback" not in output
    run_to_the_end(started, undisturbed)


def nobody_reads(number: int = 1) -> None:
    """stdout, or stderr, is a pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    goes_to(write, number)


def nobody_reads_anything() -> None:
    nobody_reads()
    goes_to(1, 2)


def goes_to(target: int, number: int) -> None:
    """Redirects stdout (1) or stderr (2), as if the command had been started like that."""
    os.dup2(target, number)
    stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
    setattr(sys, "stdout" if number == 1 else "stderr", stream)


def full_pipe(number: int = 1) -> None:
    """stdout, or stderr, is a pipe that is full and does not block."""
    read, write = os.pipe()
    os.dup(read)  # stays open
    fcntl.fcntl(write, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        while True:
            os.write(write, b"0" * 4096)
    except BlockingIOError:
        goes_to(write, number)


def full_device(number: int = 1) -> None:
    goes_to(os.open("/dev/full", os.O_WRONLY), number)


def closed_streams() -> None:
    """As in `icdsel … >&- 2>&-`."""
    for number in (1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


LONG = pytest.mark.slow  # the others do the same to other streams


@pytest.mark.parametrize(
    "broken",
    [
        nobody_reads_anything,
        full_pipe,
        closed_streams,
        *(pytest.param(f, marks=LONG) for f in (nobody_reads, full_device)),
    ],
)
def test_output_that_cannot_be_written(started: Place, undisturbed: Place, broken: Callable[[], None]):
    for words in COMMANDS:
        code, output = started.run(words, broken)
        assert code == 0 if broken is closed_streams else code in (0, 1, 120), output
        assert "Traceback" not in output
    run_to_the_end(started, undisturbed)


@pytest.mark.parametrize("broken", [full_pipe, *(pytest.param(f, marks=LONG) for f in (nobody_reads, full_device))])
def test_notes_that_cannot_be_written_stop_nothing(started: Place, undisturbed: Place, broken: Callable[[int], None]):
    for words in COMMANDS:
        code, output = started.run(words, partial(broken, 2))
        assert code == 0, output
    assert started.run(("convert", "none.pt"), partial(broken, 2))[0] == 2
    assert differing(results(started.folder), results(undisturbed.folder)) == []


def test_an_encoding_that_lacks_letters(started: Place, undisturbed: Place):
    for words in COMMANDS:
        code, output = started.run(words, ascii_streams)
        assert code == 0 and "Traceback" not in output, output
        output.encode("ascii")
    assert differing(results(started.folder), results(undisturbed.folder)) == []


def ascii_streams() -> None:
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="ascii", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="ascii", write_through=True)
    from icdsel import __main__

    __main__._open_streams()


def test_a_locale_without_utf_8(tmp_path: Path):
    """In a new process, where file names are in the encoding of the locale as well."""
    place = dict(os.environ) | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for words in (
        ["--help"],
        ["infer", "--help"],
        ["runs", "--results-dir", "café"],
        ["check", "--dataset", "é.jsonl"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "icdsel", *words], cwd=tmp_path, env=place, capture_output=True, check=False
        )
        assert ended.returncode == (1 if words[0] == "check" else 0), ended.stderr
        assert b"Traceback" not in ended.stderr, ended.stderr


def test_names_that_are_not_utf_8(started: Place):
    """Those of the folders of results and data, of a run, and of written files."""
    name = os.fsdecode(b"\xff")
    shutil.copytree(started.world, started.folder / f"data{name}")
    started.world = started.folder / f"data{name}"
    place = ("--results-dir", f"results{name}")
    infer = (*COMMANDS[2], "--run", f"run{name}", *place)
    for words in (
        (*COMMANDS[0], "--image-cache-dir", f"images{name}", "--image-cache-mb", 0, *place),
        (*COMMANDS[1], "--run", f"run{name}", *place),
        infer,
        infer,  # which reads its own files
        ("runs", "--json", f"runs{name}.json", *place),
        ("compare", "--csv", f"table{name}.csv", "--html", f"page{name}.html", *place),
        ("check", started.folder / f"results{name}/world/model_cpk/run{name}", *place),
    ):
        code, output = started.run(words)
        assert code == 0 and "damaged" not in output and "Traceback" not in output, output


def long_ago() -> None:
    """The clock says 1971, and goes backwards."""
    began = time.time()
    time.time = lambda: 3e7 - 10 * (time.monotonic() - began)  # type: ignore[assignment]
    local, text = time.localtime, time.strftime
    time.strftime = lambda how, at=None: text(how, at or local(3e7))  # type: ignore[assignment]


def test_a_clock_that_jumps(started: Place, undisturbed: Place):
    """Neither the time of day nor the times of files decide anything."""
    for words in COMMANDS[:2]:
        assert started.run(words, long_ago)[0] == 0
    for number, path in enumerate(sorted(started.folder.rglob("*"))):
        os.utime(path, (4e9, 4e9) if number % 2 else (1, 1))
    for words in COMMANDS[2:]:
        code, output = started.run(words, long_ago if words[0] == "convert" else None)
        assert code == 0, output
    assert differing(results(started.folder), results(undisturbed.folder)) == []
    before = results(started.folder)
    for number, path in enumerate(sorted(started.folder.rglob("*"))):
        os.utime(path, (1, 1) if number % 3 else (4e9, 4e9))
    run_to_the_end(started, undisturbed)
    assert results(started.folder) == before


def some_calls_fail() -> None:
    whole = QwenVl.answer

    def answer(vlm: QwenVl, requests: Sequence[Request]) -> list[Answer]:
        if any(request.icds and request.icds[0].question_id % 23 == 0 for request in requests):
            raise RuntimeError("device-side assert")
        return whole(vlm, requests)

    QwenVl.answer = answer  # type: ignore[method-assign]


def test_calls_that_fail_in_a_training_are_counted(started: Place):
    online = ("--grpo-epochs", 1, "--online", "--online-samples", 2, "--run", "online")
    code, output = started.run(("train", "--rce-epochs", 1, *online), some_calls_fail)
    failed = [line.count(b'"error": "RuntimeError: device-side assert"') for line in _lines(started, "online.jsonl")]
    scored = [line.count(b'"error"') for line in _lines(started, "rl_data_RandSampler_tiny-vlm.jsonl")]
    assert any(failed) and sum(scored)
    assert code == 1 and f"{sum(failed) + sum(scored)} VLM calls failed" in output, output
    code, output = started.run(("train", "--rce-epochs", 1, "--run", "plain"))  # those of the RL data were reported
    assert code == 0 and "calls failed" not in output, output
    code, output = started.run(
        ("compare", "--train", "rce,grpo-online", "--rce-epochs", 1, "--n", 8, "--shots", 1), some_calls_fail
    )
    assert code == 1 and "VLM calls failed" in output, output


def _lines(place: Place, name: str) -> list[bytes]:
    [path] = place.folder.rglob(name)
    return path.read_bytes().splitlines()


def no_room() -> None:
    from icdsel.policy import loop as training

    def update(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory\nat 0x7f")

    training._update = update  # type: ignore[assignment]


def test_a_training_without_enough_memory(started: Place, undisturbed: Place):
    assert started.run(COMMANDS[0])[0] == 0
    code, output = started.run(COMMANDS[1], no_room)
    assert code == 1 and "out of memory: [enforce" in output and "--hidden-dim" in output, output
    assert RESUMABLE in output and "Traceback" not in output and "at 0x7f" not in output
    run_to_the_end(started, undisturbed)


def dies_after_an_epoch() -> None:
    from icdsel.stages.training.run_journal import RunJournal

    RunJournal._show = lambda *_: os._exit(1)  # type: ignore[method-assign]


def test_a_damaged_state_of_a_training(started: Place):
    assert started.run(("train", "--rce-epochs", 2), dies_after_an_epoch)[0] == 1
    [left] = started.folder.rglob("resume.pt")
    left.write_bytes(left.read_bytes()[:1000])
    code, output = started.run(("train", "--rce-epochs", 2))
    assert code == 2 and "this training cannot be resumed: move the folder of the run away" in output, output


def test_a_world_that_lost_a_file(started: Place, tmp_path: Path):
    place = Place(started.folder, tmp_path / "data")
    (tmp_path / "data/world").mkdir(parents=True)
    for file in (started.world / "world").glob("*.json"):
        shutil.copy(file, tmp_path / "data/world")
    (tmp_path / "data/world/annotations_train.json").unlink()
    code, output = place.run(("gen-rl-data",))
    assert code == 2 and "will be created again" in output and "annotations_train.json" in output, output
