"""Files appear whole, journals grow and are cut, and nothing is written through a link, a pipe or a device."""

import os
import shutil
from pathlib import Path

import pytest

from icdsel.console import listeners
from icdsel.data import world
from icdsel.errors import RunError
from icdsel.stages.tensorboard import open_events
from icdsel.store.files import append_lines, cut, remove_leftovers, size_of, write_bytes, write_json
from icdsel.store.lock import locked
from icdsel.store.run_log import log_to, logged

MINE = "what nobody else may touch\n"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside" / "mine.txt"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


def test_a_link_in_the_place_of_a_result_is_replaced_not_followed(tmp_path: Path, outside: Path):
    link = tmp_path / "run.json"
    link.symlink_to(outside)
    write_bytes(link, b"new")
    assert outside.read_text() == MINE
    assert not link.is_symlink() and link.read_bytes() == b"new"


@pytest.mark.parametrize("through_link", [False, True])
def test_a_pipe_is_not_replaced(tmp_path: Path, through_link: bool):
    pipe, named = tmp_path / "pipe", tmp_path / "table.json"
    os.mkfifo(pipe)
    named.symlink_to(pipe) if through_link else pipe.rename(named)
    with pytest.raises(OSError, match="a pipe") as told:
        write_bytes(named, b"new")
    assert told.value.filename == str(named)
    assert named.is_fifo() and len(list(tmp_path.iterdir())) == 1 + through_link


def test_a_link_that_leads_nowhere_is_replaced(tmp_path: Path):
    link = tmp_path / "run.json"
    link.symlink_to(tmp_path / "none")
    write_bytes(link, b"new")
    assert [*tmp_path.iterdir()] == [link] and link.read_bytes() == b"new" and not link.is_symlink()


def test_another_name_of_a_file_is_not_written_to(tmp_path: Path, outside: Path):
    """A hard link is no link to `O_NOFOLLOW`."""
    journal, lock, log = tmp_path / "rl.jsonl.part", tmp_path / ".run.lock", tmp_path / "log.txt"
    for name in (journal, lock, log):
        name.hardlink_to(outside)
    with pytest.raises(OSError, match="a hard link"):
        append_lines(journal, ["mine"])
    with pytest.raises(OSError, match="a hard link"):
        cut(journal, 3)
    with pytest.raises(OSError, match="a hard link"), locked(tmp_path / "run", "run", RunError):
        pass
    logged(lambda: log_to(log, "cpu"))()
    write_bytes(journal, b"new")  # which takes the name's place
    assert outside.read_text() == MINE and journal.read_bytes() == b"new"


def test_what_a_kill_left_is_removed_and_nobody_elses(tmp_path: Path):
    for name in (".pol.17.part", ".pol.ckpt.17.part", ".pol.2.ckpt.17.part", ".pole.17.part"):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path / "pol")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".pol.2.ckpt.17.part",
        ".pol.ckpt.17.part",
        ".pole.17.part",
    ]


def test_a_path_that_cannot_be_written_is_named_itself_not_the_file_beside(tmp_path: Path):
    longest = tmp_path / ("a" * 255)  # to which the name of the file beside adds
    for path, why in ((tmp_path, "it is a folder: name a file in it"), (longest, "File name too long")):
        with pytest.raises(OSError, match=why) as told:
            write_bytes(path, b"new")
        assert told.value.filename == str(path)
    assert not [*tmp_path.iterdir()]


def test_a_link_in_the_place_of_the_file_beside_is_not_followed(tmp_path: Path, outside: Path):
    target = tmp_path / "run.json"
    target.with_name(f".{target.name}.{os.getpid()}.part").symlink_to(outside)
    write_bytes(target, b"new")
    assert outside.read_text() == MINE and target.read_bytes() == b"new"


@pytest.mark.parametrize(
    "write", [lambda path: append_lines(path, ["{}"]), lambda path: cut(path, 0)], ids=["append", "cut"]
)
def test_a_journal_that_is_a_link_is_refused(tmp_path: Path, outside: Path, write):
    link = tmp_path / "rl_data.jsonl.part"
    link.symlink_to(outside)
    with pytest.raises(OSError, match="a link") as told:
        write(link)
    assert told.value.filename == str(link)
    assert outside.read_text() == MINE


def test_a_journal_that_is_a_pipe_is_refused_at_once(tmp_path: Path):
    pipe = tmp_path / "rl_data.jsonl.part"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a pipe"):
        append_lines(pipe, ["{}"])
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # now it could be opened
    try:
        with pytest.raises(OSError, match="a pipe"):
            append_lines(pipe, ["{}"])
    finally:
        os.close(reader)


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, outside: Path):
    (tmp_path / ".my-run.lock").symlink_to(outside)
    with pytest.raises(OSError, match="a link"), locked(tmp_path / "my-run", "run my-run", RunError):
        pass
    assert outside.read_text() == MINE


def test_a_log_that_is_a_link_is_not_written(tmp_path: Path, outside: Path, capfd: pytest.CaptureFixture[str]):
    link = tmp_path / "log.txt"
    link.symlink_to(outside)

    @logged
    def stage() -> None:
        log_to(link, "cpu")

    stage()
    assert outside.read_text() == MINE and not listeners
    assert "no log is written" in capfd.readouterr().err


def test_folders_that_are_links_are_refused(tmp_path: Path, outside: Path):
    (tmp_path / "tensorboard").symlink_to(outside.parent)
    with pytest.raises(OSError, match="a link"), open_events(tmp_path / "tensorboard"):
        pass
    assert sorted(outside.parent.iterdir()) == [outside]


def test_a_journal_is_cut_and_goes_on(tmp_path: Path):
    path = tmp_path / "new" / "journal.part"
    append_lines(path, ["one", "zwei ü"])
    append_lines(path, ["torn"])
    cut(path, len("one\nzwei ü\n".encode()))
    append_lines(path, ["three"])
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"
    cut(path, 1000)
    cut(path.with_name("not-there"), 0)
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside(tmp_path: Path):
    path = tmp_path / "table.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, [float("nan")])
    assert path.read_text() == "[1]\n" and list(tmp_path.iterdir()) == [path]


def test_the_world_is_not_written_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SPLIT_SIZES", {"train": 2})
    (tmp_path / "secret").write_text("mine")
    images = tmp_path / "world" / "images" / "train"
    images.mkdir(parents=True)
    (images / "000000000001.png").symlink_to(tmp_path / "secret")
    world.write_world(tmp_path / "world")
    assert (tmp_path / "secret").read_text() == "mine"
    assert (images / "000000000001.png").read_bytes()[1:4] == b"PNG"
    (tmp_path / "elsewhere").mkdir()
    for place in ("world", "world/images", "world/images/train"):
        shutil.rmtree(tmp_path / "world")
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="it is a link"):
            world.write_world(tmp_path / "world")
        assert not [*(tmp_path / "elsewhere").iterdir()]
        (tmp_path / place).unlink()
        (tmp_path / "world").mkdir(exist_ok=True)


def test_sizes(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert [size_of(tmp_path / name) for name in ("file", "none", "file/below")] == [3, -1, -1]
