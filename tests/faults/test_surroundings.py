"""What may happen around a command: a full disk, a read-only folder, a pipe nobody reads, another alphabet, a clock.

After each: one message that a person can act on, and the same command given again ends with what an undisturbed one
leaves.
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
GOES_ON = "What was finished is kept: give the same command again to go on"


class Place:
    """A folder in which commands are run on a world that lies elsewhere."""

    def __init__(self, folder: Path, world: Path) -> None:
        self.folder, self.world = folder, world

    def run(self, words: tuple[object, ...], first: Callable[[], None] | None = None) -> tuple[int, str]:
        """A command's exit code, and what was said."""
        said = self.folder.parent / "said.txt"
        said.unlink(missing_ok=True)
        variables = {"COLUMNS": "200", "ICDSEL_DATA_DATA_DIR": os.fspath(self.world)}
        code = Command(words, self.folder, said, variables, first).wait(120)
        assert code is not None, f"{words} hangs: {said.read_text()}"
        return code, said.read_text(errors="replace")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where all commands were run undisturbed."""
    top = tmp_path_factory.mktemp("whole")
    place = Place(top / "work", top / "data")
    place.folder.mkdir()
    few = "[proposals]\nqueries = 96\nbeam = 1\nsamples = 1\nretrieval = 0\nrandom = 0\n"
    (place.folder / "icdsel.toml").write_text(few)
    for words in COMMANDS:
        code, said = place.run(words)
        assert code == 0, said
    return place


@pytest.fixture
def begun(whole: Place, tmp_path: Path) -> Place:
    """A new folder with the embeddings alone."""
    place = Place(tmp_path / "work", whole.world)
    place.folder.mkdir()
    _begin(whole, place.folder)
    return place


def _begin(whole: Place, folder: Path) -> None:
    shutil.copy(whole.folder / "icdsel.toml", folder)
    shutil.copytree(whole.folder / "results/world/cache", folder / "results/world/cache")


@pytest.fixture
def small_disk(whole: Place, tmp_path: Path) -> Iterator[Place]:
    """The same on a file system of its own, of half a megabyte more than the embeddings take."""
    place = Place(tmp_path / "disk", whole.world)
    place.folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=100m", "none", str(place.folder))
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        _begin(whole, place.folder)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place.folder)], check=True)


def remount(place: Place, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place.folder)], check=True)


def used(place: Place) -> int:
    disk = os.statvfs(place.folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def goes_on_to_the_end(place: Place, whole: Place) -> None:
    for words in COMMANDS:
        code, said = place.run(words)
        assert code == 0, said
    assert differing(results(place.folder), results(whole.folder)) == []


def test_a_full_disk(small_disk: Place, whole: Place):
    """Every command meets a full disk several times, each time a little later than before."""
    refused = []
    for words in COMMANDS:
        for room in (0, 8, 24, 72):  # KiB
            remount(small_disk, f"size={used(small_disk) + 1024 * room}")
            code, said = small_disk.run(words)
            remount(small_disk, "size=100m")
            if code:
                refused.append(words[0])
                assert code == 1 and "No space left on device. Make room" in said and GOES_ON in said, said
                assert "Traceback" not in said
        assert small_disk.run(words)[0] == 0
    assert refused.count("gen-rl-data") > 1 and refused.count("train") > 1 and "infer" in refused
    goes_on_to_the_end(small_disk, whole)


def test_a_read_only_folder(small_disk: Place, whole: Place):
    remount(small_disk, "ro")
    code, said = small_disk.run(COMMANDS[0])
    assert code == 1 and "Read-only file system. Write elsewhere (--results-dir" in said and "Traceback" not in said
    remount(small_disk, "rw")
    goes_on_to_the_end(small_disk, whole)
    remount(small_disk, "ro")
    for words in COMMANDS[:3]:  # it is all there
        code, said = small_disk.run(words)
        assert code == 0, said


def vanish(images: Path) -> None:
    """The images are gone when the VLM is asked for the second time."""
    ask, count = SupervisedEngine.answer, itertools.count()

    def answer(*given: Any) -> list[Answer]:
        if next(count) == 1:
            images.rename(images.with_name("elsewhere"))
        return ask(*given)

    SupervisedEngine.answer = answer  # type: ignore[method-assign]


def test_a_dataset_that_vanishes(begun: Place, whole: Place):
    images = begun.world / "world" / "images"
    for words in (COMMANDS[0], COMMANDS[2]):
        if words is COMMANDS[2]:
            assert [begun.run(before)[0] for before in COMMANDS[:2]] == [0, 0]
        code, said = begun.run(words, partial(vanish, images))
        images.with_name("elsewhere").rename(images)
        assert code == 1 and "is missing. Completed work is kept: run the same command again" in said, said
        assert "VLM calls failed, more than --max-failed 0.1 allows" in said and "Traceback" not in said
    goes_on_to_the_end(begun, whole)


def nobody_reads(number: int = 1) -> None:
    """stdout, or stderr, goes to a pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    goes_to(write, number)


def nobody_reads_anything() -> None:
    nobody_reads()
    goes_to(1, 2)


def goes_to(target: int, number: int) -> None:
    """What is written to stdout (1) or stderr (2) goes elsewhere, as if the command had been begun so."""
    os.dup2(target, number)
    stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
    setattr(sys, "stdout" if number == 1 else "stderr", stream)


def full_pipe(number: int = 1) -> None:
    """stdout, or stderr, goes to a pipe that is full, and that does not wait."""
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
    """As `icdsel … >&- 2>&-` has it."""
    for number in (1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


@pytest.mark.parametrize("broken", [nobody_reads, nobody_reads_anything, full_pipe, full_device, closed_streams])
def test_what_is_said_cannot_be_written(begun: Place, whole: Place, broken: Callable[[], None]):
    for words in COMMANDS:
        code, said = begun.run(words, broken)
        assert code == 0 if broken is closed_streams else code in (0, 1, 120), said
        assert "Traceback" not in said
    goes_on_to_the_end(begun, whole)


@pytest.mark.parametrize("broken", [nobody_reads, full_pipe, full_device])
def test_notes_that_cannot_be_written_stop_nothing(begun: Place, whole: Place, broken: Callable[[int], None]):
    for words in COMMANDS:
        code, said = begun.run(words, partial(broken, 2))
        assert code == 0, said
    assert begun.run(("convert", "none.pt"), partial(broken, 2))[0] == 2
    assert differing(results(begun.folder), results(whole.folder)) == []


def test_an_alphabet_that_lacks_letters(begun: Place, whole: Place):
    for words in COMMANDS:
        code, said = begun.run(words, ascii_streams)
        assert code == 0 and "Traceback" not in said, said
        said.encode("ascii")
    assert differing(results(begun.folder), results(whole.folder)) == []


def ascii_streams() -> None:
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="ascii", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="ascii", write_through=True)
    from icdsel import __main__

    __main__._open_streams()


def test_a_locale_without_utf_8(tmp_path: Path):
    """In a process of its own: names of files, too, are in the locale's alphabet."""
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


def test_names_that_are_no_utf_8(begun: Place):
    """Of the folders of results and data, of a run, and of what is written."""
    name = os.fsdecode(b"\xff")
    shutil.copytree(begun.world, begun.folder / f"data{name}")
    begun.world = begun.folder / f"data{name}"
    there = ("--results-dir", f"results{name}")
    infer = (*COMMANDS[2], "--run", f"run{name}", *there)
    for words in (
        (*COMMANDS[0], "--image-cache-dir", f"images{name}", "--image-cache-mb", 0, *there),
        (*COMMANDS[1], "--run", f"run{name}", *there),
        infer,
        infer,  # its own files are read again
        ("runs", "--json", f"runs{name}.json", *there),
        ("compare", "--csv", f"table{name}.csv", "--html", f"page{name}.html", *there),
        ("check", begun.folder / f"results{name}/world/model_cpk/run{name}", *there),
    ):
        code, said = begun.run(words)
        assert code == 0 and "damaged" not in said and "Traceback" not in said, said


def long_ago() -> None:
    """The clock says 1971, and goes backwards."""
    began = time.time()
    time.time = lambda: 3e7 - 10 * (time.monotonic() - began)  # type: ignore[assignment]
    local, text = time.localtime, time.strftime
    time.strftime = lambda how, at=None: text(how, at or local(3e7))  # type: ignore[assignment]


def test_a_clock_that_jumps(begun: Place, whole: Place):
    """Neither the time of day nor the times of files decide anything."""
    for words in COMMANDS[:2]:
        assert begun.run(words, long_ago)[0] == 0
    for number, path in enumerate(sorted(begun.folder.rglob("*"))):
        os.utime(path, (4e9, 4e9) if number % 2 else (1, 1))
    for words in COMMANDS[2:]:
        code, said = begun.run(words, long_ago if words[0] == "convert" else None)
        assert code == 0, said
    assert differing(results(begun.folder), results(whole.folder)) == []
    before = results(begun.folder)
    for number, path in enumerate(sorted(begun.folder.rglob("*"))):
        os.utime(path, (1, 1) if number % 3 else (4e9, 4e9))
    goes_on_to_the_end(begun, whole)
    assert results(begun.folder) == before


def some_calls_fail() -> None:
    whole = QwenVl.answer

    def answer(vlm: QwenVl, requests: Sequence[Request]) -> list[Answer]:
        if any(request.icds and request.icds[0].question_id % 11 == 0 for request in requests):
            raise RuntimeError("device-side assert")
        return whole(vlm, requests)

    QwenVl.answer = answer  # type: ignore[method-assign]


def test_calls_that_fail_in_a_training_are_counted(begun: Place):
    online = ("--grpo-epochs", 1, "--online", "--online-samples", 2, "--run", "online")
    code, said = begun.run(("train", "--rce-epochs", 1, *online), some_calls_fail)
    failed = [b'"error": "RuntimeError: device-side assert"' in line for line in _lines(begun, "online.jsonl")]
    scored = [line.count(b'"error"') for line in _lines(begun, "rl_data_RandSampler_tiny-vlm.jsonl")]
    assert any(failed) and sum(scored)
    assert code == 1 and f"{sum(failed) + sum(scored)} VLM calls failed" in said, said
    code, said = begun.run(("train", "--rce-epochs", 1, "--run", "plain"))  # those of the RL data were told
    assert code == 0 and "calls failed" not in said, said
    code, said = begun.run(
        ("compare", "--train", "rce,grpo-online", "--rce-epochs", 1, "--n", 8, "--shots", 1), some_calls_fail
    )
    assert code == 1 and "VLM calls failed" in said, said


def _lines(place: Place, name: str) -> list[bytes]:
    [path] = place.folder.rglob(name)
    return path.read_bytes().splitlines()


def no_room() -> None:
    from icdsel.policy import loop as training

    def update(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory\nand more")

    training._update = update  # type: ignore[assignment]


def test_a_training_that_the_memory_does_not_suffice_for(begun: Place, whole: Place):
    assert begun.run(COMMANDS[0])[0] == 0
    code, said = begun.run(COMMANDS[1], no_room)
    assert code == 1 and "the memory does not suffice: [enforce" in said and "--hidden-dim" in said, said
    assert GOES_ON in said and "Traceback" not in said and "and more" not in said
    goes_on_to_the_end(begun, whole)


def dies_after_an_epoch() -> None:
    from icdsel.stages.run_journal import RunJournal

    RunJournal._show = lambda *_: os._exit(1)  # type: ignore[method-assign]


def test_what_training_goes_on_from_is_damaged(begun: Place):
    assert begun.run(("train", "--rce-epochs", 2), dies_after_an_epoch)[0] == 1
    [left] = begun.folder.rglob("resume.pt")
    left.write_bytes(left.read_bytes()[:1000])
    code, said = begun.run(("train", "--rce-epochs", 2))
    assert code == 2 and "this training cannot go on: move the run's folder away" in said, said


def test_a_world_that_lost_a_file(begun: Place, tmp_path: Path):
    place = Place(begun.folder, tmp_path / "data")
    (tmp_path / "data/world").mkdir(parents=True)
    for file in (begun.world / "world").glob("*.json"):
        shutil.copy(file, tmp_path / "data/world")
    (tmp_path / "data/world/annotations_train.json").unlink()
    code, said = place.run(("gen-rl-data",))
    assert code == 2 and "is made again" in said and "annotations_train.json" in said, said
